//! USMoE: token choice and expert choice as one competition.
//!
//! *Sparse Mixture of Experts as Unified Competitive Learning*, Do, Le, Tran, 2025,
//! arXiv 2503.22996.
//!
//! ```text
//! z     = x W^T                                     no bias                             (1)
//! f_t   = softmax_E(z),  f_e = 2 sigmoid(z) / E     token side, expert side             (2)
//! s     = (1 - alpha) f_t + alpha f_e               alpha = 1 is the expert side        (3)
//! A     = the c = k S largest of all S E scores of a group, token-major                 (4)
//! w_te  = s_te for (t, e) in A                      norm_topk_prob: over sum of all s_t (5)
//! y_t   = sum over e in A_t of w_te f_e(x_t)        none to E experts per token         (6)
//! ```
//!
//! Numbers in brackets count the steps of the method. The shared experts of the plug-in models
//! (step 7) are [`Shared`]; the two choices that it unifies are [`token_choice`] and
//! [`expert_choice`].
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `n` routed rows.

mod config;
mod contest;
mod shared;

pub use config::{Config, Group, Rounding};
pub use contest::{
    Crowd, TensorCrowd, expert_choice, expert_choice_host, select, select_host, select_in_groups,
    token_choice, token_choice_host,
};
pub use shared::Shared;

