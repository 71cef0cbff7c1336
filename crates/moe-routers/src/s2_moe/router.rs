//! The trainable S2MoE on libtorch: routing, both passes, losses, (2), (3), (6).
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `k` choices.

use super::reference::HostS2Moe;
use super::{Augmented, Config, NceOn, Perturbation, augment, balance, info_nce};
use crate::convert::{to_host, to_host1};
use crate::losses;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Execute, RouteCx, Router, Routing, axes3, room};
use moe_core::{Reference, RouteError};
use ndarray::{Array1, Axis};
use tch::Tensor;

/// Multiplicative draw of (1).
pub(super) const EPS1: &str = "eps1";
/// Additive draw of (1).
pub(super) const EPS2: &str = "eps2";

/// The trainable router.
#[derive(Debug)]
pub struct S2Moe {
    /// Router, `[e, d]`.
    pub router_ed: Tensor,
    /// Its bias, `[e]`.
    pub bias_e: Option<Tensor>,
    /// Blend gate `w` of (3), `[1, d]`; inference has no use for it.
    pub blend_1d: Tensor,
    /// Its bias `b`, `[1]`.
    pub blend_bias_1: Tensor,
    /// Settings.
    pub config: Config,
}

/// Both passes of a training step.
#[derive(Debug)]
pub struct Passes {
    /// Blended output, `[g, t, d]`.
    pub y_gtd: Tensor,
    /// Output of the tokens, `[g, t, d]`.
    pub clean_gtd: Tensor,
    /// Output of the noisy copies, `[g, t, d]`.
    pub noisy_gtd: Tensor,
    /// Experts of the noisy copies, `[g, t, k]`.
    pub noisy_expert_gtk: Tensor,
    /// The noisy copies.
    pub augmented: Augmented,
    /// Blend `g`, `[g, t, 1]`.
    pub blend_gt1: Tensor,
    /// Routing of the tokens, with the balance loss (5).
    pub routing: Routing,
}

impl S2Moe {
    /// (2): the `k` largest logits, weighed by the softmax over them.
    fn choose(
        &self,
        x_gtd: &Tensor,
        k: usize,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Chosen), RouteError> {
        let logits_gte = x_gtd.linear(&self.router_ed, self.bias_e.as_ref());
        let (_, t, e) = axes3(&logits_gte);
        let choices = ChoicesGtk::top_k(&logits_gte, k as i64);
        let gate_gtk = choices.gate_gtk.softmax(-1, logits_gte.kind());
        let choices = choices.with_gates(gate_gtk).without_padding(cx.padding_gt);
        let room = room(cx.capacity, None, (t as usize, e as usize, k))?;
        Ok((logits_gte, Chosen { choices, experts: e, room }))
    }

    /// Both passes through the experts and their blend (1)-(3).
    ///
    /// # Errors
    /// If the capacity leaves no room.
    pub fn passes(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        given: &Perturbation<'_>,
        execute: &Execute<'_>,
    ) -> Result<Passes, RouteError> {
        let augmented = augment(&self.config, x_gtd, given, cx.padding_gt); // (1)
        let (logits_gte, clean) = self.choose(x_gtd, self.config.top_k, cx)?; // (2)
        let routing = self.routing(logits_gte, clean, cx);
        let clean_gtd = execute(x_gtd, &routing.plan);
        let rerouted = match self.config.reroute {
            true => Some(self.choose(&augmented.x_gtd, self.config.top_k, cx)?.1),
            false => None,
        };
        let noisy_gtd = match &rerouted {
            Some(chosen) => execute(&augmented.x_gtd, &chosen.plan()),
            None => execute(&augmented.x_gtd, &routing.plan),
        };
        let noisy = rerouted.as_ref().or(routing.chosen.as_ref()).expect("tokens choose");
        let blend_gt1 = x_gtd.linear(&self.blend_1d, Some(&self.blend_bias_1)).sigmoid();
        Ok(Passes {
            y_gtd: &blend_gt1 * &clean_gtd + (1.0 - &blend_gt1) * &noisy_gtd, // (3)
            noisy_expert_gtk: noisy.choices.expert_gtk.shallow_clone(),
            clean_gtd,
            noisy_gtd,
            augmented,
            blend_gt1,
            routing,
        })
    }

    /// What was chosen, with the balance loss (5) in training.
    fn routing(&self, logits_gte: Tensor, chosen: Chosen, cx: &RouteCx<'_>) -> Routing {
        let aux = cx.training().then(|| {
            let expert_gtk = Some(&chosen.choices.expert_gtk);
            let value = balance(self.config.balance, &logits_gte, expert_gtk, cx.padding_gt);
            Aux { name: "balance", weight: self.config.alpha, value }
        });
        Routing {
            plan: chosen.plan(),
            chosen: Some(chosen),
            gate_gte: logits_gte.detach().softmax(-1, logits_gte.kind()),
            logits_gte,
            aux: aux.into_iter().collect(),
        }
    }

    /// (4) of what the settings contrast, a scalar: the mean over the tokens of a group, then over
    /// groups.
    pub fn uncertainty(
        &self,
        x_gtd: &Tensor,
        passes: &Passes,
        padding_gt: Option<&Tensor>,
    ) -> Tensor {
        let pair = match self.config.nce_on {
            NceOn::Inputs => (x_gtd, &passes.augmented.x_gtd),
            NceOn::Outputs => (&passes.clean_gtd, &passes.noisy_gtd),
        };
        let nce_gt = info_nce(pair, (self.config.tau, false), padding_gt);
        losses::mean_of_valid(&nce_gt.unsqueeze(-1), padding_gt).mean(None)
    }
}

impl Router for S2Moe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let k = if cx.training() { self.config.top_k } else { self.config.top_k_infer };
        let (logits_gte, chosen) = self.choose(x_gtd, k, cx)?;
        Ok(self.routing(logits_gte, chosen, cx))
    }

    fn layer(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        execute: &Execute<'_>,
    ) -> Result<(Tensor, Routing), RouteError> {
        if !cx.training() {
            let routing = self.route(x_gtd, cx)?; // (6)
            return Ok((execute(x_gtd, &routing.plan), routing));
        }
        let (eps1_gtd, eps2_gtd) = (cx.normal(EPS1, x_gtd), cx.normal(EPS2, x_gtd));
        let (eps1_gtd, eps2_gtd) = (Some(&eps1_gtd), Some(&eps2_gtd));
        let given = Perturbation { eps1_gtd, eps2_gtd, ..Perturbation::default() };
        let mut passes = self.passes(x_gtd, cx, &given, execute)?;
        if self.config.beta > 0.0 {
            let value = self.uncertainty(x_gtd, &passes, cx.padding_gt);
            passes.routing.aux.push(Aux { name: "info_nce", weight: self.config.beta, value });
        }
        Ok((passes.y_gtd, passes.routing))
    }

    fn takes_padding(&self) -> bool {
        true
    }

    /// At inference, where the blend gate is not read.
    fn products(&self) -> Option<f64> {
        Some(self.router_ed.numel() as f64)
    }

    fn reference(&self) -> Box<dyn Reference> {
        let zero_e = || Array1::zeros(self.router_ed.size()[0] as usize);
        Box::new(HostS2Moe {
            router_ed: to_host(&self.router_ed),
            bias_e: self.bias_e.as_ref().map_or_else(zero_e, to_host1),
            blend_d: to_host(&self.blend_1d).remove_axis(Axis(0)),
            blend_bias: to_host1(&self.blend_bias_1)[0],
            config: self.config.clone(),
        })
    }
}
