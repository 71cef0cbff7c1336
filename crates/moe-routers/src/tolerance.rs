//! How far two correct results may lie apart. Tests take their bounds from here, never from a literal.

use tch::Kind;

/// Largest allowed differences, relative to `max(|expected|, 1)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Of values: outputs, losses.
    pub value: f64,
    /// Of gradients against central differences, or against another implementation's.
    pub gradient: f64,
}

/// The table, by element type.
///
/// # Panics
/// For a kind in which nothing is computed here.
pub fn tolerance(kind: Kind) -> Tolerance {
    match kind {
        Kind::Double => Tolerance { value: 1e-9, gradient: 1e-6 },
        Kind::Float => Tolerance { value: 1e-5, gradient: 1e-4 },
        Kind::BFloat16 => Tolerance { value: 1e-2, gradient: 3e-2 },
        other => panic!("no tolerance for {other:?}"),
    }
}

/// `|got - want| / max(|want|, 1)`; infinite if either is NaN, so that NaN never passes.
pub fn relative_error(got: f64, want: f64) -> f64 {
    let error = (got - want).abs() / want.abs().max(1.0);
    if error.is_nan() { f64::INFINITY } else { error }
}
