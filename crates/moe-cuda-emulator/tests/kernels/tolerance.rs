//! How far two correct results may lie apart. Tests take their bounds from here, never from a
//! literal.

use moe_cuda::Dtype;

/// The largest allowed difference, relative to the largest expected magnitude of the array.
pub(crate) fn tolerance(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 4e-6,
        // One rounding to 8 bits on the way out; inputs are rounded before the oracle sees them.
        Dtype::Bf16 => 4e-3,
    }
}

/// Of the oracle's gradients against central differences of its outputs, both in `f64`.
pub(crate) const DIFFERENCES: f64 = 1e-7;

/// Half the step of central differences.
pub(crate) const STEP: f64 = 1e-5;

/// Asserts that values agree.
pub(crate) fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.0, |scale: f64, want| scale.max(want.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        // Written so that NaN fails.
        let close = (got - want).abs() <= tolerance * scale;
        assert!(close, "{what}[{i}] is {got}, not {want} (scale {scale})");
    }
}
