//! The trainable router, (8)-(9).
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `k` choices, `c` clusters.

use super::NOISE;
use super::config::{Config, Gate, Score};
use super::reference::HostAcMoe;
use super::scaling::{Labels, Scaling, scale};
use crate::convert::{to_host, to_host1};
use crate::losses;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, RouteCx, Router, Routing, axes3};
use moe_core::{AuxForm, Reference, RouteError};
use tch::Tensor;

/// The trainable router.
#[derive(Debug)]
pub struct AcMoe {
    /// Expert embeddings or router rows, `[e, d]`.
    pub matrix_ed: Tensor,
    /// Bias of a linear router, `[e]`.
    pub bias_e: Option<Tensor>,
    /// Settings.
    pub config: Config,
}

/// A routing and what led to it.
#[derive(Debug)]
pub struct Decision {
    /// The scaled tokens.
    pub scaling: Scaling,
    /// Logits with noise, by which experts are chosen, `[g, t, e]`.
    pub noisy_gte: Tensor,
    /// Who computes what.
    pub routing: Routing,
}

impl AcMoe {
    /// (8).
    fn scores(&self, scaled_gtd: &Tensor) -> Tensor {
        let matrix_ed = match self.config.score {
            Score::Linear => self.matrix_ed.shallow_clone(),
            Score::Embedding => {
                let norm_e1 = self.matrix_ed.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true);
                &self.matrix_ed / norm_e1.clamp_min(self.config.embed_eps)
            }
        };
        scaled_gtd.linear(&matrix_ed, self.bias_e.as_ref())
    }

    /// (9).
    fn choose(&self, noisy_gte: &Tensor, prob_gte: &Tensor) -> ChoicesGtk {
        let choices = ChoicesGtk::top_k(noisy_gte, self.config.top_k as i64);
        let gate_gtk = match self.config.gate {
            Gate::SoftmaxK => choices.gate_gtk.softmax(-1, noisy_gte.kind()),
            Gate::SoftmaxAll => prob_gte.gather(-1, &choices.expert_gtk, false),
        };
        choices.with_gates(gate_gtk)
    }

    /// Routes under these labels; `frozen_cd` takes the place of the weights of all groups.
    ///
    /// # Errors
    /// As [`scale`], and a capacity that cannot be used.
    pub fn decide(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        labels: Option<&Labels>,
        frozen_cd: Option<&Tensor>,
    ) -> Result<Decision, RouteError> {
        let scaling = scale(&self.config, x_gtd, labels, frozen_cd)?;
        let logits_gte = self.scores(&scaling.scaled_gtd);
        let (_, t, e) = axes3(&logits_gte);
        let std = self.config.noise_std / e as f64;
        let noisy_gte = if cx.training() && std > 0.0 {
            &logits_gte + cx.normal(NOISE, &logits_gte) * std
        } else {
            logits_gte.shallow_clone()
        };
        let prob_gte = noisy_gte.softmax(-1, noisy_gte.kind());
        let choices = self.choose(&noisy_gte, &prob_gte);
        let value = losses::load_balance(&prob_gte, &choices.expert_gtk, AuxForm::SumK);
        let room = self.config.room(cx.capacity, (t as usize, e as usize))?;
        let chosen = Chosen { choices, experts: e, room };
        let routing = chosen.routing(
            logits_gte,
            prob_gte.detach(),
            vec![Aux { name: "balance", weight: self.config.balance_weight, value }],
        );
        Ok(Decision { scaling, noisy_gte, routing })
    }
}

impl Router for AcMoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let labels = cx.previous.map(Labels::of).transpose()?;
        Ok(self.decide(x_gtd, cx, labels.as_ref(), None)?.routing)
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(HostAcMoe {
            matrix_ed: to_host(&self.matrix_ed),
            bias_e: self.bias_e.as_ref().map(to_host1),
            config: self.config.clone(),
        })
    }
}
