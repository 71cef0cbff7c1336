//! GShard routing: two experts per token.
//!
//! *GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding*, Lepikhin, Lee,
//! Xu et al., 2020, arXiv 2006.16668. GLaM (Du et al., 2021, arXiv 2112.06905) routes by the same rule.
//!
//! ```text
//! r  = softmax(W x)                                                                (1)
//! i1 = argmax r,  i2 = argmax of the others         (or of l + Gumbel noise)       (2)
//! g  = (r1, r2) / (r1 + r2 + 1e-9)                  before or after dropping       (3)
//! i2 queues iff g2 > threshold u,  u ~ U(0, 1)      training only                  (4)
//! C  = ceil(2 T / E);  all first choices queue before all second ones              (5)
//! L_bal = E sum_e f_e P_e                           f of first choices, before (5) (6)
//! ```
//!
//! Numbers in brackets count the steps of the paper's Algorithm 1.

mod reference;

use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_weight, resolve, to_settings,
};
use crate::convert::to_host;
use crate::losses;
use crate::params::Params;
use crate::plan::{ChoicesGtk, TensorPlan};
use crate::router::{Aux, Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{AuxForm, CapacityPolicy, CapacityRule, DropOrder, Limit, Reference, RouteError};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "gshard",
    title: "GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding",
    authors: "Lepikhin et al. 2020",
    arxiv: "2006.16668",
    idea: "Two experts per token, limited room per expert, and second choices that queue by chance.\n\
        An expert that gets far more tokens than the others holds all of them up.\n\
        All first choices queue before all second ones; the two weights sum to one.\n\
        A second choice of little weight queues rarely, which saves room for those that matter.",
    state: "parameters: router W [e, d]",
    cost: "at most two expert calls; a softmax over e, in training one uniform draw",
    equations: &[
        ("(1)-(2)", "GShard::experts"),
        ("(3)-(4)", "GShard::choose"),
        ("(5)", "Config::policy"),
        ("(6)", "losses::load_balance_of_valid"),
    ],
    deviations: &[
        "preset `lingvo` normalises after dropping and queues every second choice, as lingvo's newer path does; its older path and Mesh TensorFlow (preset `mesh`) normalise before",
        "preset `mesh` has the threshold (0.2) and the capacity rule of Mesh TensorFlow",
        "GLaM routes with GShard's rule and weight 0.01: take preset `lingvo`; its GEGLU layer is in `glam`",
        "second choices are drawn in training only; the released codes let the evaluation policy be chosen apart",
    ],
    unverified: &["capacity factors of the presets `lingvo` and `mesh`"],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the draw of policy `random`, uniform on `[0, 1)`, `[g, t, 1]`.
pub const SECOND: &str = "second_uniform";

/// Name of the draw of policy `sampling`, Gumbel, `[g, t, e]`.
pub const GUMBEL: &str = "gumbel";

/// What keeps the sum in (3) from being zero.
const SUM_EPSILON: f64 = 1e-9;

/// When the two weights are divided by their sum (3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Before choices are dropped.
    BeforeDrop,
    /// The surviving weights by their sum, so that a lone survivor gets 1.
    AfterDrop,
    /// Never.
    None,
}

/// How the second expert is found, and whether it queues (2), (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondPolicy {
    /// The second best, always.
    All,
    /// The second best, if its weight exceeds `threshold` times a uniform draw.
    Random,
    /// Drawn among the others in proportion to their probabilities (the Gumbel trick).
    Sampling,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows that an expert keeps of a group; wins over the factor.
    pub capacity: Option<usize>,
    /// Capacity factor; `null` is no limit. The rule `gshard-paper` needs one but does not use it.
    pub capacity_factor: Option<f64>,
    /// How the factor becomes a number of rows.
    pub capacity_rule: CapacityRule,
    /// When weights are divided by their sum.
    pub normalize: Normalize,
    /// How the second expert is found.
    pub second_policy: SecondPolicy,
    /// Factor on the draw in (4).
    pub threshold: f64,
    /// Weight of the balance loss.
    pub balance_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "lingvo", "mesh"];

    fn preset(name: &str) -> Self {
        let paper = Self {
            capacity: None,
            capacity_factor: Some(2.0),
            capacity_rule: CapacityRule::GshardPaper,
            normalize: Normalize::BeforeDrop,
            second_policy: SecondPolicy::Random,
            threshold: 0.5,
            balance_weight: 0.01,
        };
        match name {
            "lingvo" => Self {
                capacity_rule: CapacityRule::Lingvo,
                normalize: Normalize::AfterDrop,
                second_policy: SecondPolicy::All,
                ..paper
            },
            "mesh" => Self {
                capacity_factor: Some(1.25),
                capacity_rule: CapacityRule::SwitchMesh,
                threshold: 0.2,
                ..paper
            },
            _ => paper,
        }
    }
}