use crate::config::{Preset, resolve};
use crate::convert::to_host;
use crate::plan::{SparseRows, TensorPlan};
use crate::router::{Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{HostInput, HostRouting, Plan, PlanError, Reference, RouteError, SparsePlan, score};
use ndarray::{Array2, ArrayView2, Axis};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "us-moe",
    title: "Sparse Mixture of Experts as Unified Competitive Learning",
    authors: "Do et al. 2025",
    arxiv: "2503.22996",
    idea: "All pairs of token and expert of a group compete by one score; the best k per token on average win.\n\
        Token choice spends k experts even on an irrelevant token; expert choice drops tokens that matter.\n\
        The score blends a token-side softmax and an expert-side sigmoid.\n\
        Some tokens get many experts, some none: computation goes where scores are highest, within a fixed budget.\n\
        There is no balance loss.",
    state: "parameters: router W [e, d]",
    cost: "k expert calls on average, k may be a fraction; e sigmoids, a softmax over e and one selection among the t e pairs of a group",
    equations: &[
        ("(2)-(3)", "scores"),
        ("(4)", "contest::select_in_groups"),
        ("(5)", "weights"),
        ("(6)", "TensorPlan::apply"),
        ("(7)", "shared::Shared"),
    ],
    deviations: &[
        "the expert side is 2 sigmoid(z) / E, point by point, in the place of a softmax over tokens; the choice among a whole group still depends on later tokens: only `group = \"token\"` is causal",
        "the released Transformer-XL code lets the samples of one time step compete across the batch; here groups are apart, so that this is `select` with groups of your own, not a router setting",
        "the release wants whole k (preset `reference`); the paper's fractional k (preset `paper`) is rounded per group by `rounding`",
        "the release computes the softmax in f32; here everything is in the working type",
        "padded tokens take no part and do not count in the budget; the release lets them compete",
        "`plain` shared experts (DeepSeek's plug-in) ignore `norm_topk_prob`, as in the release",
    ],
    unverified: &[
        "the rounding of k S for fractional k",
        "fractional k, vision models and attacks: in the paper, not in the release",
    ],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// (2)-(3), of logits `[.., e]`.
pub fn scores(alpha: f64, logits: &Tensor) -> Tensor {
    let experts = logits.size().last().copied().unwrap_or(1) as f64;
    let token_side = logits.softmax(-1, logits.kind());
    let expert_side = logits.sigmoid() * (2.0 / experts);
    token_side * (1.0 - alpha) + expert_side * alpha
}

/// (2)-(3) on the host, `[t, e]`.
pub fn scores_host(alpha: f64, logits_te: ArrayView2<'_, f64>) -> Array2<f64> {
    let experts = logits_te.ncols() as f64;
    let token_side_te = score::softmax(logits_te);
    let expert_side_te = logits_te.mapv(|z| 2.0 * score::sigmoid(z) / experts);
    token_side_te * (1.0 - alpha) + expert_side_te * alpha
}

/// (5), before the choice; the normaliser is of all experts, the unselected ones too.
fn weights(config: &Config, score_te: &Tensor) -> Tensor {
    if config.norm_topk_prob {
        score_te / score_te.sum_dim_intlist(-1, true, None)
    } else {
        score_te.shallow_clone()
    }
}

/// (5) and the rows of (6): the plan of the selected pairs, `[t, e]`, of `groups` equal groups.
pub fn plan(config: &Config, score_te: &Tensor, mask_te: &Tensor, groups: i64) -> TensorPlan {
    let weight_te = weights(config, score_te);
    let mask_et = mask_te.tr().contiguous();
    TensorPlan::Sparse(SparseRows {
        // Both go row by row through `[e, t]`: by expert, then by token.
        token_n: mask_et.nonzero().select(1, 1).contiguous(),
        weight_n: weight_te.tr().masked_select(&mask_et),
        load_e: mask_et.sum_dim_intlist(1, false, Kind::Int64),
        groups,
        tokens: mask_te.size()[0] / groups,
    })
}

/// The same for one group on the host.
///
/// # Errors
/// A score that is not finite.
pub fn plan_host(
    config: &Config,
    score_te: ArrayView2<'_, f64>,
    mask_te: ArrayView2<'_, bool>,
) -> Result<Plan, PlanError> {
    let sum_t = score_te.sum_axis(Axis(1));
    let weight =
        |t: usize, e: usize| score_te[[t, e]] / if config.norm_topk_prob { sum_t[t] } else { 1.0 };
    let rows = |e: usize| -> Vec<(usize, f64)> {
        (0..score_te.nrows()).filter(|&t| mask_te[[t, e]]).map(|t| (t, weight(t, e))).collect()
    };
    let lists: Vec<_> = (0..score_te.ncols()).map(rows).collect();
    SparsePlan::from_lists(score_te.nrows(), &lists).map(Plan::Sparse)
}

/// The trainable router.
#[derive(Debug)]
struct UsMoe {
    gate_ed: Tensor,
    config: Config,
}

impl Router for UsMoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>); // (1)
        let (g, _, _) = axes3(&logits_gte);
        let score_gte = scores(self.config.alpha, &logits_gte);
        let score_te = score_gte.flatten(0, 1);
        let mask_te = select_in_groups(&self.config, &score_gte, cx.padding_gt).flatten(0, 1);
        let sum_gt1 = score_gte.detach().sum_dim_intlist(-1, true, None);
        Ok(Routing {
            plan: plan(&self.config, &score_te, &mask_te, g),
            chosen: None,
            logits_gte,
            gate_gte: score_gte.detach() / sum_gt1,
            aux: Vec::new(),
        })
    }

    fn takes_padding(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host { gate_ed: to_host(&self.gate_ed), config: self.config.clone() })
    }
}

