//! The layer in plain `f64`, in the order of the equations.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

mod measures;
mod quantizer;

pub use measures::{balance_terms, collapse, consistency, perplexity, reanchored, usage};
pub use quantizer::{Quantized, quantize};

use super::{Block, Config, FIXED_CODES, FIXED_TOKENS, Mode, Score};
use crate::norm::HostNorm;
use crate::router::room;
use moe_core::{
    AuxForm, Choices, Chosen, DropOrder, HostExpert, HostInput, HostRouting, LoadBalance,
    Reference, RouteError, balance, score,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use quantizer::unit_rows;

/// The reference layer.
#[derive(Debug, Clone)]
pub struct HostVqMoe {
    /// Settings.
    pub config: Config,
    /// Codes, `[c, d]`.
    pub codebook_cd: Array2<f64>,
    /// The expert of every code, `[c]`.
    pub expert_c: Vec<usize>,
    /// Expert embeddings or the router's matrix, `[e, d]`, and its bias, `[e]`; unread without the
    /// continuous branch.
    pub router: Option<(Array2<f64>, Option<Array1<f64>>)>,
    /// Branch gate, `[2, d]`, and its bias, `[2]`; likewise.
    pub gate: Option<(Array2<f64>, Option<Array1<f64>>)>,
    /// The norm, used wherever there is one.
    pub norm: HostNorm,
    /// Number of experts.
    pub experts: usize,
}

/// What the continuous branch decides.
#[derive(Debug)]
pub struct Continuous {
    /// What its router decided, with the loss of (8).
    pub routing: HostRouting,
    /// Branch gates, `[t, 2]`.
    pub gate_t2: Array2<f64>,
}

/// What both branches decide.
#[derive(Debug)]
pub struct Decision {
    /// (3)-(5)
    pub quantized: Quantized,
    /// The discrete branch as a routing with weight 1.
    pub discrete: HostRouting,
    /// Absent in discrete mode.
    pub continuous: Option<Continuous>,
    /// Number of codes in use.
    pub perplexity: f64,
}

/// A layer's results.
#[derive(Debug)]
pub struct Output {
    /// Who went where.
    pub decision: Decision,
    /// The continuous branch, `[t, d]`; absent in discrete mode.
    pub y_continuous_td: Option<Array2<f64>>,
    /// The discrete branch, `[t, d]`.
    pub y_discrete_td: Array2<f64>,
    /// (7), `[t, d]`.
    pub y_td: Array2<f64>,
    /// The stream behind the block, where there is one, `[t, d]`.
    pub x_out_td: Option<Array2<f64>>,
}

impl Decision {
    /// The routing of the continuous branch, or of the discrete one where it is alone, with the
    /// losses of the whole layer.
    fn into_routing(self, config: &Config) -> HostRouting {
        let used = ("code_perplexity", self.perplexity);
        match self.continuous {
            Some(Continuous { routing, .. }) => {
                let vq = ("vq", self.quantized.loss(config));
                let aux = std::iter::once(vq).chain(routing.aux).chain([used]).collect();
                HostRouting { aux, ..routing }
            }
            None => HostRouting { aux: vec![used], ..self.discrete },
        }
    }
}

impl HostVqMoe {
    /// (1)-(6) without the experts.
    ///
    /// # Errors
    /// Values that are not finite, draws of another shape, a capacity that cannot be used.
    pub fn decide(&self, input: &HostInput<'_>) -> Result<Decision, RouteError> {
        let quantized = quantize(&self.config, input, self.codebook_cd.view())?;
        let continuous = match self.config.mode {
            Mode::Pretrain => Some(self.continuous(input)?),
            Mode::Discrete => None,
        };
        let discrete = self.discrete(&quantized.code_t, input)?;
        let perplexity = self.perplexity(&quantized.code_t, input.padding_t);
        Ok(Decision { quantized, discrete, continuous, perplexity })
    }

    /// Of the tokens that are no padding.
    fn perplexity(&self, code_t: &[usize], padding_t: Option<&[bool]>) -> f64 {
        let code_t1 = ArrayView1::from(code_t).insert_axis(Axis(1));
        let valid_t: Vec<usize> = balance::valid_rows(code_t1, padding_t).into_iter().collect();
        perplexity(usage(&valid_t, self.codebook_cd.nrows()).view())
    }

    /// (1), and (2) without the experts.
    fn continuous(&self, input: &HostInput<'_>) -> Result<Continuous, RouteError> {
        let (gate_2d, bias_2) = self.gate.as_ref().expect("pre-training has a branch gate");
        let gate_t2 = score::softmax(linear(input.x_td, gate_2d, bias_2.as_ref()).view()); // (1)
        let (router_ed, bias_e) = self.router.as_ref().expect("pre-training has a router");
        let logits_te = match self.config.score {
            Score::Linear => linear(input.x_td, router_ed, bias_e.as_ref()),
            Score::Embedding => input.x_td.dot(&unit_rows(router_ed, self.config.embed_eps).t()),
        };
        let choices = Choices::top_k(logits_te.view(), self.config.top_k);
        let aux = vec![("balance", self.balance(&logits_te, &choices, input.padding_t))];
        let gate_tk = score::softmax(choices.gate_tk.view());
        let (t, e) = logits_te.dim();
        let room = room(input.capacity, None, (t, e, self.config.top_k))?;
        let gate_te = score::softmax(logits_te.view());
        let routing = routing(input, choices.with_gates(gate_tk), (logits_te, gate_te), room)?;
        Ok(Continuous { routing: HostRouting { aux, ..routing }, gate_t2 })
    }

    /// (8)
    fn balance(
        &self,
        logits_te: &Array2<f64>,
        choices: &Choices,
        padding_t: Option<&[bool]>,
    ) -> f64 {
        let prob_te = score::softmax((logits_te / self.config.balance_temperature).view());
        let form = AuxForm::Fastmoe; // shares and probabilities over k: E sum f P / k
        LoadBalance::of_valid(prob_te.view(), choices.expert_tk.view(), form, padding_t).loss
    }

    /// (6) without the experts.
    fn discrete(&self, code_t: &[usize], input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let expert_t: Vec<usize> = code_t.iter().map(|&code| self.expert_c[code]).collect();
        let hard = |(t, e): (usize, usize)| f64::from(u8::from(expert_t[t] == e));
        let logits_te = Array2::from_shape_fn((expert_t.len(), self.experts), hard);
        let gate_tk = Array2::ones((expert_t.len(), 1));
        let expert_tk = Array1::from_vec(expert_t).insert_axis(Axis(1));
        let scores = (logits_te.clone(), logits_te);
        routing(input, Choices { expert_tk, gate_tk }, scores, (None, DropOrder::Arrival))
    }

    /// (1)-(7); `expert(e, rows)` is one expert.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn forward(
        &self,
        input: &HostInput<'_>,
        expert: &HostExpert<'_>,
    ) -> Result<Output, RouteError> {
        let h_td = self.normed(self.config.block == Block::Pre, input.x_td);
        let inside = HostInput::new(h_td.view()).draws(input.draws);
        let decision = self.decide(&inside.capacity(input.capacity).padding(input.padding_t))?;
        let u_td = self.normed(self.config.ln_in, decision.quantized.m_td.view());
        let y_td = decision.discrete.plan.apply(u_td.view(), expert);
        let y_discrete_td = self.normed(self.config.ln_out, y_td.view()); // (6)
        let y_continuous_td =
            decision.continuous.as_ref().map(|c| c.routing.plan.apply(h_td.view(), expert)); // (2)
        let y_td = match (&decision.continuous, &y_continuous_td) {
            (Some(Continuous { gate_t2, .. }), Some(y_continuous_td)) => {
                let gate = |branch: usize| gate_t2.column(branch).insert_axis(Axis(1));
                y_continuous_td * &gate(0) + &y_discrete_td * &gate(1) // (7)
            }
            _ => y_discrete_td.clone(),
        };
        let x_out_td = match self.config.block {
            Block::None => None,
            Block::Post => Some(self.normed(true, (&input.x_td + &y_td).view())),
            Block::Pre => Some(&input.x_td + &y_td),
        };
        Ok(Output { decision, y_continuous_td, y_discrete_td, y_td, x_out_td })
    }

    fn normed(&self, on: bool, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
        if on { self.norm.apply(x_td, self.config.ln_eps) } else { x_td.to_owned() }
    }
}

