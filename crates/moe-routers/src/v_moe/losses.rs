//! V-MoE's auxiliary losses, (8) and (A.2), and the GShard loss of the release, on both sides.
//!
//! Importance is of the clean logits; load and the GShard loss are of the noisy ones. Every loss is
//! computed per group and averaged over groups.
//!
//! Axis letters: `g` groups, `t` tokens, `e` experts.

use super::Config;
use crate::losses;
use crate::plan::ChoicesGtk;
use moe_core::{AuxForm, Choices, balance, score};
use ndarray::{Array1, ArrayView2, Axis};
use tch::Tensor;

/// The losses of all groups, with their graph.
#[derive(Debug)]
pub struct Losses {
    /// Gates without noise, summed over the tokens, `[g, e]`.
    pub importance_ge: Tensor,
    /// Tokens that each expert expects, `[g, e]`; `None` without noise.
    pub load_ge: Option<Tensor>,
    /// (8), a scalar.
    pub importance: Tensor,
    /// (A.2), a scalar; `None` without noise, where it is undefined.
    pub load: Option<Tensor>,
}

/// `E sum_e f_e P_e` of the noisy probabilities, `[g, t, e]`, a scalar. Whatever k is, the shares count
/// each token's largest.
pub fn gshard(prob_gte: &Tensor) -> Tensor {
    let first_gt1 = ChoicesGtk::top_k(prob_gte, 1).expert_gtk;
    losses::load_balance(prob_gte, &first_gt1, AuxForm::SumK)
}

impl Losses {
    /// Of clean logits, and of the noisy ones if there is noise; both `[g, t, e]`.
    pub fn of(config: &Config, clean_gte: &Tensor, noisy_gte: Option<&Tensor>) -> Self {
        let prob_gte = clean_gte.softmax(-1, clean_gte.kind());
        let importance_ge = prob_gte.sum_dim_intlist(1, false, None);
        let load_ge = noisy_gte.map(|noisy_gte| expected_load(config, clean_gte, noisy_gte));
        Self {
            importance: losses::cv_squared(&importance_ge),
            load: load_ge.as_ref().map(losses::cv_squared),
            importance_ge,
            load_ge,
        }
    }

    /// The weighted sum with this [`gshard`] loss, a scalar.
    pub fn total(&self, config: &Config, gshard: &Tensor) -> Tensor {
        let total = &self.importance * config.importance_weight + gshard * config.gshard_weight;
        self.load.iter().fold(total, |total, load| total + load * config.load_weight)
    }
}

/// (A.2) before its variation, `[g, e]`. The gradient also flows through the threshold, to the clean
/// logit that sets it.
fn expected_load(config: &Config, clean_gte: &Tensor, noisy_gte: &Tensor) -> Tensor {
    let (k, std) = (config.top_k as i64, config.noise_scale(clean_gte.size()[2] as usize));
    let eta_gt1 = ChoicesGtk::top_k(noisy_gte, k).gate_gtk.narrow(-1, k - 1, 1);
    let p_gte: Tensor = 1.0 - ((eta_gt1 - clean_gte) / std).special_ndtr();
    p_gte.sum_dim_intlist(1, false, None)
}

/// The losses of one group, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostLosses {
    /// Gates without noise, summed over the tokens, `[e]`.
    pub importance_e: Array1<f64>,
    /// Tokens that each expert expects, `[e]`; `None` without noise.
    pub load_e: Option<Array1<f64>>,
    /// (8).
    pub importance: f64,
    /// (A.2); `None` without noise.
    pub load: Option<f64>,
    /// `E sum_e f_e P_e` of the noisy probabilities and first choices.
    pub gshard: f64,
}

impl HostLosses {
    /// Of clean logits, and of the noisy ones if there is noise; both `[t, e]`.
    pub fn of(
        config: &Config,
        clean_te: ArrayView2<'_, f64>,
        noisy_te: Option<ArrayView2<'_, f64>>,
    ) -> Self {
        let std = config.noise_scale(clean_te.ncols());
        let clean_prob_te = score::softmax(clean_te);
        let load_e =
            noisy_te.map(|noisy_te| balance::expected_load(clean_te, noisy_te, std, config.top_k));
        let prob_te = score::softmax(noisy_te.unwrap_or(clean_te));
        let first_t1 = Choices::top_k(prob_te.view(), 1).expert_tk;
        Self {
            importance: balance::importance(clean_prob_te.view()), // (8)
            load: load_e.as_ref().map(|load_e| balance::cv_squared(load_e.view())), // (A.2)
            gshard: balance::load_balance(prob_te.view(), first_t1.view(), AuxForm::SumK),
            importance_e: clean_prob_te.sum_axis(Axis(0)),
            load_e,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use ndarray::array;

    /// Two experts, sigma = 1/2, k = 1; logits (0, 0) with noise that makes them (1, 0).
    /// Importance (1/2, 1/2): loss 0. Threshold 1, so both loads are `1 - Phi(1 / 0.5) = Phi(-2)`:
    /// loss 0. GShard: first choice 0, so `2 sigmoid(1)`.
    #[test]
    fn by_hand() {
        let config = Config { top_k: 1, ..Config::preset("paper") };
        let noisy_te = array![[1.0, 0.0]];
        let got = HostLosses::of(&config, array![[0.0, 0.0]].view(), Some(noisy_te.view()));
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got}, {want}");
        got.importance_e.iter().for_each(|v| near(*v, 0.5));
        got.load_e.iter().flatten().for_each(|v| near(*v, score::normal_cdf(-2.0)));
        near(got.importance, 0.0);
        near(got.load.unwrap(), 0.0);
        near(got.gshard, 2.0 * score::sigmoid(1.0));
    }
}
