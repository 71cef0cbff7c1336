//! Expert Choice: experts pick tokens.
//!
//! *Mixture-of-Experts with Expert Choice Routing*, Zhou, Lei, Liu et al., 2022, arXiv 2202.09368.
//!
//! ```text
//! k    = T c / E                  room of an expert; c experts per token on average  (1)
//! S    = softmax(X W)             over experts                                       (2)
//! G, I = top-k(S^T)               every expert takes its k best tokens               (3)
//! y_t  = sum over e that chose t of S_te f_e(x_t)      no renormalisation            (4)
//! ```

use crate::config::{
    ConfigError, Part, Preset, RouterConfig, Settings, check_positive, resolve, to_settings,
};
use crate::convert::to_host;
use crate::order::largest;
use crate::params::Params;
use crate::plan::{SparseRows, TensorPlan};
use crate::router::{Dims, Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{
    CapacityError, CapacityInput, CapacityRule, HostInput, HostRouting, Plan, Reference,
    RouteError, SparsePlan, score,
};
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "expert-choice",
    title: "Mixture-of-Experts with Expert Choice Routing",
    authors: "Zhou et al. 2022",
    arxiv: "2202.09368",
    idea: "Every expert takes the tokens that score it highest, always the same number.\n\
        When tokens choose, popular experts overflow and others starve.\n\
        Here loads are equal without a loss, and a token gets as many experts as want it, even none.\n\
        The choice looks at the whole group, later tokens too.",
    state: "parameters: router W [e, d]",
    cost: "`capacity_factor` expert calls on average (2 in both presets); a softmax over e, and a selection among the t tokens of a group for every expert",
    equations: &[
        ("(1)", "Config::room"),
        ("(2)", "scores"),
        ("(3)", "pick"),
        ("(4)", "TensorPlan::combine"),
    ],
    deviations: &[
        "not causal: a token's experts depend on later tokens of its group, so its language-model losses are not comparable with causal routers'",
        "preset `mesh` is Mesh TensorFlow's: softmax over the tokens of a group, and weights divided by the number of experts that picked the token",
        "the paper's capped variant (at most b experts per token, a linear programme) is left out",
        "a recipe's capacity policy does not apply: the room of an expert is the method itself",
    ],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Over what the scores sum to one (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// The experts.
    SoftmaxExperts,
    /// The tokens of the group.
    SoftmaxTokens,
}

/// What the weights are divided by (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Nothing.
    None,
    /// The number of experts that picked the token.
    NumExperts,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens that an expert takes of a group, at most all; wins over the factor.
    pub capacity: Option<usize>,
    /// Experts per token on average, `c` in (1).
    pub capacity_factor: f64,
    /// Over what the scores sum to one.
    pub score: Score,
    /// What the weights are divided by.
    pub normalize: Normalize,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "mesh"];

    fn preset(name: &str) -> Self {
        let (score, normalize) = match name {
            "mesh" => (Score::SoftmaxTokens, Normalize::NumExperts),
            _ => (Score::SoftmaxExperts, Normalize::None),
        };
        Self { capacity: None, capacity_factor: 2.0, score, normalize }
    }
}

impl Config {
    /// (1): tokens that an expert takes from a group.
    fn room(&self, tokens: usize, experts: usize) -> Result<usize, CapacityError> {
        match self.capacity {
            Some(0) => return Err(CapacityError::BelowOne { got: 0.0 }),
            Some(rows) => return Ok(rows.min(tokens)),
            None => {}
        }
        CapacityRule::ExpertChoice.capacity(&CapacityInput {
            tokens,
            experts,
            top_k: 1,
            factor: self.capacity_factor,
            min_capacity: None,
        })
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        check_positive("capacity_factor", self.capacity_factor)
    }

    /// By the factor: what a fixed capacity comes to depends on the size of the group.
    fn active_experts(&self, experts: usize) -> f64 {
        self.capacity_factor.min(experts as f64)
    }

    fn causal(&self) -> bool {
        false
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => {
                Some("its experts choose; how many tokens is its own `capacity_factor`")
            }
            Part::Balance => Some("every expert takes equally many tokens"),
            Part::ZLoss => None,
        }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(ExpertChoice { gate_ed, config: self.clone() })
    }
}

/// The trainable router.
#[derive(Debug)]
struct ExpertChoice {
    gate_ed: Tensor,
    config: Config,
}

/// (2), `[g, t, e]`.
pub fn scores(config: &Config, logits_gte: &Tensor) -> Tensor {
    let axis = match config.score {
        Score::SoftmaxExperts => 2,
        Score::SoftmaxTokens => 1,
    };
    logits_gte.softmax(axis, logits_gte.kind())
}

/// What the experts took, best first.
#[derive(Debug)]
pub struct Picked {
    /// Tokens of the group, `[e, g, c]`, int64.
    pub token_egc: Tensor,
    /// Their scores, undivided, `[e, g, c]`.
    pub score_egc: Tensor,
    /// The plan, with the weights of (4).
    pub plan: TensorPlan,
}

