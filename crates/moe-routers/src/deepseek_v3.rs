//! DeepSeek-V3: sigmoid scores, a choice limited to groups of experts, balance by a bias that no
//! gradient reaches.
//!
//! *DeepSeek-V3 Technical Report*, DeepSeek-AI, 2024, arXiv 2412.19437.
//!
//! ```text
//! s = sigmoid(W x)                                                                       (1)
//! choice goes by s + b; experts stand in n_groups equal groups, a group counts the sum of
//! its two largest s + b; the topk_groups best groups stay, top-k of s + b inside them    (2)
//! g_e = scale * s_e / sum over the chosen of s                    the bias has no part   (3)
//! after a step:  b_e += gamma sign(mean load - load_e),  sign(0) = 0                     (4)
//! L = alpha sum_e f_e P_e,  f_e = count_e E/(k T),  P_e = mean_t s_te / sum_j s_tj       (5)
//! ```
//!
//! (5) is taken per sequence and averaged over sequences. Numbers in brackets count the steps of the
//! method. A shared expert, always added with weight 1, belongs to the layer and not to the router.

mod config;
mod reference;

pub use config::{Config, FSource, Score};
pub use reference::{
    SelectionHost, SequenceBalanceHost, select_host, sequence_balance_host, updated_bias_host,
};

