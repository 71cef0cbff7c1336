//! S2MoE: every token and a noisy copy of it go through the same experts.
//!
//! *S2MoE: Robust Sparse Mixture of Experts via Stochastic Learning*, 2025, arXiv 2503.23007.
//!
//! ```text
//! x^  = (1 + s sd e1) x + s (mu + sd e2),  e1, e2 ~ N(0, 1);  mu, sd of the token's sequence    (1)
//! y_c = SMoE(x),  y_n = SMoE(x^);  softmax over the k chosen logits                          (2)
//! y   = g y_c + (1 - g) y_n,  g = sigmoid(w . x + b)                                         (3)
//! L_u = mean_t -ln softmax(cos(x_t, x^_.) / tau)_t                                 InfoNCE   (4)
//! L_b = E sum_e f_e P_e,  sum f = 1;  or KL(mean P || uniform)                               (5)
//! L   = L_task + alpha L_b + beta L_u;  inference: y = SMoE(x) with k' experts, nothing else  (6)
//! ```
//!
//! The numbers count the steps of the method; the paper's own equations were not available and its
//! authors released no code, so there is no `reference` preset. `third_party` re-uses the clean
//! routing and balances by KL; `third_party_norm` perturbs instance-normalised tokens instead of (1)
//! and has no InfoNCE. One re-implementation returns `g y_c` in evaluation: a bug, not copied. `tau`,
//! `alpha` and `beta` of the paper are unverified.
//!
//! It calls the experts twice, so it is no [`Router`](crate::Router) but a rule over a bank of
//! experts: a sparse layer hands [`layer`] its experts as a closure, adds the returned losses to its
//! objective, and calls [`infer`] at evaluation. [`mod@reference`] has the same rule on the host.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `q` sequences.

mod config;
mod layer;
#[cfg(test)]
mod parity;
pub mod reference;

pub use config::{Balance, Config, NceOn, Noise, StatsAxis};
pub use layer::{Layer, Params, Pass, infer, layer};

use crate::losses;
use moe_core::AuxForm;
use tch::{Kind, Tensor};

/// Floor of the norms of (4).
pub const NORM_FLOOR: f64 = 1e-12;

/// What (1) is given besides the tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Perturbation<'a> {
    /// Multiplicative draw, `[t, d]`; absent counts as zero unless both are absent.
    pub eps1_td: Option<&'a Tensor>,
    /// Additive draw, `[t, d]`. Without any draw the augmentation is off.
    pub eps2_td: Option<&'a Tensor>,
    /// Number of the sequence of each token, from 0, `[t]`, int64; `None` is one sequence.
    pub sequence_t: Option<&'a Tensor>,
    /// Scale after instance normalisation, `[d]`.
    pub in_weight_d: Option<&'a Tensor>,
    /// Shift after instance normalisation, `[d]`.
    pub in_bias_d: Option<&'a Tensor>,
}

/// A noisy copy and the statistics that made it, each `[t, d]`.
#[derive(Debug)]
pub struct Augmented {
    /// `x^`.
    pub x_td: Tensor,
    /// Mean of the token's sequence, or of the token (`features`).
    pub mean_td: Tensor,
    /// Standard deviation likewise; of the population for instance normalisation.
    pub std_td: Tensor,
}

/// Mean, variance and whether there is only one value to take them of; broadcast to `[t, d]`.
struct Moments {
    mean_td: Tensor,
    var_td: Tensor,
    single_t1: Tensor,
}

/// Over the tokens of each sequence; the sum of squares is divided by `n - ddof`.
fn over_tokens(x_td: &Tensor, sequence_t: Option<&Tensor>, ddof: f64) -> Moments {
    let member_tq = match sequence_t {
        Some(sequence_t) => {
            let sequences = sequence_t.max().int64_value(&[]) + 1;
            sequence_t.one_hot(sequences).to_kind(x_td.kind())
        }
        None => Tensor::ones([x_td.size()[0], 1], (x_td.kind(), x_td.device())),
    };
    let count_q1 = member_tq.sum_dim_intlist(0, false, None).unsqueeze(-1);
    let sum = |of_td: &Tensor| member_tq.tr().matmul(of_td);
    // A number that no token bears leaves an empty sequence, which nobody reads.
    let mean_td = member_tq.matmul(&(sum(x_td) / count_q1.clamp_min(1.0)));
    let squares_qd = sum(&(x_td - &mean_td).square());
    let var_td = member_tq.matmul(&(squares_qd / (&count_q1 - ddof).clamp_min(1.0)));
    let single_t1 = member_tq.matmul(&count_q1).le(1.0);
    Moments { mean_td, var_td, single_t1 }
}

/// Over the features of each token.
fn over_features(x_td: &Tensor, ddof: f64) -> Moments {
    let (t, d) = x_td.size2().expect("[t, d]");
    let mean_t1 = x_td.mean_dim(-1, true, None);
    let squares_t1 = (x_td - &mean_t1).square().sum_dim_intlist(-1, true, None);
    Moments {
        mean_td: mean_t1.expand_as(x_td),
        var_td: (squares_t1 / (d as f64 - ddof).max(1.0)).expand_as(x_td),
        single_t1: Tensor::full([t, 1], i64::from(d == 1), (Kind::Bool, x_td.device())),
    }
}

