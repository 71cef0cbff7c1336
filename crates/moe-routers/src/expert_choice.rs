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
    ConfigError, Preset, RouterConfig, Settings, check_positive, resolve, to_settings,
};
use crate::convert::to_host;
use crate::params::Params;
use crate::plan::{SparseRows, TensorPlan};
use crate::router::{Dims, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{
    CapacityError, CapacityInput, CapacityRule, HostInput, HostRouting, Plan, Reference,
    RouteError, SparsePlan, score,
};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "expert-choice",
    title: "Mixture-of-Experts with Expert Choice Routing",
    authors: "Zhou et al. 2022",
    arxiv: "2202.09368",
    idea: "Every expert takes the tokens that score it highest, always the same number: perfect balance, a token gets any number of experts.",
    equations: &[
        ("(1)", "Config::room"),
        ("(2)-(3)", "ExpertChoice::route"),
        ("(4)", "TensorPlan::combine"),
    ],
    deviations: &[
        "not causal: a token's experts depend on later tokens of its group, so its language-model losses are not comparable with causal routers'",
        "the paper's capped variant (at most b experts per token, a linear programme) is left out",
        "a recipe's capacity policy does not apply: the room of an expert is the method itself",
    ],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    config: |settings| Ok(Box::new(resolve::<Config>(settings)?)),
};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token on average, `c` in (1).
    pub capacity_factor: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper"];

    fn preset(_: &str) -> Self {
        Self { capacity_factor: 2.0 }
    }
}

impl Config {
    /// (1): tokens that an expert takes from a group.
    fn room(&self, tokens: usize, experts: usize) -> Result<usize, CapacityError> {
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

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_positive("capacity_factor", self.capacity_factor)?;
        if self.capacity_factor > experts as f64 {
            let reason = format!("{} is above the {experts} experts", self.capacity_factor);
            return Err(ConfigError::setting("capacity_factor", reason));
        }
        Ok(())
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.capacity_factor
    }

    fn causal(&self) -> bool {
        false
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

impl Router for ExpertChoice {
    fn route(&self, x_gtd: &Tensor, _: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (g, t, e) = axes3(&logits_gte);
        let room = self.config.room(t as usize, e as usize)? as i64;
        let score_gte = logits_gte.softmax(-1, logits_gte.kind()); // (2)
        let score_egt = score_gte.permute([2, 0, 1]);
        let best_egt = score_egt.detach().argsort_stable(true, -1, true);
        let token_egc = best_egt.narrow(-1, 0, room); // (3)
        let weight_egc = score_egt.gather(-1, &token_egc, false);
        let options = (Kind::Int64, x_gtd.device());
        let first_g1 = (Tensor::arange(g, options) * t).view([g, 1]);
        let plan = TensorPlan::Sparse(SparseRows {
            token_n: (token_egc + first_g1).flatten(0, -1),
            weight_n: weight_egc.flatten(0, -1),
            load_e: Tensor::full([e], g * room, options),
            groups: g,
            tokens: t,
        });
        Ok(Routing {
            plan,
            chosen: None,
            logits_gte,
            gate_gte: score_gte.detach(),
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

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let (t, e) = logits_te.dim();
        let score_te = score::softmax(logits_te.view()); // (2)
        let plan = SparsePlan::expert_choice(score_te.view(), self.config.room(t, e)?)?; // (3)
        Ok(HostRouting {
            plan: Plan::Sparse(plan),
            chosen: None,
            logits_te,
            gate_te: score_te,
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
        let config = Config { capacity_factor: 1.0 };
        let host = Host { gate_ed: array![[1.0], [0.0]], config };
        let x_td = array![[1.0], [2.0], [3.0], [4.0]];
        let routing = host.route(&HostInput::new(x_td.view())).unwrap();
        let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
        let tokens = |e: usize| plan.rows(e).map(|(t, _)| t).collect::<Vec<_>>();
        assert_eq!((tokens(0), tokens(1)), (vec![3, 2], vec![0, 1]));
        assert!((plan.rows(0).next().unwrap().1 - score::sigmoid(4.0)).abs() < 1e-12);
    }
}
