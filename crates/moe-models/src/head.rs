//! The output layer and its cross-entropy in one step, without the scores of all tokens.
//!
//! ```text
//! p_n = softmax(x_n W^T),   loss = mean_n -ln p_n[y_n]
//! dx_n = (p_n - onehot(y_n)) W / N,   dW = sum_n (p_n - onehot(y_n))^T x_n / N
//! ```
//!
//! Both gradients are made in the forward pass, chunk by chunk while `p` is at hand, so that no more
//! than [`CHUNK`] rows of the vocabulary's width exist at a time; the backward pass only scales them.
//!
//! Axis letters: `n` tokens, `d` width, `v` vocabulary.

pub mod adaptive;

use crate::precision::Precision;
use adaptive::Adaptive;
use moe_torch_sys::graph::{attach, wants_graph};
use tch::{Kind, Tensor};

/// Tokens whose scores exist at a time.
pub const CHUNK: i64 = 1024;

/// Mean cross-entropy of `y_n` (int64) under `softmax(x_nd head_vd^T)`, a scalar with its graph; products
/// in `precision`, softmax and sums at least in `f32`.
///
/// # Panics
/// If the shapes do not fit, or for kinds without gradients.
pub fn cross_entropy(
    x_nd: &Tensor,
    head_vd: &Tensor,
    y_n: &Tensor,
    precision: Precision,
) -> Tensor {
    let graph = wants_graph(&[x_nd, head_vd]);
    let (loss, grads) = tch::no_grad(|| forward(x_nd, head_vd, y_n, (graph, precision)));
    let Some([dx_nd, dhead_vd]) = grads else { return loss };
    let attached = attach(&loss, &[x_nd, head_vd], move |dloss| {
        // Alone on the graph, as a loss is, it may be scaled in place.
        Ok([&dx_nd, &dhead_vd].map(|grad| Some(grad * dloss)).into())
    });
    attached.unwrap_or_else(|e| panic!("cross-entropy: {e}"))
}

/// The loss, and its gradients by `x_nd` and `head_vd` if they are wanted.
fn forward(
    x_nd: &Tensor,
    head_vd: &Tensor,
    y_n: &Tensor,
    (graph, precision): (bool, Precision),
) -> (Tensor, Option<[Tensor; 2]>) {
    let tokens = x_nd.size()[0];
    let share = 1.0 / tokens as f64;
    let wide = if x_nd.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let mut loss = Tensor::zeros([], (wide, x_nd.device()));
    let (x_low_nd, head_low_vd) = (precision.factor(x_nd), precision.factor(head_vd));
    let mut grads = graph.then(|| [x_nd.empty_like(), head_vd.zeros_like()]);
    for first in (0..tokens).step_by(CHUNK as usize) {
        let count = CHUNK.min(tokens - first);
        let (x_cd, y_c1) =
            (x_low_nd.narrow(0, first, count), y_n.narrow(0, first, count).unsqueeze(1));
        // Widened first: a softmax that widens as it goes takes twice the time on a CPU.
        let score_cv = x_cd.matmul(&head_low_vd.tr()).to_kind(wide);
        let mut log_cv = score_cv.log_softmax(-1, wide);
        loss -= log_cv.gather(1, &y_c1, false).sum(wide) * share;
        if let Some([dx_nd, dhead_vd]) = &mut grads {
            let mut error_cv = log_cv.exp_().g_mul_scalar_(share);
            let minus = Tensor::full([count, 1], -share, (wide, x_nd.device()));
            let error_cv = error_cv.scatter_add_(1, &y_c1, &minus).to_kind(x_cd.kind());
            dx_nd.narrow(0, first, count).copy_(&error_cv.matmul(&head_low_vd));
            // In `bf16` the sum over chunks is still one of `f32`.
            let _ = match precision {
                Precision::Fp32 => dhead_vd.addmm_(&error_cv.tr(), &x_cd),
                Precision::Bf16 => dhead_vd.g_add_(&error_cv.tr().matmul(&x_cd)),
            };
        }
    }
    (loss, grads)
}

/// The output layer of a language model.
#[derive(Debug)]
pub(crate) enum Head {
    /// One row for every id, `[v, d]`.
    Full(Tensor),
    /// Rare ids in clusters.
    Adaptive(Adaptive),
}

impl Head {
    /// Scores whose softmax is the distribution of the next token, `[.., d] -> [.., v]`.
    pub(crate) fn scores(&self, x: &Tensor, precision: Precision) -> Tensor {
        match self {
            Self::Full(head_vd) => precision.linear(x, head_vd),
            Self::Adaptive(head) => head.log_prob(x, precision),
        }
    }

    /// Mean cross-entropy of the targets, a scalar with its graph.
    pub(crate) fn loss(&self, x_nd: &Tensor, y_n: &Tensor, precision: Precision) -> Tensor {
        match self {
            Self::Full(head_vd) => cross_entropy(x_nd, head_vd, y_n, precision),
            Self::Adaptive(head) => head.loss(x_nd, y_n, precision),
        }
    }

    /// Values that a token is multiplied with, mean over these targets, a scalar.
    pub(crate) fn products(&self, y_n: &Tensor) -> Tensor {
        match self {
            Self::Full(head_vd) => Tensor::from(head_vd.numel() as f64),
            Self::Adaptive(head) => head.products(y_n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::tolerance::tolerance;
    use tch::Device;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    /// Two chunks and a bit, so that every boundary is crossed.
    #[test]
    fn equals_libtorch_with_gradients() {
        let n = CHUNK * 2 + 3;
        let (x_nd, head_vd) = (random(&[n, 5]), random(&[7, 5]));
        let y_n = Tensor::randint(7, [n], (Kind::Int64, Device::Cpu));
        let run = |loss: Tensor| {
            (&loss * 3.0).backward();
            let grads = [x_nd.grad().copy(), head_vd.grad().copy()];
            for mut leaf in [x_nd.shallow_clone(), head_vd.shallow_clone()] {
                leaf.zero_grad();
            }
            (loss.double_value(&[]), grads)
        };
        let (mine, my_grads) = run(cross_entropy(&x_nd, &head_vd, &y_n, Precision::Fp32));
        let logits_nv = x_nd.matmul(&head_vd.tr());
        let (theirs, their_grads) = run(logits_nv.cross_entropy_for_logits(&y_n));
        let limits = tolerance(Kind::Float);
        assert!((mine - theirs).abs() < limits.value, "{mine} and {theirs}");
        for (mine, theirs) in my_grads.iter().zip(&their_grads) {
            let off = (mine - theirs).abs().max().double_value(&[]);
            assert!(off < limits.gradient, "{off}");
        }
    }

    /// `softmax(0, ln 3) = (1/4, 3/4)`; target 1: loss `ln 4/3`, gradient of x `(1/4, -1/4) W`.
    #[test]
    fn by_hand() {
        let x_nd = Tensor::from_slice(&[1f32]).view([1, 1]).set_requires_grad(true);
        let head_vd = Tensor::from_slice(&[0f32, 3f32.ln()]).view([2, 1]);
        let loss = cross_entropy(&x_nd, &head_vd, &Tensor::from_slice(&[1i64]), Precision::Fp32);
        let limit = tolerance(Kind::Float).value;
        assert!((loss.double_value(&[]) - (4f64 / 3.0).ln()).abs() < limit);
        loss.backward();
        assert!((x_nd.grad().double_value(&[0, 0]) + 0.25 * 3f64.ln()).abs() < limit);
    }
}
