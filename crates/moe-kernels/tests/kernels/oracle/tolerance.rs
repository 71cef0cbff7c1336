//! How far two correct results may lie apart. Tests take their bounds from here, never from a
//! literal.

use moe_kernels::Dtype;

/// Largest allowed differences, relative to the largest expected magnitude of the array.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerance {
    /// Of outputs.
    pub(crate) value: f64,
    /// Of gradients.
    pub(crate) gradient: f64,
}

/// The table, by element type of the products.
pub(crate) fn tolerance(dtype: Dtype) -> Tolerance {
    match dtype {
        Dtype::F32 => Tolerance { value: 4e-6, gradient: 8e-6 },
        // Two roundings to 8 bits lie between input and output, three before a gradient.
        Dtype::Bf16 => Tolerance { value: 2e-2, gradient: 3e-2 },
    }
}

/// Of the oracle's gradients against central differences of its outputs, both in `f64`.
pub(crate) const DIFFERENCES: f64 = 1e-7;

/// Half the step of central differences.
pub(crate) const STEP: f64 = 1e-5;

/// The largest difference relative to the largest expected magnitude; infinite with NaN.
pub(crate) fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    relative_to(0.0, got, want)
}

/// The same relative to `least` if that is larger: of few sums all may have cancelled.
pub(crate) fn relative_to(least: f64, got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(least, |scale: f64, want| scale.max(want.abs()));
    let error = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs());
    let worst = error.fold(0.0, |worst, error| if error <= worst { worst } else { error });
    if worst == 0.0 { 0.0 } else { worst / scale }
}