impl Config {
    /// (5).
    fn policy(&self) -> CapacityPolicy {
        let limit = match (self.capacity, self.capacity_factor) {
            (Some(rows), _) => Limit::Fixed(rows),
            (None, Some(factor)) => Limit::Factor { factor, rule: self.capacity_rule, min: None },
            (None, None) => Limit::Unlimited,
        };
        CapacityPolicy { limit, order: DropOrder::Arrival }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        if experts < 2 {
            let reason = format!("two experts per token cannot be chosen among {experts}");
            return Err(ConfigError::setting("top_k", reason));
        }
        self.capacity_factor.map_or(Ok(()), |c| check_positive("capacity_factor", c))?;
        check_weight("threshold", self.threshold)?;
        check_weight("balance_weight", self.balance_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        2.0
    }

    /// A later token's first choice comes before an earlier one's second.
    fn causal(&self) -> bool {
        self.policy().limit == Limit::Unlimited
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(GShard { gate_ed, config: self.clone() })
    }
}

/// The trainable router.
#[derive(Debug)]
struct GShard {
    gate_ed: Tensor,
    config: Config,
}

impl GShard {
    /// (1)-(2): both experts with their raw weights.
    ///
    /// The second best is the best of the others even where all others underflow to zero.
    fn experts(&self, logits_gte: &Tensor, prob_gte: &Tensor, cx: &RouteCx<'_>) -> ChoicesGtk {
        let best = ChoicesGtk::top_k(prob_gte, 2);
        if self.config.second_policy != SecondPolicy::Sampling || !cx.training() {
            return best;
        }
        let first_gt1 = best.expert_gtk.narrow(-1, 0, 1);
        let noisy_gte = logits_gte.detach() + cx.gumbel(GUMBEL, logits_gte);
        let others_gte = noisy_gte.scatter_value(-1, &first_gt1, f64::NEG_INFINITY);
        let second_gt1 = ChoicesGtk::top_k(&others_gte, 1).expert_gtk;
        let expert_gtk = Tensor::cat(&[first_gt1, second_gt1], -1);
        let gate_gtk = prob_gte.gather(-1, &expert_gtk, false);
        ChoicesGtk::new(expert_gtk, gate_gtk)
    }

    /// (3)-(4): weights before any drop, and the second choices that queue.
    fn choose(&self, logits_gte: &Tensor, prob_gte: &Tensor, cx: &RouteCx<'_>) -> ChoicesGtk {
        let mut choices = self.experts(logits_gte, prob_gte, cx);
        if self.config.normalize == Normalize::BeforeDrop {
            let sum_gt1 = choices.gate_gtk.sum_dim_intlist(-1, true, None) + SUM_EPSILON;
            let gate_gtk = &choices.gate_gtk / sum_gt1;
            choices = choices.with_gates(gate_gtk);
        }
        if self.config.second_policy != SecondPolicy::Random || !cx.training() {
            return choices;
        }
        let second_gt1 = choices.gate_gtk.detach().narrow(-1, 1, 1);
        let u_gt1 = cx.uniform(SECOND, &second_gt1);
        let lucky_gt1 = second_gt1.gt_tensor(&(u_gt1 * self.config.threshold));
        let present_gtk = Tensor::cat(&[lucky_gt1.ones_like(), lucky_gt1], -1);
        choices.present(present_gtk)
    }
}

/// Divides the weights of the rows in a plan by the sum of their token's surviving weights (3).
fn normalize_survivors(plan: &mut TensorPlan) {
    let TensorPlan::Sparse(rows) = plan else { return };
    let tokens = rows.groups * rows.tokens;
    let zero_t = Tensor::zeros([tokens], (rows.weight_n.kind(), rows.weight_n.device()));
    // At most two rows of a token: the sum does not depend on their order.
    let sum_t = zero_t.scatter_add(0, &rows.token_n, &rows.weight_n);
    let sum_n = sum_t.index_select(0, &rows.token_n);
    // Lingvo's guard: a weight that underflowed to zero stays zero.
    let divisor_n = sum_n.where_self(&sum_n.gt(0.0), &sum_n.ones_like());
    rows.weight_n = &rows.weight_n / divisor_n;
}

impl Router for GShard {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (_, t, e) = axes3(&logits_gte);
        let prob_gte = logits_gte.softmax(-1, logits_gte.kind());
        let choices = self.choose(&logits_gte, &prob_gte, cx);
        let first_gt1 = choices.expert_gtk.narrow(-1, 0, 1);
        let value =
            losses::load_balance_of_valid(&prob_gte, &first_gt1, AuxForm::SumK, cx.padding_gt).loss;
        let own = self.config.policy();
        let room = room(cx.capacity, Some(&own), (t as usize, e as usize, 2))?;
        let choices = choices.without_padding(cx.padding_gt);
        let chosen = Chosen { choices, experts: e, room };
        let mut plan = chosen.plan();
        if self.config.normalize == Normalize::AfterDrop {
            normalize_survivors(&mut plan);
        }
        Ok(Routing {
            plan,
            chosen: Some(chosen),
            logits_gte,
            gate_gte: prob_gte.detach(),
            aux: vec![Aux { name: "balance", weight: self.config.balance_weight, value }],
        })
    }

    fn takes_padding(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(reference::Host { gate_ed: to_host(&self.gate_ed), config: self.config.clone() })
    }
}
