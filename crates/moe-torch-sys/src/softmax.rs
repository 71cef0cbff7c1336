//! Softmax of [`moe_kernels`] on the scores of tensors: in one pass and in place.
//!
//! Axis letters: `n` rows, `v` vocabulary.
#![expect(unsafe_code, reason = "kernels write into the memory of tensors")]

use crate::host::{bits_mut, values_mut, whole_numbers};
use crate::threads::on_libtorch;
use moe_kernels::KernelError;
use tch::{Device, Kind, Tensor};

/// Whether the kernels take such scores: on the CPU, `f32` or `bf16`, without gaps.
pub fn takes(score: &Tensor) -> bool {
    score.device() == Device::Cpu
        && matches!(score.kind(), Kind::Float | Kind::BFloat16)
        && score.is_contiguous()
}

/// The sum of the cross-entropies of `target_n` (int64) under the softmax of `score_nv`'s rows, in nats;
/// `score_nv` becomes its gradient times `scale`.
///
/// # Errors
/// A target that is no column, or a shape that does not fit.
///
/// # Panics
/// Unless [`takes`] the scores.
pub fn cross_entropy(
    score_nv: &mut Tensor,
    target_n: &Tensor,
    scale: f64,
) -> Result<f64, KernelError> {
    let target_n = target_n.contiguous();
    let (targets, scale) = (whole_numbers(&target_n), scale as f32);
    if score_nv.kind() == Kind::Float {
        // SAFETY: the caller lends the scores, and wants nothing of them but their gradient.
        let scores = unsafe { values_mut(score_nv) };
        return on_libtorch(|| moe_kernels::cross_entropy(scores, targets, scale));
    }
    // SAFETY: as above.
    let scores = unsafe { bits_mut(score_nv) };
    on_libtorch(|| moe_kernels::cross_entropy(scores, targets, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cross_entropy_by_hand() {
        // softmax(0, ln 3) = (1/4, 3/4)
        let mut score = Tensor::from_slice(&[0f32, 3f32.ln()]).view([1, 2]);
        let loss = cross_entropy(&mut score, &Tensor::from_slice(&[1i64]), 2.0).unwrap();
        assert!((loss - (4f64 / 3.0).ln()).abs() < 1e-6);
        assert!((score.double_value(&[0, 0]) - 0.5).abs() < 1e-6);
        assert!(cross_entropy(&mut score, &Tensor::from_slice(&[2i64]), 1.0).is_err());
    }

    #[test]
    fn which_scores_are_taken() {
        let of = |kind| Tensor::zeros([2, 2], (kind, Device::Cpu));
        assert!(takes(&of(Kind::Float)) && takes(&of(Kind::BFloat16)));
        assert!(!takes(&of(Kind::Double)) && !takes(&of(Kind::Float).tr()));
    }
}
