//! V-MoE: noisy top-k routing with Batch Prioritised Routing.
//!
//! *Scaling Vision with Sparse Mixture of Experts*, Riquelme, Puigcerver, Mustafa et al., 2021,
//! arXiv 2106.05974.
//!
//! ```text
//! g(x)   = top-k of softmax(W x + eps),  eps ~ N(0, sigma^2), sigma = noise_std / E  (2)
//! y      = sum over the top k of g_e(x) f_e(x)              not renormalised         (1)
//! B_e    = round(k N P C / E)                               room per expert          (3)
//! L_imp  = CV( sum_t softmax(W x_t) )^2                     noise-free               (8)
//! L_load = CV( sum_t 1 - Phi((eta_t - W x_t) / sigma) )^2   eta: k-th noisy logit    (A.2)
//! ```
//!
//! Algorithm 1 (vanilla) hands out places rank by rank in token order; Algorithm 2 (Batch
//! Prioritised Routing) visits tokens by falling best gate.

use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    resolve, to_settings,
};
use crate::convert::to_host;
use crate::losses;
use crate::params::Params;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Dims, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{
    AuxForm, CapacityPolicy, CapacityRule, Choices, DropOrder, HostInput, HostRouting, Limit, Plan,
    Reference, RouteError, SparsePlan, balance, score,
};
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "v-moe",
    title: "Scaling Vision with Sparse Mixture of Experts",
    authors: "Riquelme et al. 2021",
    arxiv: "2106.05974",
    idea: "Softmax over noisy logits, then top-k without renormalising; two losses even out gates and loads; batch priority gives scarce room to the tokens the router is surest of.",
    equations: &[
        ("(1)-(2)", "Host::route"),
        ("(3)", "Config::policy"),
        ("(8)", "moe_core::balance::importance"),
        ("A.2", "load_loss"),
        ("Algorithms 1, 2", "ChoicesGtk::into_plan"),
    ],
    deviations: &[
        "capacity: the paper rounds k N P C / E (presets `paper*`); the released code takes the ceiling, raised to a multiple of 4 (presets `reference*`)",
        "a public re-implementation renormalises the k weights; paper and released code do not, nor do we",
    ],
    unverified: &["the paper's full text was not at hand: statements about it are from two independent transcriptions"],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    config: |settings| Ok(Box::new(resolve::<Config>(settings)?)),
};

/// Name of the noise, standard normal, `[g, t, e]`; scaled by `noise_std / E` inside.
pub const NOISE: &str = "noise";

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Noise standard deviation in units of `1 / E`.
    pub noise_std: f64,
    /// Capacity factor `C`; `null` means unlimited room.
    pub capacity_factor: Option<f64>,
    /// Rounding of the capacity (3).
    pub capacity_rule: CapacityRule,
    /// Order in which places are handed out.
    pub order: DropOrder,
    /// Weight of the importance loss.
    pub importance_weight: f64,
    /// Weight of the load loss.
    pub load_weight: f64,
    /// Weight of a GShard loss on the noisy probabilities (0 in the released configurations).
    pub gshard_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] =
        &["paper", "paper_bpr", "reference", "reference_bpr"];

    fn preset(name: &str) -> Self {
        let (reference, bpr) = (name.starts_with("reference"), name.ends_with("_bpr"));
        Self {
            top_k: 2,
            noise_std: 1.0,
            capacity_factor: Some(1.05),
            capacity_rule: if reference { CapacityRule::VmoeCeil4 } else { CapacityRule::VmoeRound },
            order: if bpr { DropOrder::BatchPriority } else { DropOrder::Arrival },
            importance_weight: 0.005,
            load_weight: 0.005,
            gshard_weight: 0.0,
        }
    }
}