use crate::config::{Preset, resolve};
use crate::convert::{to_host, to_host1};
use crate::losses;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Reference, RouteError};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "deepseek-v3",
    title: "DeepSeek-V3 Technical Report",
    authors: "DeepSeek-AI 2024",
    arxiv: "2412.19437",
    idea: "Each expert has a bias that only the choice sees, moved after every step towards equal loads.\n\
        A balance loss strong enough to balance disturbs the task.\n\
        The bias goes a little up where the expert had too few tokens and down where it had too many.\n\
        Loads even out without a gradient; a very small loss per sequence guards against extremes.",
    state: "parameters: router W [e, d]; buffer: bias [e], moved after every step",
    cost: "k expert calls; e sigmoids and a selection of k, with groups of experts one more selection among the groups",
    equations: &[("(1)-(3)", "select"), ("(4)", "updated_bias"), ("(5)", "sequence_balance")],
    deviations: &[
        "preset `paper` is the full size (256 experts in 8 groups, k = 8, scale 2.5); `plain` has one group and scale 1; `small` is `plain` with k = 2, for models of few experts",
        "without a bias tensor a group counts its maximum, and (4) starts from 0: the inference code",
        "sums that divide are floored at 1e-20, where every sigmoid underflows; the inference code would give NaN",
        "the sequence of (5) is `sequence_length` tokens, else the routing group",
        "gamma goes to 0 for the last 0.5T tokens in the paper: a recipe's business",
        "the shared expert is not part of the router",
    ],
    unverified: &[
        "that (5) counts the top-k of the unbiased scores (`f_source` unbiased) and not the choice (`selected`)",
    ],
    presets: Config::PRESETS,
    compared: &["small"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Floor of sums that divide.
pub(crate) const FLOOR: f64 = 1e-20;

/// The trainable router.
#[derive(Debug)]
struct DeepSeekV3 {
    gate_ed: Tensor,
    /// `[e]`, a buffer.
    bias_e: Option<Tensor>,
    config: Config,
}

/// (1)-(3).
#[derive(Debug)]
pub struct Selection {
    /// Unbiased scores, `[g, t, e]`.
    pub score_gte: Tensor,
    /// What each group of experts counts, `[g, t, n_groups]`.
    pub group_score: Tensor,
    /// The groups that stay, best first, `[g, t, topk_groups]`.
    pub groups: Tensor,
    /// Experts and weights.
    pub choices: ChoicesGtk,
}

/// (1)-(3), from logits `[g, t, e]`.
pub fn select(config: &Config, logits_gte: &Tensor, bias_e: Option<&Tensor>) -> Selection {
    let kind = logits_gte.kind();
    let score_gte = match config.score {
        Score::Sigmoid => logits_gte.sigmoid(),
        Score::Softmax => logits_gte.softmax(-1, kind),
    };
    let biased_gte = match bias_e {
        Some(bias_e) => score_gte.detach() + bias_e.detach(),
        None => score_gte.detach(),
    };
    let group_score = group_scores(config, &biased_gte, bias_e.is_some());
    let groups = ChoicesGtk::top_k(&group_score, config.topk_groups as i64).expert_gtk;
    let expert_gtk = choose_within(config, &biased_gte, &groups);
    let mut gate_gtk = score_gte.gather(-1, &expert_gtk, false); // (3)
    if config.normalizes() {
        gate_gtk = &gate_gtk / gate_gtk.sum_dim_intlist(-1, true, None::<Kind>).clamp_min(FLOOR);
    }
    let choices = ChoicesGtk::new(expert_gtk, gate_gtk * config.route_scale);
    Selection { score_gte, group_score, groups, choices }
}

/// What each group counts, `[g, t, e] -> [g, t, n_groups]`: the sum of its largest, or, for a gate
/// without a bias tensor, its maximum.
fn group_scores(config: &Config, biased_gte: &Tensor, has_bias: bool) -> Tensor {
    let (g, t, e) = axes3(biased_gte);
    let size = e / config.n_groups as i64;
    let of_group = biased_gte.view([g, t, -1, size]);
    let terms = if has_bias { (config.group_score_k as i64).min(size) } else { 1 };
    of_group.topk(terms, -1, true, true).0.sum_dim_intlist(-1, false, None::<Kind>)
}

/// (2): top-k of the biased scores inside the groups that stay.
fn choose_within(config: &Config, biased_gte: &Tensor, groups: &Tensor) -> Tensor {
    let (g, t, e) = axes3(biased_gte);
    let n = config.n_groups as i64;
    let shut = Tensor::ones([g, t, n], (Kind::Bool, biased_gte.device()));
    let shut = shut.scatter_value(-1, groups, 0).unsqueeze(-1).expand([g, t, n, e / n], false);
    let open_gte = biased_gte.masked_fill(&shut.reshape([g, t, e]), f64::NEG_INFINITY);
    ChoicesGtk::top_k(&open_gte, config.top_k as i64).expert_gtk
}

/// (5) and its parts.
#[derive(Debug)]
pub struct SequenceBalance {
    /// `f`, `[sequences, e]`.
    pub fraction: Tensor,
    /// `P`, `[sequences, e]`.
    pub mean_prob: Tensor,
    /// Unweighted, the mean over sequences, a scalar with its graph.
    pub value: Tensor,
}

/// (5).
///
/// # Errors
/// If `sequence_length` does not divide the tokens.
pub fn sequence_balance(
    config: &Config,
    selection: &Selection,
) -> Result<SequenceBalance, RouteError> {
    let (_, t, e) = axes3(&selection.score_gte);
    let (length, k) = (config.sequence(t as usize)? as i64, config.top_k as i64);
    let expert_gtk = match config.f_source {
        FSource::Unbiased => ChoicesGtk::top_k(&selection.score_gte, k).expert_gtk,
        FSource::Selected => selection.choices.expert_gtk.shallow_clone(),
    };
    let score_gte = &selection.score_gte;
    let count = losses::counts(&expert_gtk.reshape([-1, length, k]), (e, score_gte.kind()), None);
    let sum_gt1 = score_gte.sum_dim_intlist(-1, true, None::<Kind>).clamp_min(FLOOR);
    let share = (score_gte / sum_gt1).reshape([-1, length, e]);
    let fraction = count * (e as f64 / (k * length) as f64);
    let mean_prob = share.mean_dim(1, false, None::<Kind>);
    let value = (&fraction * &mean_prob).sum_dim_intlist(-1, false, None::<Kind>);
    Ok(SequenceBalance { fraction, mean_prob, value: value.mean(None::<Kind>) })
}

/// (4): the bias after a step whose loads were `load_e`.
pub fn updated_bias(config: &Config, bias_e: &Tensor, load_e: &Tensor) -> Tensor {
    let load_e = load_e.to_kind(bias_e.kind());
    bias_e + (load_e.mean(None::<Kind>) - load_e).sign() * config.gamma
}

impl Router for DeepSeekV3 {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (_, t, e) = axes3(&logits_gte);
        let selection = select(&self.config, &logits_gte, self.bias_e.as_ref());
        let value = sequence_balance(&self.config, &selection)?.value;
        let sum_gt1 = selection.score_gte.sum_dim_intlist(-1, true, None::<Kind>);
        let gate_gte = (&selection.score_gte / sum_gt1.clamp_min(FLOOR)).detach();
        let room = room(cx.capacity, None, (t as usize, e as usize, self.config.top_k))?;
        let chosen = Chosen { choices: selection.choices, experts: e, room };
        Ok(chosen.routing(
            logits_gte,
            gate_gte,
            vec![Aux { name: "balance", weight: self.config.alpha, value }],
        ))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(reference::Host {
            gate_ed: to_host(&self.gate_ed),
            bias_e: self.bias_e.as_ref().map(to_host1),
            config: self.config.clone(),
        })
    }

    fn after_step(&mut self, load_e: &Tensor) {
        if let Some(bias_e) = &mut self.bias_e {
            let next_e = updated_bias(&self.config, bias_e, load_e);
            tch::no_grad(|| bias_e.copy_(&next_e));
        }
    }
}
