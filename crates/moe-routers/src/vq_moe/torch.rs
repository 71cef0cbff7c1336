//! The layer on libtorch, with the stop-gradients of the equations.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

mod measures;
mod quantizer;

pub use measures::{Balance, balance_terms, perplexity, reanchored, usage};
pub use quantizer::{Quantized, quantize};

use super::host::HostVqMoe;
use super::{Block, Config, Mode, Score};
use crate::convert::{to_host, to_host_i64, to_host1};
use crate::losses;
use crate::norm::{HostNorm, TorchNorm};
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Execute, RouteCx, Router, Routing, axes3, room};
use moe_core::{AuxForm, DropOrder, Reference, RouteError};
use quantizer::unit_rows;
use tch::{Kind, Tensor};

/// The trainable form.
#[derive(Debug)]
pub struct VqMoe {
    /// Settings.
    pub config: Config,
    /// Codes, `[c, d]`.
    pub codebook_cd: Tensor,
    /// The expert of every code, int64, `[c]`.
    pub expert_c: Tensor,
    /// Expert embeddings or the router's matrix, `[e, d]`, and its bias, `[e]`; unread without the
    /// continuous branch.
    pub router: Option<(Tensor, Option<Tensor>)>,
    /// Branch gate, `[2, d]`, and its bias, `[2]`; likewise.
    pub gate: Option<(Tensor, Option<Tensor>)>,
    /// The norm, used wherever there is one.
    pub norm: TorchNorm,
    /// Number of experts.
    pub experts: i64,
}

/// What the continuous branch decides.
#[derive(Debug)]
pub struct Continuous {
    /// What its router decided, with the loss of (8).
    pub routing: Routing,
    /// Branch gates, `[g, t, 2]`.
    pub gate_gt2: Tensor,
}

/// What both branches decide.
#[derive(Debug)]
pub struct Decision {
    /// (3)-(5)
    pub quantized: Quantized,
    /// The discrete branch as a routing with weight 1.
    pub discrete: Routing,
    /// Absent in discrete mode.
    pub continuous: Option<Continuous>,
    /// Number of codes in use, without a graph.
    pub perplexity: Tensor,
}

/// A layer's results.
#[derive(Debug)]
pub struct Output {
    /// Who went where.
    pub decision: Decision,
    /// The continuous branch, `[g, t, d]`; absent in discrete mode.
    pub y_continuous_gtd: Option<Tensor>,
    /// The discrete branch, `[g, t, d]`.
    pub y_discrete_gtd: Tensor,
    /// (7), `[g, t, d]`.
    pub y_gtd: Tensor,
    /// The stream behind the block, where there is one, `[g, t, d]`.
    pub x_out_gtd: Option<Tensor>,
}

impl Decision {
    /// The routing of the continuous branch, or of the discrete one where it is alone, with the
    /// losses of the whole layer.
    fn into_routing(self, config: &Config) -> Routing {
        let vq = Aux { name: "vq", weight: config.vq_weight, value: self.quantized.loss(config) };
        let used = Aux { name: "code_perplexity", weight: 0.0, value: self.perplexity };
        match self.continuous {
            Some(Continuous { routing, .. }) => {
                let aux = std::iter::once(vq).chain(routing.aux).chain([used]).collect();
                Routing { aux, ..routing }
            }
            None => Routing { aux: vec![used], ..self.discrete },
        }
    }
}

