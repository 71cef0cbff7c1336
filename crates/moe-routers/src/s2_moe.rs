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
//! and has no InfoNCE. One re-implementation returns `g y_c` in evaluation: a bug, not copied.
//!
//! It calls the experts twice in training, so the router writes its own
//! [`layer`](crate::Router::layer). A group is one sequence. [`mod@reference`] has the same rule on
//! the host.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `k` choices.

mod augment;
mod config;
pub mod reference;
mod router;
#[cfg(test)]
mod tests;

pub use augment::{Augmented, Perturbation, augment};
pub use config::{Balance, Config, NceOn, Noise, StatsAxis};
pub use router::{Passes, S2Moe};

use crate::config::{Preset, resolve};
use crate::losses;
use crate::router::{Method, Paper, axes3};
use moe_core::AuxForm;
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "s2-moe",
    title: "S2MoE: Robust Sparse Mixture of Experts via Stochastic Learning",
    authors: "Do et al. 2025",
    arxiv: "2503.23007",
    idea: "In training every token and a noisy copy of it go through the same experts, and a learned gate blends the two outputs.\n\
        Experts that are chosen together, and routing in few dimensions, push experts towards the same features.\n\
        The copy is made of Gaussian noise with the mean and deviation of the sequence.\n\
        An InfoNCE loss keeps each copy close to its own token and apart from the others.\n\
        Inference is one pass with fewer experts: no noise, no copy, no gate.",
    state: "parameters: router W [e, d] and its bias [e] (setting `bias`), blend gate [1, d] and its bias [1]",
    cost: "in training 2 k expert calls (k = `top_k`), W x for token and copy (once without `reroute`), 2 d normal draws and t d multiply-adds of the InfoNCE loss for a sequence of t tokens; at inference `top_k_infer` expert calls",
    equations: &[
        ("(1)", "augment"),
        ("(2)-(3)", "S2Moe::passes"),
        ("(4)", "info_nce"),
        ("(5)", "balance"),
        ("(6)", "S2Moe::layer"),
    ],
    deviations: &[
        "the authors released no code: `paper` follows a description of the method, `third_party` and `third_party_norm` two re-implementations by others, so there is no `reference` preset",
        "equal computation is counted in training, 2 top_k experts per token; inference visits top_k_infer, 1 of 4 in every preset, and so spends a quarter of what a comparison grants",
        "InfoNCE (4) and the balance loss (5) range over one sequence and are averaged over sequences, since groups never see each other; the re-implementation ranges over the whole batch",
        "a capacity (none of its own) binds both passes; logged loads and dropped tokens are those of the clean pass",
        "training takes mean and deviation over the whole sequence, later tokens included; evaluation has no copy and is causal",
        "instance normalisation has no affine; `third_party_norm` starts the blend gate with a bias of 5",
    ],
    unverified: &[
        "the paper's own equations, and whether its statistics run over tokens or features (`stats_axis`)",
        "tau, alpha and beta; an earlier InfoNCE of the first author uses tau 0.1",
        "top_k 2 in training: the 28 % that the abstract saves at inference fit a step from 2 experts to 1",
        "the router's bias, taken from a sister project of the authors, and the initial blend gate",
    ],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Floor of the norms of (4).
pub const NORM_FLOOR: f64 = 1e-12;

/// Below every probability that matters to (5), above the smallest `f32`: keeps the logarithm's
/// slope finite where a probability underflows.
const PROB_FLOOR: f64 = 1e-37;

/// (4) per token, `[g, t, d] x [g, t, d] -> [g, t]`: how far row `t` of `a` is from telling row `t`
/// of `b` among all rows of its group; `symmetric` averages both directions. Zero for one token.
/// Padding (`padding_gt`, `[g, t]`, bool) is no negative of other tokens; its own value means nothing.
pub fn info_nce(
    (a_gtd, b_gtd): (&Tensor, &Tensor),
    (tau, symmetric): (f64, bool),
    padding_gt: Option<&Tensor>,
) -> Tensor {
    let unit = |x_gtd: &Tensor| {
        let norm_gt1 = x_gtd.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
        x_gtd / norm_gt1.clamp_min(NORM_FLOOR)
    };
    let logits_gtt = unit(a_gtd).matmul(&unit(b_gtd).transpose(1, 2)) / tau;
    let forth_gt = miss(&logits_gtt, padding_gt);
    if !symmetric {
        return forth_gt;
    }
    (forth_gt + miss(&logits_gtt.transpose(1, 2), padding_gt)) * 0.5
}

/// `-ln softmax` of the diagonal, along the last axis. `[g, t, t] -> [g, t]`.
fn miss(logits_gtt: &Tensor, padding_gt: Option<&Tensor>) -> Tensor {
    let own_gt = logits_gtt.diagonal(0, 1, 2);
    let Some(padding_gt) = padding_gt else { return logits_gtt.logsumexp(-1, false) - own_gt };
    // A padded row keeps its columns, so that even a group of nothing else stays finite.
    let barred_gtt = padding_gt.unsqueeze(1).logical_and(&padding_gt.logical_not().unsqueeze(2));
    logits_gtt.masked_fill(&barred_gtt, f64::NEG_INFINITY).logsumexp(-1, false) - own_gt
}

/// (5) of the clean routing, a scalar; `kl` does not read the choices, `[g, t, k]`. Padding
/// (`padding_gt`, `[g, t]`, bool) leaves the means.
///
/// # Panics
/// If `switch` has no choices to count.
pub fn balance(
    form: Balance,
    logits_gte: &Tensor,
    expert_gtk: Option<&Tensor>,
    padding_gt: Option<&Tensor>,
) -> Tensor {
    let prob_gte = logits_gte.softmax(-1, logits_gte.kind());
    match form {
        Balance::Switch => {
            let expert_gtk = expert_gtk.expect("the switch form counts choices");
            losses::load_balance_of_valid(&prob_gte, expert_gtk, AuxForm::DivK, padding_gt).loss
        }
        Balance::Kl => {
            let (_, _, e) = axes3(logits_gte);
            let mean_ge = losses::mean_of_valid(&prob_gte, padding_gt);
            let log_ge = (&mean_ge.clamp_min(PROB_FLOOR) * e as f64).log();
            (mean_ge * log_ge).sum_dim_intlist(-1, false, None).mean(None)
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
