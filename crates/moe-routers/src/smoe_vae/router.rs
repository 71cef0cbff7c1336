//! The gate as a router over rows, trainable and plain; formulas are those of `torch` and `host`.
//!
//! Axis letters: `g` groups, `t` rows of a group (images, or tokens), `d` width, `e` experts, `k`
//! choices, `h` hidden width.

use super::{Config, GATE_HIDDEN, Mode, Objective, host, torch};
use crate::config::{ConfigError, Preset, RouterConfig, Settings, check_weight, to_settings};
use crate::convert::{to_host, to_host1};
use crate::params::Params;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Dims, RouteCx, Router, Routing, axes3, room};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError};
use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

/// Settings of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateConfig {
    /// What teaches the gate.
    pub objective: Objective,
    /// Coefficient of the balance loss, or of the cross-entropy.
    pub balance_coeff: f64,
    /// Coefficient of the entropy.
    pub entropy_coeff: f64,
    /// Images in a batch of the release: its loss is a sum over them, so that beside a mean the
    /// coefficients of (5) are divided by this.
    pub batch: usize,
}

impl Preset for GateConfig {
    const PRESETS: &'static [&'static str] = Config::PRESETS;

    fn preset(name: &str) -> Self {
        let Config { objective, balance_coeff, entropy_coeff, .. } = Config::preset(name);
        Self { objective, balance_coeff, entropy_coeff, batch: 128 }
    }
}

impl GateConfig {
    /// Whether all experts run (3).
    fn dense(&self, training: bool) -> bool {
        self.objective.dense(if training { Mode::Train } else { Mode::Eval })
    }
}

impl RouterConfig for GateConfig {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        check_weight("balance_coeff", self.balance_coeff)?;
        check_weight("entropy_coeff", self.entropy_coeff)?;
        match self.batch {
            0 => Err(ConfigError::setting("batch", "0 must be at least 1")),
            _ => Ok(()),
        }
    }

    fn active_experts(&self, experts: usize) -> f64 {
        if self.dense(true) { experts as f64 } else { 1.0 }
    }

    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let [first, second] = GATE_HIDDEN.map(i64::from);
        let linear = |name: &str, from: i64, to: i64| {
            let params = params.child(name);
            // The variance of a uniform weight within 1 / sqrt(from) of zero.
            let std = (3.0 * from as f64).sqrt().recip();
            (params.matrix("weight", &[to, from], std), params.constant("bias", &[to], 0.0))
        };
        let layers = [
            linear("gate1", dims.width, first),
            linear("gate2", first, second),
            linear("gate3", second, dims.experts),
        ];
        Box::new(VaeGate { layers, config: self.clone() })
    }
}

/// What a routing error calls the labels.
const LABELS: &str = "labels (token ids)";

/// The trainable gate.
#[derive(Debug)]
struct VaeGate {
    layers: [torch::Weights; 3],
    config: GateConfig,
}

impl VaeGate {
    /// (5) or (7), weighted as beside a mean task loss.
    fn aux(&self, gate: &torch::Gate, cx: &RouteCx<'_>) -> Result<Vec<Aux>, RouteError> {
        let GateConfig { objective, balance_coeff, entropy_coeff, batch } = self.config;
        let prob_gte = &gate.prob_bn;
        if objective == Objective::Unsupervised {
            let balance = torch::balance(&prob_gte.mean_dim(1, false, None)).mean(None);
            let entropy = torch::entropy(prob_gte).mean(None);
            let per_image = 1.0 / batch as f64;
            return Ok(vec![
                Aux { name: "balance", weight: balance_coeff * per_image, value: balance },
                Aux { name: "entropy", weight: entropy_coeff * per_image, value: entropy },
            ]);
        }
        match cx.token_gt {
            Some(labels_gt) => {
                let value = torch::cross_entropy(prob_gte, labels_gt).0.mean(None);
                let weight = balance_coeff / prob_gte.size()[1] as f64;
                Ok(vec![Aux { name: "cross_entropy", weight, value }])
            }
            None if cx.training() => Err(RouteError::Missing { what: LABELS }),
            None => Ok(Vec::new()),
        }
    }
}

impl Router for VaeGate {
    fn route(&self, x_gtd: &tch::Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let dense = self.config.dense(cx.training());
        let logits_gte = torch::gate_mlp(x_gtd, &self.layers); // (2)
        let (_, t, e) = axes3(&logits_gte);
        let gate = torch::gate(dense, &logits_gte);
        let k = if dense { e } else { 1 };
        // By logits, as the gate ranks.
        let expert_gtk = ChoicesGtk::top_k(&logits_gte, k).expert_gtk;
        let gate_gtk = gate.combine_bn.gather(-1, &expert_gtk, false); // (3)
        let aux = self.aux(&gate, cx)?;
        let choices = ChoicesGtk::new(expert_gtk, gate_gtk);
        let room = room(cx.capacity, None, (t as usize, e as usize, k as usize))?;
        let chosen = Chosen { choices, experts: e, room };
        let (plan, gate_gte) = (chosen.plan(), gate.prob_bn.detach());
        Ok(Routing { plan, chosen: Some(chosen), logits_gte, gate_gte, aux })
    }

    fn reference(&self) -> Box<dyn Reference> {
        let layers = self.layers.each_ref().map(|(w, b)| (to_host(w), to_host1(b)));
        Box::new(HostVaeGate { layers, config: self.config.clone() })
    }
}

/// The plain gate.
struct HostVaeGate {
    layers: [host::Linear; 3],
    config: GateConfig,
}

impl HostVaeGate {
    /// (5) or (7).
    fn aux(
        &self,
        gate: &host::Gate,
        input: &HostInput<'_>,
    ) -> Result<Vec<(&'static str, f64)>, RouteError> {
        let prob_te = gate.prob_bn.view();
        if self.config.objective == Objective::Unsupervised {
            let balance =
                prob_te.mean_axis(Axis(0)).map_or(0.0, |mean_e| host::balance(mean_e.view()));
            let entropy = host::entropy(prob_te).mean().unwrap_or(0.0);
            return Ok(vec![("balance", balance), ("entropy", entropy)]);
        }
        match input.token_t {
            Some(label_t) => Ok(vec![("cross_entropy", host::cross_entropy(prob_te, label_t).0)]),
            None if input.train => Err(RouteError::Missing { what: LABELS }),
            None => Ok(Vec::new()),
        }
    }
}

impl Reference for HostVaeGate {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let dense = self.config.dense(input.train);
        let logits_te = host::gate_mlp(input.x_td, &self.layers); // (2)
        let (t, e) = logits_te.dim();
        let gate = host::gate(dense, logits_te.view());
        let k = if dense { e } else { 1 };
        let mut choices = Choices::top_k(logits_te.view(), k);
        let weight = |(t, k)| gate.combine_bn[[t, choices.expert_tk[[t, k]]]]; // (3)
        choices.gate_tk = Array2::from_shape_fn((t, k), weight);
        let aux = self.aux(&gate, input)?;
        let room = room(input.capacity, None, (t, e, k))?;
        let chosen = moe_core::Chosen::new(choices, e, room)?;
        let plan = chosen.plan()?;
        Ok(HostRouting { plan, chosen: Some(chosen), logits_te, gate_te: gate.prob_bn, aux })
    }
}

#[cfg(test)]
mod tests;
