//! Balance losses as tensors with their graph; the host forms are in [`moe_core::balance`].
//!
//! Every loss is computed per group and averaged over groups.
//!
//! Axis letters: `g` groups, `t` tokens, `e` experts, `k` choices.

use crate::router::axes3;
use moe_core::AuxForm;
use tch::{Kind, Tensor};

/// `E sum_e f_e P_e`: hard shares `f` (no gradient) times mean probabilities `P`.
///
/// GShard (arXiv 2006.16668) and Switch (arXiv 2101.03961, eq. 4); `form` fixes the scale of `f`
/// and `P` for k > 1.
pub fn load_balance(prob_gte: &Tensor, expert_gtk: &Tensor, form: AuxForm) -> Tensor {
    let (_, t, e) = axes3(prob_gte);
    let k = expert_gtk.size()[2];
    let (share, prob) = match form {
        AuxForm::SumK => (1.0, 1.0),
        AuxForm::DivK => (1.0 / k as f64, 1.0),
        AuxForm::Fastmoe => (1.0 / k as f64, 1.0 / k as f64),
    };
    let f_ge = counts(expert_gtk, e).to_kind(prob_gte.kind()) * (share / t as f64);
    let p_ge = prob_gte.mean_dim(1, false, None) * prob;
    (f_ge * p_ge).sum_dim_intlist(-1, false, None).mean(None) * e as f64
}

/// How many choices fell on each expert, `[g, t, k] -> [g, e]`.
fn counts(expert_gtk: &Tensor, experts: i64) -> Tensor {
    expert_gtk.flatten(1, 2).one_hot(experts).sum_dim_intlist(1, false, Kind::Int64)
}

/// Router z-loss, `mean_t (log sum_e exp l_te)^2`. ST-MoE (arXiv 2202.08906), eq. 5.
pub fn z_loss(logits_gte: &Tensor) -> Tensor {
    logits_gte.logsumexp(-1, false).square().mean(None)
}

/// `(std / mean)^2` over experts with the population deviation, averaged over groups. `[g, e]`.
pub fn cv_squared(x_ge: &Tensor) -> Tensor {
    let mean_g1 = x_ge.mean_dim(1, true, None);
    ((x_ge - &mean_g1) / mean_g1).square().mean(None)
}

/// Mean over tokens of the entropy of their gate distribution, divided by `ln E`; 0 if E = 1.
pub fn gate_entropy(gate_gte: &Tensor) -> Tensor {
    let (_, _, e) = axes3(gate_gte);
    let entropy_gt = -gate_gte.xlogy(gate_gte).sum_dim_intlist(-1, false, None);
    entropy_gt.mean(None) / (e.max(2) as f64).ln()
}
