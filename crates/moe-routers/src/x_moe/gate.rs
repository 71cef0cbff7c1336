//! Choice and weights of X-MoE, (7) and (8), with the options of the released code.

use super::{Config, Gate, NormalizeGates, SECOND, SecondPolicy};
use crate::plan::ChoicesGtk;
use crate::router::RouteCx;
use tch::{Kind, Tensor};

/// Floor of the sum that gates are divided by: the spacing of doubles at 1, as in the release.
pub(super) const SUM_FLOOR: f64 = f64::EPSILON;

/// Experts and weights of every token.
pub(super) fn choose(
    config: &Config,
    score_gte: &Tensor,
    logits_gte: &Tensor,
    cx: &RouteCx<'_>,
) -> ChoicesGtk {
    let choices = ChoicesGtk::top_k(score_gte, config.top_k as i64); // (7)
    let chosen_gtk = logits_gte.gather(-1, &choices.expert_gtk, false);
    let kind = logits_gte.kind();
    let mut gate_gtk = match config.gate {
        Gate::Softmax => logits_gte.softmax(-1, kind).gather(-1, &choices.expert_gtk, false),
        Gate::Sigmoid => chosen_gtk.sigmoid(),
        Gate::SoftmaxTopk => chosen_gtk.softmax(-1, kind),
    };
    if config.normalize_gates == NormalizeGates::BeforeDrop {
        let sum_gt1 = gate_gtk.sum_dim_intlist(-1, true, None).clamp_min(SUM_FLOOR);
        gate_gtk = gate_gtk / sum_gt1;
    }
    let choices = choices.with_gates(gate_gtk);
    if config.second_policy == SecondPolicy::Random && config.top_k > 1 && cx.training() {
        return with_lucky_seconds(choices, cx);
    }
    choices
}

/// Takes back the second choices whose gate `g` does not reach `2 g > u`.
fn with_lucky_seconds(choices: ChoicesGtk, cx: &RouteCx<'_>) -> ChoicesGtk {
    let second_gt1 = choices.gate_gtk.detach().narrow(-1, 1, 1);
    let u_gt1 = cx.uniform(SECOND, &second_gt1);
    let present_gtk = choices.gate_gtk.ones_like().to_kind(Kind::Bool);
    let _ = present_gtk.narrow(-1, 1, 1).copy_(&(second_gt1 * 2.0).gt_tensor(&u_gt1));
    choices.present(present_gtk)
}

/// Scores that are not finite become the smallest finite score of the whole tensor.
pub(super) fn make_finite(score_gte: &Tensor) -> Tensor {
    let bad_gte = score_gte.isfinite().logical_not();
    let smallest = score_gte.detach().masked_fill(&bad_gte, f64::INFINITY).min();
    score_gte.where_self(&bad_gte.logical_not(), &smallest)
}