impl Config {
    /// (3): the paper's own room per expert.
    fn policy(&self) -> CapacityPolicy {
        let limit = self.capacity_factor.map_or(Limit::Unlimited, |factor| Limit::Factor {
            factor,
            rule: self.capacity_rule,
            min: None,
        });
        CapacityPolicy { limit, order: self.order }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_weight("noise_std", self.noise_std)?;
        self.capacity_factor.map_or(Ok(()), |c| check_positive("capacity_factor", c))?;
        check_weight("importance_weight", self.importance_weight)?;
        check_weight("load_weight", self.load_weight)?;
        check_weight("gshard_weight", self.gshard_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    /// Later tokens' first choices come before earlier tokens' second ones, and batch priority lets
    /// any token overtake: with limited room, causal only in arrival order with k = 1.
    fn causal(&self) -> bool {
        self.capacity_factor.is_none() || (self.top_k == 1 && self.order == DropOrder::Arrival)
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(VMoe { gate_ed, config: self.clone() })
    }
}

/// The trainable router.
#[derive(Debug)]
struct VMoe {
    gate_ed: Tensor,
    config: Config,
}

/// One router's noise: the noisy logits and the deviation that made them.
struct Noisy {
    logits_gte: Tensor,
    std: f64,
}

impl VMoe {
    fn noisy(&self, clean_gte: &Tensor, cx: &RouteCx<'_>) -> Option<Noisy> {
        let std = self.config.noise_std / clean_gte.size()[2] as f64;
        (cx.training() && std > 0.0)
            .then(|| Noisy { logits_gte: clean_gte + cx.normal(NOISE, clean_gte) * std, std })
    }

    fn aux(&self, clean_gte: &Tensor, noisy: Option<&Noisy>, prob_gte: &Tensor) -> Vec<Aux> {
        let clean_prob_gte = clean_gte.softmax(-1, clean_gte.kind());
        let importance_ge = clean_prob_gte.sum_dim_intlist(1, false, None);
        let value = losses::cv_squared(&importance_ge);
        let mut aux =
            vec![Aux { name: "importance", weight: self.config.importance_weight, value }];
        if let Some(noisy) = noisy {
            let value = load_loss(clean_gte, noisy, self.config.top_k as i64);
            aux.push(Aux { name: "load", weight: self.config.load_weight, value });
        }
        if self.config.gshard_weight > 0.0 {
            let first_gt1 = ChoicesGtk::top_k(prob_gte, 1).expert_gtk;
            let value = losses::load_balance(prob_gte, &first_gt1, AuxForm::SumK);
            aux.push(Aux { name: "gshard", weight: self.config.gshard_weight, value });
        }
        aux
    }
}

/// (A.2). The gradient also flows through the threshold, to the clean logit that sets it.
fn load_loss(clean_gte: &Tensor, noisy: &Noisy, k: i64) -> Tensor {
    let eta_gt1 = ChoicesGtk::top_k(&noisy.logits_gte, k).gate_gtk.narrow(-1, k - 1, 1);
    let p_gte: Tensor = 1.0 - ((eta_gt1 - clean_gte) / noisy.std).special_ndtr();
    losses::cv_squared(&p_gte.sum_dim_intlist(1, false, None))
}

impl Router for VMoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let clean_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (_, t, e) = axes3(&clean_gte);
        let noisy = self.noisy(&clean_gte, cx);
        let used_gte = noisy.as_ref().map_or(&clean_gte, |noisy| &noisy.logits_gte);
        let prob_gte = used_gte.softmax(-1, used_gte.kind()); // (2)
        let choices = ChoicesGtk::top_k(&prob_gte, self.config.top_k as i64);
        let aux = self.aux(&clean_gte, noisy.as_ref(), &prob_gte);
        let size = (t as usize, e as usize, self.config.top_k);
        let (slots, order) = room(cx.capacity, Some(&self.config.policy()), size)?;
        Ok(Routing {
            plan: choices.into_plan(e, slots, order),
            logits_gte: clean_gte,
            gate_gte: prob_gte.detach(),
            aux,
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

impl Host {
    fn aux(&self, clean_te: &Array2<f64>, noisy_te: Option<ArrayView2<'_, f64>>, prob_te: &Array2<f64>) -> Vec<(&'static str, f64)> {
        let clean_prob_te = score::softmax(clean_te.view());
        let mut aux = vec![("importance", balance::importance(clean_prob_te.view()))]; // (8)
        if let Some(noisy_te) = noisy_te {
            let std = self.config.noise_std / clean_te.ncols() as f64;
            let load = balance::load(clean_te.view(), noisy_te, std, self.config.top_k); // (A.2)
            aux.push(("load", load));
        }
        if self.config.gshard_weight > 0.0 {
            let first_t1 = Choices::top_k(prob_te.view(), 1).expert_tk;
            let gshard = balance::load_balance(prob_te.view(), first_t1.view(), AuxForm::SumK);
            aux.push(("gshard", gshard));
        }
        aux
    }
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let clean_te = input.x_td.dot(&self.gate_ed.t());
        let (t, e) = clean_te.dim();
        let std = self.config.noise_std / e as f64;
        let noise_te = input.draw(NOISE).filter(|_| input.train && std > 0.0);
        let noisy_te = noise_te.map(|noise_te| &clean_te + &(&noise_te * std));
        let prob_te = score::softmax(noisy_te.as_ref().unwrap_or(&clean_te).view()); // (2)
        let choices = Choices::top_k(prob_te.view(), self.config.top_k);
        let aux = self.aux(&clean_te, noisy_te.as_ref().map(|n| n.view()), &prob_te);
        let size = (t, e, self.config.top_k);
        let (slots, order) = room(input.capacity, Some(&self.config.policy()), size)?;
        let plan = SparsePlan::from_choices(&choices, e, slots, order)?;
        Ok(HostRouting { plan: Plan::Sparse(plan), logits_te: clean_te, gate_te: prob_te, aux })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Four tokens, two experts, k = 1, room `round(1 * 4 * 0.5 / 2) = 1` each. With `x = (1, 2, 3,
    /// -1)` and `W = (1, 0)^T` the best gates are sigmoid(1), sigmoid(2), sigmoid(3) at expert 0 and
    /// sigmoid(1) at expert 1. Arrival keeps token 0 at expert 0; batch priority keeps token 2.
    /// Token 3 is alone at expert 1 and always kept.
    #[test]
    fn by_hand() {
        let x_td = array![[1.0], [2.0], [3.0], [-1.0]];
        for (preset, kept, gate) in [("paper", 0, 1.0), ("paper_bpr", 2, 3.0)] {
            let config = Config { top_k: 1, capacity_factor: Some(0.5), ..Config::preset(preset) };
            let host = Host { gate_ed: array![[1.0], [0.0]], config };
            let routing = host.route(&HostInput::new(x_td.view())).unwrap();
            let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
            let rows: Vec<_> = plan.rows(0).collect();
            assert_eq!(rows.len(), 1, "{preset}");
            assert_eq!(rows[0].0, kept, "{preset}");
            assert!((rows[0].1 - score::sigmoid(gate)).abs() < 1e-12, "{preset}");
            assert_eq!(plan.rows(1).map(|(t, _)| t).collect::<Vec<_>>(), [3], "{preset}");
        }
    }
}
