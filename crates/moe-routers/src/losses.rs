//! Balance losses as tensors with their graph; the host forms are in [`moe_core::balance`].
//!
//! Every loss is computed per group and averaged over groups.
//!
//! Axis letters: `g` groups, `t` tokens, `e` experts, `k` choices.

use crate::router::axes3;
use moe_core::AuxForm;
use tch::{Kind, Tensor};

/// The terms of a balance loss, and the loss.
#[derive(Debug)]
pub struct LoadBalance {
    /// `f`: how much each expert was chosen, `[g, e]`, without gradient.
    pub fraction_ge: Tensor,
    /// `P`: how probable each expert was, `[g, e]`.
    pub mean_prob_ge: Tensor,
    /// `E sum_e f_e P_e`, the mean over groups.
    pub loss: Tensor,
}

/// `E sum_e f_e P_e`: hard shares `f` (no gradient) times mean probabilities `P`.
///
/// GShard (arXiv 2006.16668) and Switch (arXiv 2101.03961, eq. 4); `form` fixes the scale of `f`
/// and `P` for k > 1.
pub fn load_balance(prob_gte: &Tensor, expert_gtk: &Tensor, form: AuxForm) -> Tensor {
    load_balance_of_valid(prob_gte, expert_gtk, form, None).loss
}

/// The same with its terms, over the tokens that are no padding (`padding_gt`, `[g, t]`, bool).
pub fn load_balance_of_valid(
    prob_gte: &Tensor,
    expert_gtk: &Tensor,
    form: AuxForm,
    padding_gt: Option<&Tensor>,
) -> LoadBalance {
    let (_, _, e) = axes3(prob_gte);
    let k = expert_gtk.size()[2];
    let (share, prob) = match form {
        AuxForm::SumK => (1.0, 1.0),
        AuxForm::DivK => (1.0 / k as f64, 1.0),
        AuxForm::Fastmoe => (1.0 / k as f64, 1.0 / k as f64),
    };
    let count_ge = counts(expert_gtk, (e, prob_gte.kind()), padding_gt);
    let fraction_ge = count_ge / valid_tokens(prob_gte, padding_gt) * share;
    let mean_prob_ge = mean_of_valid(prob_gte, padding_gt) * prob;
    let loss_g = (&fraction_ge * &mean_prob_ge).sum_dim_intlist(-1, false, None) * e as f64;
    LoadBalance { fraction_ge, mean_prob_ge, loss: loss_g.mean(None) }
}

/// How often tokens that are no padding chose each of `e` experts, `[g, t, k] -> [g, e]`, in numbers
/// of this kind. No `[g, t, k, e]` of zeros and ones: for 256 experts that takes longer than the scores.
pub fn counts(
    expert_gtk: &Tensor,
    (experts, kind): (i64, Kind),
    padding_gt: Option<&Tensor>,
) -> Tensor {
    let (g, t, k) = axes3(expert_gtk);
    let options = (kind, expert_gtk.device());
    let valid_gt1 = match padding_gt {
        Some(padding_gt) => padding_gt.logical_not().unsqueeze(-1).to_kind(kind),
        None => Tensor::ones([g, t, 1], options),
    };
    let one_gn = valid_gt1.expand([g, t, k], false).reshape([g, t * k]);
    Tensor::zeros([g, experts], options).scatter_add(1, &expert_gtk.flatten(1, 2), &one_gn)
}

/// Tokens of each group that are no padding, at least 1, `[g, 1]`, in numbers of the kind of `like_gtn`.
fn valid_tokens(like_gtn: &Tensor, padding_gt: Option<&Tensor>) -> Tensor {
    let (g, t, _) = axes3(like_gtn);
    let options = (like_gtn.kind(), like_gtn.device());
    let Some(padding_gt) = padding_gt else { return Tensor::full([g, 1], t, options) };
    let valid_gt = padding_gt.logical_not().to_kind(like_gtn.kind());
    valid_gt.sum_dim_intlist(1, true, None).clamp_min(1.0)
}

/// Mean over the tokens of a group that are no padding, 0 if there are none. `[g, t, n] -> [g, n]`.
pub fn mean_of_valid(x_gtn: &Tensor, padding_gt: Option<&Tensor>) -> Tensor {
    let Some(padding_gt) = padding_gt else { return x_gtn.mean_dim(1, false, None) };
    let valid_gt1 = padding_gt.logical_not().unsqueeze(-1).to_kind(x_gtn.kind());
    let tokens_g1 = valid_tokens(x_gtn, Some(padding_gt));
    (x_gtn * valid_gt1).sum_dim_intlist(1, false, None) / tokens_g1
}

/// Router z-loss, `mean_t (log sum_e exp l_te)^2`. ST-MoE (arXiv 2202.08906), eq. 5.
pub fn z_loss(logits_gte: &Tensor) -> Tensor {
    z_loss_of_valid(logits_gte, None)
}

/// The same over the tokens that are no padding (`padding_gt`, `[g, t]`, bool).
pub fn z_loss_of_valid(logits_gte: &Tensor, padding_gt: Option<&Tensor>) -> Tensor {
    mean_of_valid(&logits_gte.logsumexp(-1, true).square(), padding_gt).mean(None)
}

/// Sigmoids divided by their sum over the last axis: the softmax of `ln sigmoid`, which is safe where
/// every sigmoid underflows.
pub fn normalised_sigmoid(logits_gte: &Tensor) -> Tensor {
    logits_gte.log_sigmoid().softmax(-1, logits_gte.kind())
}

/// `(std / mean)^2` over experts with the population deviation, averaged over groups. `[g, e]`.
pub fn cv_squared(x_ge: &Tensor) -> Tensor {
    let mean_g1 = x_ge.mean_dim(1, true, None);
    ((x_ge - &mean_g1) / mean_g1).square().mean(None)
}

/// `variance / (mean^2 + epsilon)` over experts, averaged over groups: survives a mean of zero.
pub fn cv_squared_guarded(x_ge: &Tensor, epsilon: f64) -> Tensor {
    let mean_g1 = x_ge.mean_dim(1, true, None);
    let variance_g1 = (x_ge - &mean_g1).square().mean_dim(1, true, None);
    (variance_g1 / (mean_g1.square() + epsilon)).mean(None)
}

/// Mean over tokens of the entropy of their gate distribution, divided by `ln E`; 0 if E = 1.
pub fn gate_entropy(gate_gte: &Tensor) -> Tensor {
    let (_, _, e) = axes3(gate_gte);
    let entropy_gt = -gate_gte.xlogy(gate_gte).sum_dim_intlist(-1, false, None);
    entropy_gt.mean(None) / (e.max(2) as f64).ln()
}
