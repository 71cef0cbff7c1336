//! The two passes of S2MoE on libtorch, (2), (3), (6).
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices; `g` is one group of all tokens.

use super::{Augmented, Config, NceOn, Perturbation, augment, balance, info_nce};
use crate::plan::{ChoicesGtk, TensorPlan};
use moe_core::DropOrder;
use tch::Tensor;

/// What the layer learns besides its experts.
#[derive(Debug)]
pub struct Params {
    /// Router, `[e, d]`.
    pub router_ed: Tensor,
    /// Its bias, `[e]`.
    pub bias_e: Option<Tensor>,
    /// Blend gate, `[d]`; inference has no use for it.
    pub gate_w_d: Option<Tensor>,
    /// Its bias, a scalar.
    pub gate_b: Option<Tensor>,
}

/// One pass through the experts.
#[derive(Debug)]
pub struct Pass {
    /// Output, `[t, d]`.
    pub y_td: Tensor,
    /// Logits of the routing, `[t, e]`.
    pub logits_te: Tensor,
    /// Experts and gates, one group.
    pub choices: ChoicesGtk,
    /// Who computes what.
    pub plan: TensorPlan,
}

/// What a training step of the layer gives.
#[derive(Debug)]
pub struct Layer {
    /// Blended output, `[t, d]`.
    pub y_td: Tensor,
    /// Pass of the tokens.
    pub clean: Pass,
    /// Output of the noisy copies, `[t, d]`.
    pub noisy_td: Tensor,
    /// Experts of the noisy copies, `[t, k]`.
    pub noisy_expert_tk: Tensor,
    /// The noisy copies.
    pub augmented: Augmented,
    /// Blend `g`, `[t]`.
    pub blend_t: Tensor,
    /// InfoNCE (4).
    pub nce: Tensor,
    /// Balance (5).
    pub balance: Tensor,
    /// `alpha L_b + beta L_u`.
    pub aux: Tensor,
}

impl Params {
    /// (2): the `k` largest logits, weighed by the softmax over them.
    fn pass(&self, x_td: &Tensor, k: usize, expert: impl Fn(usize, &Tensor) -> Tensor) -> Pass {
        let logits_te = x_td.linear(&self.router_ed, self.bias_e.as_ref());
        let choices = ChoicesGtk::top_k(&logits_te.unsqueeze(0), k as i64);
        let gate_gtk = choices.gate_gtk.softmax(-1, logits_te.kind());
        let choices = choices.with_gates(gate_gtk);
        let plan = choices.plan(logits_te.size()[1], (None, DropOrder::Arrival));
        let y_td = plan.apply(&x_td.unsqueeze(0), expert).squeeze_dim(0);
        Pass { y_td, logits_te, choices, plan }
    }

    /// `g` of (3), read from the clean tokens, `[t]`.
    ///
    /// # Panics
    /// Without a gate: a training step needs one.
    fn blend(&self, x_td: &Tensor) -> Tensor {
        let gate_w_d = self.gate_w_d.as_ref().expect("a blend gate");
        let score_t = x_td.matmul(gate_w_d);
        match &self.gate_b {
            Some(gate_b) => (score_t + gate_b).sigmoid(),
            None => score_t.sigmoid(),
        }
    }
}

/// A training step: both passes, their blend and the losses. `expert(e, rows)` is called twice for
/// every expert.
///
/// # Panics
/// If `params` has no blend gate.
pub fn layer(
    config: &Config,
    params: &Params,
    x_td: &Tensor,
    given: &Perturbation<'_>,
    expert: impl Fn(usize, &Tensor) -> Tensor,
) -> Layer {
    let augmented = augment(config, x_td, given);
    let clean = params.pass(x_td, config.top_k, &expert);
    let (noisy_td, noisy_expert_gtk) = if config.reroute {
        let noisy = params.pass(&augmented.x_td, config.top_k, &expert);
        (noisy.y_td, noisy.choices.expert_gtk)
    } else {
        let noisy_td = clean.plan.apply(&augmented.x_td.unsqueeze(0), &expert).squeeze_dim(0);
        (noisy_td, clean.choices.expert_gtk.shallow_clone())
    };
    let blend_t = params.blend(x_td);
    let g_t1 = blend_t.unsqueeze(-1);
    let nce_t = match config.nce_on {
        NceOn::Inputs => info_nce(x_td, &augmented.x_td, config.tau, false),
        NceOn::Outputs => info_nce(&clean.y_td, &noisy_td, config.tau, false),
    };
    let nce = nce_t.mean(None);
    let expert_tk = clean.choices.expert_gtk.squeeze_dim(0);
    let balance = balance(config.balance, &clean.logits_te, Some(&expert_tk));
    Layer {
        y_td: &g_t1 * &clean.y_td + (1.0 - &g_t1) * &noisy_td,
        aux: &balance * config.alpha + &nce * config.beta,
        noisy_expert_tk: noisy_expert_gtk.squeeze_dim(0),
        clean,
        noisy_td,
        augmented,
        blend_t,
        nce,
        balance,
    }
}

/// Inference (6): one pass with `top_k_infer` experts; no noise, no gate, no losses.
pub fn infer(
    config: &Config,
    params: &Params,
    x_td: &Tensor,
    expert: impl Fn(usize, &Tensor) -> Tensor,
) -> Pass {
    params.pass(x_td, config.top_k_infer, expert)
}