/// (3): every expert takes its best tokens of every group. `score_gte` is `[g, t, e]`.
///
/// # Errors
/// A capacity below 1.
pub fn pick(config: &Config, score_gte: &Tensor) -> Result<Picked, RouteError> {
    let (g, t, e) = axes3(score_gte);
    let room = config.room(t as usize, e as usize)? as i64;
    let score_egt = score_gte.permute([2, 0, 1]);
    let token_egc = largest(&score_egt, room);
    let score_egc = score_egt.gather(-1, &token_egc, false);
    let options = (Kind::Int64, score_gte.device());
    let first_g1 = (Tensor::arange(g, options) * t).view([g, 1]);
    let token_n = (&token_egc + first_g1).flatten(0, -1);
    let score_n = score_egc.flatten(0, -1);
    let weight_n = match config.normalize {
        Normalize::None => score_n,
        Normalize::NumExperts => {
            let experts_n = token_n.bincount(None::<Tensor>, g * t).index_select(0, &token_n);
            score_n / experts_n.to_kind(score_gte.kind())
        }
    };
    let load_e = Tensor::full([e], g * room, options);
    let plan = TensorPlan::Sparse(SparseRows { token_n, weight_n, load_e, groups: g, tokens: t });
    Ok(Picked { token_egc, score_egc, plan })
}

impl Router for ExpertChoice {
    fn route(&self, x_gtd: &Tensor, _: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        Ok(Routing {
            plan: pick(&self.config, &scores(&self.config, &logits_gte))?.plan,
            chosen: None,
            gate_gte: logits_gte.detach().softmax(-1, logits_gte.kind()),
            logits_gte,
            aux: Vec::new(),
        })
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host { gate_ed: to_host(&self.gate_ed), config: self.config.clone() })
    }
}

struct Host {
    gate_ed: Array2<f64>,
    config: Config,
}

/// (2) for one group on the host, `[t, e]`.
pub fn scores_host(config: &Config, logits_te: ArrayView2<'_, f64>) -> Array2<f64> {
    match config.score {
        Score::SoftmaxExperts => score::softmax(logits_te),
        Score::SoftmaxTokens => score::softmax(logits_te.t()).reversed_axes(),
    }
}

/// What the experts took of one group, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPicked {
    /// Tokens of every expert with their scores, undivided, best first.
    pub taken: Vec<Vec<(usize, f64)>>,
    /// The plan, with the weights of (4).
    pub plan: SparsePlan,
}

/// (3) for one group on the host, `score_te` is `[t, e]`.
///
/// # Errors
/// A capacity below 1, or a score that is not finite.
pub fn pick_host(config: &Config, score_te: ArrayView2<'_, f64>) -> Result<HostPicked, RouteError> {
    let (t, e) = score_te.dim();
    let plan = SparsePlan::expert_choice(score_te, config.room(t, e)?)?;
    let taken: Vec<Vec<(usize, f64)>> = (0..e).map(|e| plan.rows(e).collect()).collect();
    if config.normalize == Normalize::None {
        return Ok(HostPicked { taken, plan });
    }
    let experts_t = plan.kept_per_token();
    let divided = |&(t, score): &(usize, f64)| (t, score / experts_t[t] as f64);
    let lists: Vec<Vec<_>> = taken.iter().map(|rows| rows.iter().map(divided).collect()).collect();
    Ok(HostPicked { plan: SparsePlan::from_lists(t, &lists)?, taken })
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let score_te = scores_host(&self.config, logits_te.view()); // (2)
        let plan = pick_host(&self.config, score_te.view())?.plan; // (3)-(4)
        Ok(HostRouting {
            plan: Plan::Sparse(plan),
            chosen: None,
            gate_te: score::softmax(logits_te.view()),
            logits_te,
            aux: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Four tokens, two experts, c = 1: each expert takes `4 * 1 / 2 = 2`. With `x = (1, 2, 3, 4)`
    /// and `W = (1, 0)^T` expert 0 likes large tokens best (3, then 2), expert 1 small ones (0, 1).
    #[test]
    fn by_hand() {
        let config = Config { capacity_factor: 1.0, ..Config::preset("paper") };
        let host = Host { gate_ed: array![[1.0], [0.0]], config };
        let x_td = array![[1.0], [2.0], [3.0], [4.0]];
        let routing = host.route(&HostInput::new(x_td.view())).unwrap();
        let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
        let tokens = |e: usize| plan.rows(e).map(|(t, _)| t).collect::<Vec<_>>();
        assert_eq!((tokens(0), tokens(1)), (vec![3, 2], vec![0, 1]));
        assert!((plan.rows(0).next().unwrap().1 - score::sigmoid(4.0)).abs() < 1e-12);
    }
}
