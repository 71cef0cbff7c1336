//! Self-attention of [`moe_kernels`] on tensors, as one step of the graph.
//!
//! Axis letters: `b` batch, `t` tokens, `m` heads, `c` width of a head, `d` width of all heads.
#![expect(unsafe_code, reason = "kernels write into the memory of tensors")]

use crate::fused::FusedError;
use crate::graph::attach;
use crate::host::{bits, bits_mut, values, values_mut};
use crate::threads::on_libtorch;
use moe_kernels::{AttentionInput, Heads, Isa, KernelError, attention_backward};
use tch::{Device, Kind, Tensor};

/// Whether the kernels take queries, keys and values of this kind: on the CPU, `f32` or `bf16`.
pub fn takes(kind: Kind, device: Device) -> bool {
    device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16)
}

/// Self-attention of queries, keys and values `[b, t, 3 d]`, side by side as one product leaves them:
/// `[b, t, d]`, heads side by side. With `causal` a token sees itself and earlier ones only.
///
/// # Errors
/// No memory, or in libtorch's words.
///
/// # Panics
/// Unless [`takes`] their kind, or if three times the heads do not divide the last axis.
pub fn attention(qkv: &Tensor, heads: i64, causal: bool) -> Result<Tensor, FusedError> {
    let (b, t, d3) = qkv.size3().expect("[b, t, 3 d]");
    assert!(d3 % (3 * heads) == 0, "three times {heads} heads do not divide {d3}");
    let [batch, tokens, count, width] = [b, t, heads, d3 / (3 * heads)].map(|n| n as usize);
    let sizes = Heads { batch, tokens, heads: count, width, causal };
    let kept = qkv.detach().contiguous();
    let mut y_btd = Tensor::empty([b, t, d3 / 3], (qkv.kind(), qkv.device()));
    let mut log_bmt = Tensor::empty([b, heads, t], (Kind::Float, qkv.device()));
    forward(&sizes, &kept, &mut y_btd, &mut log_bmt)?;
    let result = y_btd.shallow_clone();
    let attached = attach(&y_btd, &[qkv], move |dy_btd| {
        let dqkv = backward(&sizes, [&kept, &result, &log_bmt], dy_btd);
        Ok(vec![Some(dqkv.map_err(|error| error.to_string())?)])
    });
    Ok(attached?)
}

fn forward(
    sizes: &Heads,
    qkv: &Tensor,
    y_btd: &mut Tensor,
    log_bmt: &mut Tensor,
) -> Result<(), KernelError> {
    let isa = Isa::detect();
    let bf16 = qkv.kind() == Kind::BFloat16;
    // SAFETY: these two were made for this call.
    let logs = unsafe { values_mut(log_bmt) };
    if bf16 {
        // SAFETY: as above.
        let y = unsafe { bits_mut(y_btd) };
        return on_libtorch(|| moe_kernels::attention(isa, sizes, bits(qkv), y, logs));
    }
    // SAFETY: as above.
    let y = unsafe { values_mut(y_btd) };
    on_libtorch(|| moe_kernels::attention(isa, sizes, values(qkv), y, logs))
}

fn backward(
    sizes: &Heads,
    [qkv, y_btd, log_bmt]: [&Tensor; 3],
    dy_btd: &Tensor,
) -> Result<Tensor, KernelError> {
    let (isa, log_bmt, dy_btd) = (Isa::detect(), values(log_bmt), dy_btd.contiguous());
    let mut dqkv = qkv.empty_like();
    if qkv.kind() == Kind::BFloat16 {
        // SAFETY: made above.
        let to = unsafe { bits_mut(&mut dqkv) };
        let input = AttentionInput { qkv: bits(qkv), y: bits(y_btd), log_bmt, dy: bits(&dy_btd) };
        on_libtorch(|| attention_backward(isa, sizes, input, to))?;
    } else {
        // SAFETY: made above.
        let to = unsafe { values_mut(&mut dqkv) };
        let input =
            AttentionInput { qkv: values(qkv), y: values(y_btd), log_bmt, dy: values(&dy_btd) };
        on_libtorch(|| attention_backward(isa, sizes, input, to))?;
    }
    Ok(dqkv)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results and gradients of values that `bf16` holds exactly: by the kernels in `kind`, or by libtorch
    /// in `f32`.
    fn attended(kind: Option<Kind>, causal: bool) -> [Tensor; 2] {
        tch::manual_seed(1);
        let random = |size: [i64; 3]| {
            Tensor::randn(size, (Kind::Float, Device::Cpu))
                .to_kind(Kind::BFloat16)
                .to_kind(Kind::Float)
        };
        let leaf = random([2, 37, 48]).set_requires_grad(true);
        let grad = random([2, 37, 16]);
        // A product's result, not a leaf, and with gaps.
        let qkv = (&leaf * 2.0).transpose(0, 1).contiguous().transpose(0, 1);
        let y = if let Some(kind) = kind {
            attention(&qkv.to_kind(kind), 4, causal).unwrap()
        } else {
            let heads = |x: &Tensor| x.reshape([2, 37, 4, 4]).transpose(1, 2);
            let [q, k, v] = [0, 1, 2].map(|i| heads(&qkv.narrow(-1, 16 * i, 16)));
            let mask = None::<&Tensor>;
            let y =
                Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, false);
            y.transpose(1, 2).reshape([2, 37, 16])
        };
        (y.to_kind(Kind::Float) * grad).sum(Kind::Float).backward();
        [y.detach().to_kind(Kind::Float), leaf.grad()]
    }

    #[test]
    fn results_and_gradients_are_libtorchs() {
        for (kind, limit) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
            for causal in [true, false] {
                let (got, want) = (attended(Some(kind), causal), attended(None, causal));
                for (got, want) in got.iter().zip(&want) {
                    let off = (got - want).abs().max() / want.abs().max();
                    let off = off.double_value(&[]);
                    assert!(off < limit, "{kind:?}, causal: {causal}: {off}");
                }
            }
        }
    }

    #[test]
    fn which_kinds_are_taken() {
        assert!(takes(Kind::Float, Device::Cpu) && takes(Kind::BFloat16, Device::Cpu));
        assert!(!takes(Kind::Double, Device::Cpu) && !takes(Kind::Float, Device::Cuda(0)));
    }
}
