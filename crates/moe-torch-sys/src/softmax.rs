//! Softmax of [`moe_kernels`] on the scores of tensors: in one pass and in place.
//!
//! Axis letters: `n` rows, `v` vocabulary, `b` batch and heads, `i` queries, `j` keys.
#![expect(unsafe_code, reason = "kernels write into the memory of tensors")]

use crate::ShimError;
use crate::fused::FusedError;
use crate::graph::attach;
use crate::host::{bits, bits_mut, values, values_mut, whole_numbers};
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

/// Scores `[b, i, j]` as they come from a product, with their graph, to the weights of causal attention,
/// `softmax_{j <= i}(scale score)`. The scores' memory becomes the weights'.
///
/// # Errors
/// Scores that are not square, or in libtorch's words.
///
/// # Panics
/// Unless [`takes`] the scores.
pub fn causal(score_bij: Tensor, scale: f64) -> Result<Tensor, FusedError> {
    let (tokens, narrow) = (score_bij.size()[2] as usize, scale as f32);
    let mut weight_bij = score_bij.detach();
    if weight_bij.kind() == Kind::Float {
        // SAFETY: the scores were handed over; a product keeps its factors for its gradient, not itself.
        let scores = unsafe { values_mut(&mut weight_bij) };
        on_libtorch(|| moe_kernels::causal_softmax(scores, tokens, narrow))?;
    } else {
        // SAFETY: as above.
        let scores = unsafe { bits_mut(&mut weight_bij) };
        on_libtorch(|| moe_kernels::causal_softmax(scores, tokens, narrow))?;
    }
    let kept_bij = weight_bij.shallow_clone();
    let attached = attach(&weight_bij, &[&score_bij], move |grad_bij| {
        let grad_bij = causal_backward(&kept_bij, grad_bij, scale).map_err(|e| e.to_string())?;
        Ok(vec![Some(grad_bij)])
    });
    attached.map_err(|error: ShimError| error.into())
}

fn causal_backward(
    weight_bij: &Tensor,
    grad_bij: &Tensor,
    scale: f64,
) -> Result<Tensor, KernelError> {
    let (tokens, scale) = (weight_bij.size()[2] as usize, scale as f32);
    // A copy: others may hold the gradient of the weights.
    let mut grad_bij = grad_bij.contiguous().copy();
    if weight_bij.kind() == Kind::Float {
        // SAFETY: `grad_bij` was made above.
        let grad = unsafe { values_mut(&mut grad_bij) };
        let weight = values(weight_bij);
        on_libtorch(|| moe_kernels::causal_softmax_backward(weight, grad, tokens, scale))?;
    } else {
        // SAFETY: as above.
        let grad = unsafe { bits_mut(&mut grad_bij) };
        let weight = bits(weight_bij);
        on_libtorch(|| moe_kernels::causal_softmax_backward(weight, grad, tokens, scale))?;
    }
    Ok(grad_bij)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights and the scores' gradient, by the kernels or by libtorch.
    fn attended(kind: Kind, fused: bool) -> [Tensor; 2] {
        tch::manual_seed(1);
        let [leaf, grad] = [0, 1].map(|_| Tensor::randn([3, 9, 9], (kind, Device::Cpu)));
        let leaf = leaf.set_requires_grad(true);
        // A product's result, not a leaf.
        let score = &leaf * 2.0;
        let weight = if fused {
            causal(score, 0.5).unwrap()
        } else {
            let mask = Tensor::full([9, 9], f64::NEG_INFINITY, (kind, Device::Cpu)).triu(1);
            (score * 0.5 + mask).softmax(-1, kind)
        };
        (&weight * grad).sum(kind).backward();
        [weight.detach(), leaf.grad()]
    }

    #[test]
    fn causal_weights_and_gradients_are_libtorchs() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let limit = if kind == Kind::Float { 1e-6 } else { 2e-2 };
            for (got, want) in attended(kind, true).iter().zip(&attended(kind, false)) {
                assert!(got.allclose(want, limit, limit, false), "{kind:?}");
            }
        }
    }

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
