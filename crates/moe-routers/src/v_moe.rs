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

mod config;
mod losses;
mod placement;

pub use config::{Config, PriorityScore, Rounding};
pub use losses::{HostLosses, Losses, gshard};
pub use placement::Placement;

use crate::config::{Preset, resolve};
use crate::convert::to_host;
use crate::plan::{ChoicesGtk, TensorPlan};
use crate::router::{Aux, Chosen, Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{
    CapacityPolicy, Choices, HostInput, HostRouting, Plan, Reference, RouteError, SparsePlan, score,
};
use ndarray::{Array2, ArrayView2};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "v-moe",
    title: "Scaling Vision with Sparse Mixture of Experts",
    authors: "Riquelme et al. 2021",
    arxiv: "2106.05974",
    idea: "Softmax over noisy logits, then top-k; scarce room goes to the tokens that the router is surest of.\n\
        Images have many tokens that matter little, and each takes an expert's time.\n\
        Gates are not renormalised, so that they have a gradient even with k = 1.\n\
        Two losses even out gates (importance) and expected loads.\n\
        Room by certainty is batch priority, the presets `*_bpr`; the others go by token order.",
    state: "parameters: router W [e, d]",
    cost: "at most k expert calls; two softmaxes over e, in training e normal draws and e values of the normal distribution function; with batch priority a sort of the group's tokens",
    equations: &[
        ("(1)-(2)", "Host::route"),
        ("(3)", "Config::slots"),
        ("(8)", "losses::Losses::importance"),
        ("A.2", "losses::expected_load"),
        ("Every-n, Last-n", "placement::Placement"),
        ("Algorithms 1, 2", "ChoicesGtk::into_plan"),
    ],
    deviations: &[
        "capacity: the paper rounds k N P C / E (presets `paper*`); the released code takes the ceiling, raised to a multiple of 4 (presets `reference*`)",
        "a public re-implementation renormalises the k weights; paper and released code do not, nor do we",
    ],
    unverified: &[
        "the paper's full text was not at hand: statements about it are from two independent transcriptions",
    ],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the noise, standard normal, `[g, t, e]`; scaled by `noise_std / E` inside.
pub const NOISE: &str = "noise";

/// The trainable router.
#[derive(Debug)]
struct VMoe {
    gate_ed: Tensor,
    config: Config,
}

impl VMoe {
    fn noisy(&self, clean_gte: &Tensor, cx: &RouteCx<'_>) -> Option<Tensor> {
        let std = self.config.noise_scale(clean_gte.size()[2] as usize);
        (cx.training() && std > 0.0).then(|| clean_gte + cx.normal(NOISE, clean_gte) * std)
    }

    /// The losses that count; `prob_gte` is of the noisy logits.
    fn aux(&self, clean_gte: &Tensor, noisy_gte: Option<&Tensor>, prob_gte: &Tensor) -> Vec<Aux> {
        let Losses { importance, load, .. } = Losses::of(&self.config, clean_gte, noisy_gte);
        let weight = self.config.importance_weight;
        let mut aux = vec![Aux { name: "importance", weight, value: importance }];
        let weight = self.config.load_weight;
        aux.extend(load.map(|value| Aux { name: "load", weight, value }));
        let weight = self.config.gshard_weight;
        if weight > 0.0 {
            aux.push(Aux { name: "gshard", weight, value: losses::gshard(prob_gte) });
        }
        aux
    }
}

/// Choices and plan for given probabilities, `[g, t, e]`: Algorithms 1 and 2.
///
/// With `normalize` weights are divided by the sum of the token's k gates; priority goes by the raw
/// gates either way.
///
/// # Errors
/// A capacity below 1.
pub fn assign(
    config: &Config,
    prob_gte: &Tensor,
    policy: Option<&CapacityPolicy>,
) -> Result<(Chosen, TensorPlan), RouteError> {
    let (_, t, e) = axes3(prob_gte);
    let choices = ChoicesGtk::top_k(prob_gte, config.top_k as i64);
    let room = config.room(policy, (t as usize, e as usize))?;
    let chosen = Chosen { choices, experts: e, room };
    let mut plan = chosen.plan();
    if let (true, TensorPlan::Sparse(rows)) = (config.normalize, &mut plan) {
        let sum_t = chosen.choices.gate_gtk.sum_dim_intlist(-1, false, None).flatten(0, -1);
        rows.weight_n = &rows.weight_n / sum_t.index_select(0, &rows.token_n);
    }
    Ok((chosen, plan))
}

/// The same for one group on the host, `[t, e]`.
///
/// # Errors
/// A capacity below 1, or a weight that is not finite.
pub fn assign_host(
    config: &Config,
    prob_te: ArrayView2<'_, f64>,
    policy: Option<&CapacityPolicy>,
) -> Result<(moe_core::Chosen, Plan), RouteError> {
    let choices = Choices::top_k(prob_te, config.top_k);
    let chosen =
        moe_core::Chosen::new(choices, prob_te.ncols(), config.room(policy, prob_te.dim())?)?;
    if !config.normalize {
        let plan = chosen.plan()?;
        return Ok((chosen, plan));
    }
    let gates = chosen.choices.clone().renormalised();
    let plan = SparsePlan::from_queue(&gates, &chosen.queue, chosen.experts)?;
    Ok((chosen, Plan::Sparse(plan)))
}

impl Router for VMoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let clean_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let noisy = self.noisy(&clean_gte, cx);
        let used_gte = noisy.as_ref().unwrap_or(&clean_gte);
        let prob_gte = used_gte.softmax(-1, used_gte.kind()); // (2)
        let aux = self.aux(&clean_gte, noisy.as_ref(), &prob_gte);
        let (chosen, plan) = assign(&self.config, &prob_gte, cx.capacity)?;
        Ok(Routing {
            plan,
            chosen: Some(chosen),
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
    fn aux(
        &self,
        clean_te: ArrayView2<'_, f64>,
        noisy_te: Option<ArrayView2<'_, f64>>,
    ) -> Vec<(&'static str, f64)> {
        let losses = HostLosses::of(&self.config, clean_te, noisy_te);
        let mut aux = vec![("importance", losses.importance)];
        aux.extend(losses.load.map(|load| ("load", load)));
        aux.extend((self.config.gshard_weight > 0.0).then_some(("gshard", losses.gshard)));
        aux
    }
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let clean_te = input.x_td.dot(&self.gate_ed.t());
        let std = self.config.noise_scale(clean_te.ncols());
        let noise_te = input.draw(NOISE).filter(|_| input.train && std > 0.0);
        let noisy_te = noise_te.map(|noise_te| &clean_te + &(&noise_te * std));
        let prob_te = score::softmax(noisy_te.as_ref().unwrap_or(&clean_te).view()); // (2)
        let aux = self.aux(clean_te.view(), noisy_te.as_ref().map(|n| n.view()));
        let (chosen, plan) = assign_host(&self.config, prob_te.view(), input.capacity)?;
        Ok(HostRouting { plan, chosen: Some(chosen), logits_te: clean_te, gate_te: prob_te, aux })
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