/// Square root whose gradient at 0 is 0 rather than infinite: constant features have no spread.
fn root(var_td: &Tensor) -> Tensor {
    let spread_td = var_td.gt(0.0);
    let safe_td = var_td.where_self(&spread_td, &var_td.ones_like());
    safe_td.sqrt() * spread_td.to_kind(var_td.kind())
}

/// (1): the noisy copy. A sequence of one token (or, over features, a token of one feature) has no
/// spread and stays as it is.
pub fn augment(config: &Config, x_td: &Tensor, given: &Perturbation<'_>) -> Augmented {
    let normed = config.noise == Noise::InstanceNorm;
    let ddof = if normed || !config.unbiased { 0.0 } else { 1.0 };
    let mut moments = match config.stats_axis {
        StatsAxis::Features if !normed => over_features(x_td, ddof),
        _ => over_tokens(x_td, given.sequence_t, ddof),
    };
    if config.detach_stats {
        moments.mean_td = moments.mean_td.detach();
        moments.var_td = moments.var_td.detach();
    }
    let std_td = root(&moments.var_td);
    let off = given.eps1_td.is_none() && given.eps2_td.is_none();
    let noisy_td = if off {
        x_td.shallow_clone()
    } else {
        let copy_td = match config.noise {
            Noise::Statistics => shaken(config, x_td, (&moments.mean_td, &std_td), given),
            Noise::InstanceNorm => normalised(config, x_td, &moments, given),
        };
        x_td.where_self(&moments.single_t1, &copy_td)
    };
    Augmented { x_td: noisy_td, mean_td: moments.mean_td, std_td }
}

/// (1) itself; an absent draw is zero.
fn shaken(
    config: &Config,
    x_td: &Tensor,
    (mean_td, std_td): (&Tensor, &Tensor),
    given: &Perturbation<'_>,
) -> Tensor {
    let scaled =
        |eps_td: Option<&Tensor>| eps_td.map_or(x_td.zeros_like(), |eps_td| std_td * eps_td);
    let (n1_td, n2_td) = (scaled(given.eps1_td), mean_td + scaled(given.eps2_td));
    x_td + (n1_td * x_td + n2_td) * config.noise_scale
}

/// `(1 + scale_mul e1) IN(x) + scale_add e2`.
fn normalised(
    config: &Config,
    x_td: &Tensor,
    moments: &Moments,
    given: &Perturbation<'_>,
) -> Tensor {
    let mut in_td = (x_td - &moments.mean_td) / (&moments.var_td + config.in_eps).sqrt();
    in_td = given.in_weight_d.map_or(in_td.shallow_clone(), |weight_d| &in_td * weight_d);
    in_td = given.in_bias_d.map_or(in_td.shallow_clone(), |bias_d| &in_td + bias_d);
    let scaled = |eps_td: Option<&Tensor>, scale: f64| {
        eps_td.map_or(x_td.zeros_like(), |eps_td| eps_td * scale)
    };
    &in_td
        + scaled(given.eps1_td, config.scale_mul) * &in_td
        + scaled(given.eps2_td, config.scale_add)
}

/// (4) per token, `[t, d] x [t, d] -> [t]`: how far row `t` of `a` is from telling row `t` of `b`
/// among all rows; `symmetric` averages both directions. Zero for one token.
pub fn info_nce(a_td: &Tensor, b_td: &Tensor, tau: f64, symmetric: bool) -> Tensor {
    let unit = |x_td: &Tensor| {
        let norm_t1 = x_td.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
        x_td / norm_t1.clamp_min(NORM_FLOOR)
    };
    let logits_tt = unit(a_td).matmul(&unit(b_td).tr()) / tau;
    let own_t = logits_tt.diagonal(0, 0, 1);
    let forth_t = logits_tt.logsumexp(1, false) - &own_t;
    if !symmetric {
        return forth_t;
    }
    (forth_t + logits_tt.logsumexp(0, false) - own_t) * 0.5
}

/// (5) of the clean routing, a scalar; `kl` does not read the choices.
pub fn balance(form: Balance, logits_te: &Tensor, expert_tk: Option<&Tensor>) -> Tensor {
    let prob_te = logits_te.softmax(-1, logits_te.kind());
    match (form, expert_tk) {
        (Balance::Switch, Some(expert_tk)) => {
            let (prob_gte, expert_gtk) = (prob_te.unsqueeze(0), expert_tk.unsqueeze(0));
            losses::load_balance(&prob_gte, &expert_gtk, AuxForm::DivK)
        }
        (Balance::Switch, None) => panic!("the switch form counts choices, but there are none"),
        (Balance::Kl, _) => {
            let mean_e = prob_te.mean_dim(0, false, None);
            mean_e.xlogy(&(&mean_e * logits_te.size()[1] as f64)).sum(None)
        }
    }
}

/// Share of a model's operations that inference saves by going from `k_train` to `k_infer` experts:
/// `(k - k') F_e / (F_other + k F_e)`.
pub fn inference_saving(
    (k_train, k_infer): (usize, usize),
    flops_expert: f64,
    flops_other: f64,
) -> f64 {
    let (k, fewer) = (k_train as f64, k_train as f64 - k_infer as f64);
    fewer * flops_expert / (flops_other + k * flops_expert)
}
