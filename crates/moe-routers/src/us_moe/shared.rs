//! Shared experts of the plug-in models (step 7): untouched by the competition.
//!
//! A model that has one adds `weight * shared(x)` to the sum (6).

use moe_core::score;
use ndarray::{Array1, ArrayView1, ArrayView2};
use tch::Tensor;

/// How the shared expert enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// There is none.
    None,
    /// With weight `sigmoid(gate . x)` (Qwen).
    Gated,
    /// With weight 1 (DeepSeek).
    Plain,
}

impl Shared {
    /// Whether the model divides weights by their sum when `norm_topk_prob` asks for it; DeepSeek's
    /// plug-in does not look.
    pub fn normalises(self) -> bool {
        self != Self::Plain
    }

    /// Weight of the shared expert for each token, `[t]`: `x_td` with `gate_d`, if it is gated.
    pub fn weight(self, x_td: &Tensor, gate_d: Option<&Tensor>) -> Tensor {
        let one_t = || x_td.detach().select(1, 0).ones_like();
        match (self, gate_d) {
            (Self::Gated, Some(gate_d)) => x_td.mv(gate_d).sigmoid(),
            (Self::None, _) => one_t() * 0.0,
            _ => one_t(),
        }
    }

    /// The same on the host.
    pub fn weight_host(
        self,
        x_td: ArrayView2<'_, f64>,
        gate_d: Option<ArrayView1<'_, f64>>,
    ) -> Array1<f64> {
        match (self, gate_d) {
            (Self::Gated, Some(gate_d)) => x_td.dot(&gate_d).mapv(score::sigmoid),
            (Self::None, _) => Array1::zeros(x_td.nrows()),
            _ => Array1::ones(x_td.nrows()),
        }
    }
}