impl VqMoe {
    /// (1)-(6) without the experts.
    ///
    /// # Errors
    /// A capacity that cannot be used.
    pub fn decide(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Decision, RouteError> {
        let quantized = quantize(&self.config, x_gtd, &self.codebook_cd, cx.padding_gt);
        let codes = self.codebook_cd.size()[0];
        let picked_gtc = quantized.code_gt.one_hot(codes).to_kind(x_gtd.kind());
        let usage_gc = losses::mean_of_valid(&picked_gtc, cx.padding_gt);
        let continuous = match self.config.mode {
            Mode::Pretrain => Some(self.continuous(x_gtd, cx)?),
            Mode::Discrete => None,
        };
        Ok(Decision {
            discrete: self.discrete(&quantized, cx),
            continuous,
            perplexity: perplexity(&usage_gc).mean(None::<Kind>),
            quantized,
        })
    }

    /// (1), and (2) without the experts.
    fn continuous(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Continuous, RouteError> {
        let (gate_2d, bias_2) = self.gate.as_ref().expect("pre-training has a branch gate");
        let gate_gt2 = x_gtd.linear(gate_2d, bias_2.as_ref()).softmax(-1, x_gtd.kind()); // (1)
        let (router_ed, bias_e) = self.router.as_ref().expect("pre-training has a router");
        let logits_gte = match self.config.score {
            Score::Linear => x_gtd.linear(router_ed, bias_e.as_ref()),
            Score::Embedding => x_gtd.matmul(&unit_rows(router_ed, self.config.embed_eps).tr()),
        };
        let ((_, t, e), k) = (axes3(&logits_gte), self.config.top_k);
        let choices = ChoicesGtk::top_k(&logits_gte, k as i64);
        let gate_gtk = choices.gate_gtk.softmax(-1, x_gtd.kind());
        let aux = vec![self.balance(&logits_gte, &choices.expert_gtk, cx.padding_gt)];
        let room = room(cx.capacity, None, (t as usize, e as usize, k))?;
        let choices = choices.with_gates(gate_gtk).without_padding(cx.padding_gt);
        let chosen = Chosen { choices, experts: e, room };
        let gate_gte = logits_gte.detach().softmax(-1, logits_gte.kind());
        let plan = chosen.plan();
        let routing = Routing { plan, chosen: Some(chosen), logits_gte, gate_gte, aux };
        Ok(Continuous { routing, gate_gt2 })
    }

    /// (8)
    fn balance(
        &self,
        logits_gte: &Tensor,
        expert_gtk: &Tensor,
        padding_gt: Option<&Tensor>,
    ) -> Aux {
        let prob_gte =
            (logits_gte / self.config.balance_temperature).softmax(-1, logits_gte.kind());
        let form = AuxForm::Fastmoe; // shares and probabilities over k: E sum f P / k
        let terms = losses::load_balance_of_valid(&prob_gte, expert_gtk, form, padding_gt);
        Aux { name: "balance", weight: self.config.balance_weight, value: terms.loss }
    }

    /// (6) without the experts.
    fn discrete(&self, quantized: &Quantized, cx: &RouteCx<'_>) -> Routing {
        let code_n = quantized.code_gt.reshape([-1]);
        let expert_gt = self.expert_c.index_select(0, &code_n).view_as(&quantized.code_gt);
        let kind = quantized.m_gtd.kind();
        let logits_gte = expert_gt.one_hot(self.experts).to_kind(kind);
        let gate_gtk = expert_gt.unsqueeze(-1).ones_like().to_kind(kind);
        let choices = ChoicesGtk::new(expert_gt.unsqueeze(-1), gate_gtk);
        let chosen = Chosen {
            choices: choices.without_padding(cx.padding_gt),
            experts: self.experts,
            room: (None, DropOrder::Arrival),
        };
        let gate_gte = logits_gte.shallow_clone();
        Routing { plan: chosen.plan(), chosen: Some(chosen), logits_gte, gate_gte, aux: Vec::new() }
    }

    /// (1)-(7)
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn forward(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        execute: &Execute<'_>,
    ) -> Result<Output, RouteError> {
        let h_gtd = self.normed(self.config.block == Block::Pre, x_gtd);
        let decision = self.decide(&h_gtd, cx)?;
        let u_gtd = self.normed(self.config.ln_in, &decision.quantized.m_gtd);
        let y_gtd = execute(&u_gtd, &decision.discrete.plan);
        let y_discrete_gtd = self.normed(self.config.ln_out, &y_gtd); // (6)
        let y_continuous_gtd =
            decision.continuous.as_ref().map(|c| execute(&h_gtd, &c.routing.plan)); // (2)
        let y_gtd = match (&decision.continuous, &y_continuous_gtd) {
            (Some(Continuous { gate_gt2, .. }), Some(y_continuous_gtd)) => {
                let gate = |branch: i64| gate_gt2.narrow(-1, branch, 1);
                y_continuous_gtd * gate(0) + &y_discrete_gtd * gate(1) // (7)
            }
            _ => y_discrete_gtd.shallow_clone(),
        };
        let x_out_gtd = match self.config.block {
            Block::None => None,
            Block::Post => Some(self.normed(true, &(x_gtd + &y_gtd))),
            Block::Pre => Some(x_gtd + &y_gtd),
        };
        Ok(Output { decision, y_continuous_gtd, y_discrete_gtd, y_gtd, x_out_gtd })
    }

    fn normed(&self, on: bool, x_gtd: &Tensor) -> Tensor {
        if on { self.norm.apply(x_gtd, self.config.ln_eps) } else { x_gtd.shallow_clone() }
    }
}

impl Router for VqMoe {
    /// The routing of the continuous branch; in discrete mode that of the discrete one.
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        Ok(self.decide(x_gtd, cx)?.into_routing(&self.config))
    }

    fn layer(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        execute: &Execute<'_>,
    ) -> Result<(Tensor, Routing), RouteError> {
        let Output { decision, y_gtd, .. } = self.forward(x_gtd, cx, execute)?;
        Ok((y_gtd, decision.into_routing(&self.config)))
    }

    fn takes_padding(&self) -> bool {
        true
    }

    /// The codebook, and what the continuous branch reads where it runs.
    fn products(&self) -> Option<f64> {
        let branch = match self.config.mode {
            Mode::Pretrain => {
                [&self.router, &self.gate].into_iter().flatten().map(|(w, _)| w.numel()).sum()
            }
            Mode::Discrete => 0,
        };
        Some((self.codebook_cd.numel() + branch) as f64)
    }

    fn reference(&self) -> Box<dyn Reference> {
        let linear = |(weight, bias): &(Tensor, Option<Tensor>)| {
            (to_host(weight), bias.as_ref().map(to_host1))
        };
        Box::new(HostVqMoe {
            config: self.config.clone(),
            codebook_cd: to_host(&self.codebook_cd),
            expert_c: to_host_i64(&self.expert_c).into_iter().map(|e| e as usize).collect(),
            router: self.router.as_ref().map(linear),
            gate: self.gate.as_ref().map(linear),
            norm: HostNorm {
                weight_d: self.norm.weight_d.as_ref().map(to_host1),
                bias_d: self.norm.bias_d.as_ref().map(to_host1),
            },
            experts: self.experts as usize,
        })
    }
}