struct Host {
    gate_ed: Array2<f64>,
    config: Config,
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t()); // (1)
        let score_te = scores_host(self.config.alpha, logits_te.view());
        let crowd = Crowd::one(self.config.group, logits_te.nrows(), input.padding_t);
        let (mask_te, _) = select_host(&self.config, score_te.view(), &crowd);
        let plan = plan_host(&self.config, score_te.view(), mask_te.view())?;
        let gate_te = &score_te / &score_te.sum_axis(Axis(1)).insert_axis(Axis(1));
        Ok(HostRouting { plan, chosen: None, logits_te, gate_te, aux: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ParamStore, Phase, SeededNoise};
    use ndarray::array;
    use tch::Device;

    fn routed(config: Config, logits_te: &Array2<f64>) -> Array2<f64> {
        let host = Host { gate_ed: Array2::eye(logits_te.ncols()), config };
        let Plan::Sparse(plan) = host.route(&HostInput::new(logits_te.view())).unwrap().plan else {
            panic!("sparse")
        };
        plan.combine_te()
    }

    /// alpha = 0, k = 1, two tokens: scores (1/3, 1/3, 1/3) and (a, a, b) with
    /// `a = e^2 / (2 e^2 + e^-2) = 0.4977`. Both places go to token 1, where token choice would
    /// give one to each. Normalised by the row sum, which is 1, nothing changes.
    #[test]
    fn a_token_may_get_nothing() {
        let logits_te = array![[0.0, 0.0, 0.0], [2.0, 2.0, -2.0]];
        let a = 2f64.exp() / (2.0 * 2f64.exp() + (-2f64).exp());
        for norm_topk_prob in [false, true] {
            let paper = Config::preset("paper");
            let config = Config { top_k: 1.0, alpha: 0.0, norm_topk_prob, ..paper };
            let combine_te = routed(config, &logits_te);
            let want_te = array![[0.0, 0.0, 0.0], [a, a, 0.0]];
            assert!((combine_te - want_te).iter().all(|v| v.abs() < 1e-12));
        }
    }

    /// alpha = 1, E = 2: scores are sigmoid(z); z = ((2, 0), (0, -2)) ties at 1/2 between (0, 1) and
    /// (1, 0), and the lower flat index wins. Normalised: over sigmoid(2) + 1/2.
    #[test]
    fn ties_go_to_the_earlier_token() {
        let logits_te = array![[2.0, 0.0], [0.0, -2.0]];
        let high = score::sigmoid(2.0);
        for (norm_topk_prob, sum) in [(false, 1.0), (true, high + 0.5)] {
            let paper = Config::preset("paper");
            let config = Config { top_k: 1.0, alpha: 1.0, norm_topk_prob, ..paper };
            let want_te = array![[high / sum, 0.5 / sum], [0.0, 0.0]];
            assert!((routed(config, &logits_te) - want_te).iter().all(|v| v.abs() < 1e-12));
        }
    }

    /// Padded tokens and tokens that compete alone, which the suite does not visit: the trainable
    /// form selects the pairs of its reference.
    #[test]
    fn padding_and_lone_tokens_as_in_the_reference() {
        let store = ParamStore::new(3, Device::Cpu, Kind::Double);
        let gate_ed = store.root().matrix("gate", &[4, 5], 1.0);
        let x_gtd = store.root().matrix("x", &[2 * 3, 5], 1.0).view([2, 3, 5]);
        let padding_gt = [[false, true, false], [false, false, true]];
        let flags = Tensor::from_slice(&padding_gt.concat()).view([2, 3]);
        let noise = SeededNoise::train(0, 0);
        let cx = RouteCx { padding_gt: Some(&flags), ..RouteCx::new(Phase::Eval, &noise) };
        for group in [Group::All, Group::Token] {
            let config = Config { group, ..Config::preset("paper") };
            let router = UsMoe { gate_ed: gate_ed.shallow_clone(), config };
            let plans = router.route(&x_gtd, &cx).unwrap().plan.to_host().unwrap();
            for (g, (got, padding_t)) in plans.iter().zip(&padding_gt).enumerate() {
                let x_td = to_host(&x_gtd.get(g as i64));
                let input = HostInput::new(x_td.view()).padding(Some(padding_t));
                let want = router.reference().route(&input).unwrap().plan;
                let (Plan::Sparse(got), Plan::Sparse(want)) = (got, &want) else {
                    panic!("sparse")
                };
                assert_eq!(got.mask_te(), want.mask_te(), "{group:?}");
                assert_eq!(want.mask_te().sum(), 4.0, "two tokens of a group, k = 2");
            }
        }
    }
}