/// `x w^T + b`.
fn linear(x_td: ArrayView2<'_, f64>, w_ed: &Array2<f64>, b_e: Option<&Array1<f64>>) -> Array2<f64> {
    let y_te = x_td.dot(&w_ed.t());
    if let Some(b_e) = b_e { y_te + b_e } else { y_te }
}

/// The routing of these choices under (logits, gates).
fn routing(
    input: &HostInput<'_>,
    choices: Choices,
    (logits_te, gate_te): (Array2<f64>, Array2<f64>),
    room: (Option<usize>, DropOrder),
) -> Result<HostRouting, RouteError> {
    let present_tk = input.present(choices.expert_tk.ncols())?;
    let chosen = Chosen::of_present(choices, present_tk.view(), logits_te.ncols(), room)?;
    let plan = chosen.plan()?;
    Ok(HostRouting { plan, chosen: Some(chosen), logits_te, gate_te, aux: Vec::new() })
}

impl Reference for HostVqMoe {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        Ok(self.decide(input)?.into_routing(&self.config))
    }

    fn layer(
        &self,
        input: &HostInput<'_>,
        expert: &HostExpert<'_>,
    ) -> Result<(Array2<f64>, HostRouting), RouteError> {
        let Output { decision, y_td, .. } = self.forward(input, expert)?;
        Ok((y_td, decision.into_routing(&self.config)))
    }

    /// `sg[x]` and `sg[q]` of (4) and (5).
    fn constants(
        &self,
        input: &HostInput<'_>,
    ) -> Result<Vec<(&'static str, Array2<f64>)>, RouteError> {
        let Quantized { q_td, .. } = quantize(&self.config, input, self.codebook_cd.view())?;
        Ok(vec![(FIXED_TOKENS, input.x_td.to_owned()), (FIXED_CODES, q_td)])
    }
}
