//! Choice and weights of X-MoE, (7) and (8), with the options of the released code.

use super::{Config, Gate, NormalizeGates, SECOND, SecondPolicy};
use crate::plan::{ChoicesGtk, TensorPlan};
use crate::router::{Chosen, RouteCx};
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
    let gate_gtk = match config.gate {
        Gate::SoftmaxTopk => {
            logits_gte.gather(-1, &choices.expert_gtk, false).softmax(-1, logits_gte.kind())
        }
        gate => probabilities(gate, logits_gte).gather(-1, &choices.expert_gtk, false),
    };
    let before = config.normalize_gates == NormalizeGates::BeforeDrop;
    let gate_gtk = if before { normalized(&gate_gtk) } else { gate_gtk };
    let choices = choices.with_gates(gate_gtk);
    match present(config, &choices, cx) {
        Some(present_gtk) => choices.present(present_gtk),
        None => choices,
    }
}

/// (8) for all experts: sigmoid, or else softmax, of scores over temperature, `[g, t, e]`.
pub fn probabilities(gate: Gate, logits_gte: &Tensor) -> Tensor {
    match gate {
        Gate::Sigmoid => logits_gte.sigmoid(),
        Gate::Softmax | Gate::SoftmaxTopk => logits_gte.softmax(-1, logits_gte.kind()),
    }
}

/// Gates divided by their sum.
fn normalized(gate_gtk: &Tensor) -> Tensor {
    gate_gtk / gate_gtk.sum_dim_intlist(-1, true, None).clamp_min(SUM_FLOOR)
}

/// Choices that queue, if not all do: none of a padded token, no second one whose gate `g` does not
/// reach `2 g > u`.
fn present(config: &Config, choices: &ChoicesGtk, cx: &RouteCx<'_>) -> Option<Tensor> {
    let random = config.second_policy == SecondPolicy::Random && config.top_k > 1 && cx.training();
    if !random && cx.padding_gt.is_none() {
        return None;
    }
    let present_gtk = choices.gate_gtk.detach().ones_like().to_kind(Kind::Bool);
    if random {
        let second_gt1 = choices.gate_gtk.detach().narrow(-1, 1, 1);
        let u_gt1 = cx.uniform(SECOND, &second_gt1);
        present_gtk.narrow(-1, 1, 1).copy_(&(second_gt1 * 2.0).gt_tensor(&u_gt1));
    }
    Some(match cx.padding_gt {
        Some(padding_gt) => present_gtk.logical_and(&padding_gt.logical_not().unsqueeze(-1)),
        None => present_gtk,
    })
}

/// The plan of the choices that find room; with `after_drop` their weights sum to 1.
pub(super) fn plan(config: &Config, chosen: &Chosen) -> TensorPlan {
    if config.normalize_gates != NormalizeGates::AfterDrop {
        return chosen.plan();
    }
    let position_gtk = chosen.choices.positions(chosen.experts, chosen.room.1);
    let limit = chosen.room.0.map_or(i64::MAX, |slots| slots as i64);
    let kept_gtk = position_gtk.ge(0).logical_and(&position_gtk.lt(limit));
    let gate_gtk = &chosen.choices.gate_gtk;
    let choices = ChoicesGtk {
        expert_gtk: chosen.choices.expert_gtk.shallow_clone(),
        gate_gtk: normalized(&(gate_gtk * kept_gtk.to_kind(gate_gtk.kind()))),
        present_gtk: chosen.choices.present_gtk.as_ref().map(Tensor::shallow_clone),
    };
    choices.plan(chosen.experts, chosen.room)
}

/// Scores that are not finite become the smallest finite score of their group.
pub(super) fn make_finite(score_gte: &Tensor) -> Tensor {
    let finite_gte = score_gte.isfinite();
    let others_gte = score_gte.detach().masked_fill(&finite_gte.logical_not(), f64::INFINITY);
    let smallest_g11 = others_gte.amin([1i64, 2].as_slice(), true);
    score_gte.where_self(&finite_gte, &smallest_g11)
}
