//! The layer on libtorch, with the stop-gradients of the equations.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

use super::host::VqError;
use super::{Block, COS_FLOOR, Config, Distance, Input, Mode, Score};
use crate::norm::TorchNorm;
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Routing};
use moe_core::DropOrder;
use tch::{Kind, Tensor};

/// What the quantiser says of the tokens; any axes before the last.
#[derive(Debug)]
pub struct Quantized {
    /// `D` of (3), `[t, c]`.
    pub distance_tc: Tensor,
    /// The nearest code of every token, the lower one in a tie, int64, `[t]`.
    pub code_t: Tensor,
    /// `q`, `[t, d]`, with the codebook's graph.
    pub q_td: Tensor,
    /// `m` of (5), `[t, d]`, with the token's graph.
    pub m_td: Tensor,
    /// First term of (4): it moves codes.
    pub codebook_loss: Tensor,
    /// Second term of (4), without beta: it moves tokens.
    pub commitment_loss: Tensor,
}

impl Quantized {
    /// (4)
    pub fn loss(&self, config: &Config) -> Tensor {
        &self.codebook_loss + &self.commitment_loss * config.beta
    }
}

/// (3)-(5)
pub fn quantize(config: &Config, x_td: &Tensor, codebook_cd: &Tensor) -> Quantized {
    let distance_tc = distances(config.distance, x_td, codebook_cd);
    // A stable sort, because `argmin` does not promise the lower index in a tie.
    let code_t = distance_tc.detach().argsort_stable(true, -1, false).select(-1, 0);
    let q_td = codebook_cd.index_select(0, &code_t);
    let gap_td = (&q_td - x_td).detach();
    let m_td = match config.input {
        Input::CodeMix => x_td * (1.0 - config.mix_rate) + gap_td * config.mix_rate,
        Input::Quantized => x_td + gap_td,
    };
    let codebook_loss = (&q_td - x_td.detach()).square().mean(None);
    let commitment_loss = (q_td.detach() - x_td).square().mean(None);
    Quantized { distance_tc, code_t, q_td, m_td, codebook_loss, commitment_loss }
}

fn distances(distance: Distance, x_td: &Tensor, codebook_cd: &Tensor) -> Tensor {
    match distance {
        Distance::L2 => {
            let square = |rows: &Tensor, keep| rows.square().sum_dim_intlist(-1, keep, None);
            square(x_td, true) + square(codebook_cd, false) - x_td.matmul(&codebook_cd.tr()) * 2.0
        }
        Distance::Cos => {
            1.0 - unit_rows(x_td, COS_FLOOR).matmul(&unit_rows(codebook_cd, COS_FLOOR).tr())
        }
    }
}

/// Rows over their length, or over `floor` where they are shorter.
fn unit_rows(w_ed: &Tensor, floor: f64) -> Tensor {
    w_ed / w_ed.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true).clamp_min(floor)
}

/// Share of the tokens that have each code, `[c]`.
pub fn usage(code_t: &Tensor, codes: i64, kind: Kind) -> Tensor {
    code_t.bincount(None::<Tensor>, codes).to_kind(kind) / code_t.numel() as f64
}

/// Number of codes in use, as the exponential of their entropy; the epsilon is the release's.
pub fn perplexity(usage_c: &Tensor) -> Tensor {
    (usage_c * (usage_c + 1e-10).log()).sum(None::<Kind>).neg().exp()
}

/// The layer's parameters besides its experts; as those of the plain form.
#[derive(Debug)]
pub struct Parameters {
    /// Codes, `[c, d]`.
    pub codebook_cd: Tensor,
    /// Expert embeddings or the router's matrix, `[e, d]`, and its bias, `[e]`.
    pub router: Option<(Tensor, Option<Tensor>)>,
    /// Branch gate, `[2, d]`, and its bias, `[2]`.
    pub gate: Option<(Tensor, Option<Tensor>)>,
    /// The norm, used wherever there is one.
    pub norm: TorchNorm,
    /// Number of experts.
    pub experts: i64,
}

/// The continuous branch and its gates.
#[derive(Debug)]
pub struct Continuous {
    /// What its router decided, one group.
    pub routing: Routing,
    /// Its output, `[t, d]`.
    pub y_td: Tensor,
    /// Branch gates, `[t, 2]`.
    pub gate_t2: Tensor,
}

/// A layer's results.
#[derive(Debug)]
pub struct Output {
    /// (3)-(5)
    pub quantized: Quantized,
    /// The discrete branch as a routing with weight 1, one group.
    pub discrete: Routing,
    /// Its output, `[t, d]`.
    pub y_discrete_td: Tensor,
    /// Absent in discrete mode.
    pub continuous: Option<Continuous>,
    /// (7), `[t, d]`.
    pub y_td: Tensor,
    /// The stream behind the block, where there is one, `[t, d]`.
    pub x_out_td: Option<Tensor>,
}

/// (1)-(7); `expert(e, rows)` is one expert.
///
/// # Errors
/// If the codebook does not fit the experts.
pub fn layer(
    config: &Config,
    with: &Parameters,
    x_td: &Tensor,
    expert: impl Fn(usize, &Tensor) -> Tensor,
) -> Result<Output, VqError> {
    let normed = |x_td: &Tensor| with.norm.apply(x_td, config.ln_eps);
    let h_td = if config.block == Block::Pre { normed(x_td) } else { x_td.shallow_clone() };
    let quantized = quantize(config, &h_td, &with.codebook_cd);
    let (discrete, y_discrete_td) = discrete(config, with, &quantized, &expert)?;
    let continuous = match config.mode {
        Mode::Pretrain => Some(continuous(config, with, &h_td, &expert)),
        Mode::Discrete => None,
    };
    let y_td = match &continuous {
        Some(c) => {
            &c.y_td * c.gate_t2.narrow(-1, 0, 1) + &y_discrete_td * c.gate_t2.narrow(-1, 1, 1)
        }
        None => y_discrete_td.shallow_clone(),
    };
    let x_out_td = match config.block {
        Block::None => None,
        Block::Post => Some(normed(&(x_td + &y_td))),
        Block::Pre => Some(x_td + &y_td),
    };
    Ok(Output { quantized, discrete, y_discrete_td, continuous, y_td, x_out_td })
}

fn routing(logits_gte: Tensor, choices: ChoicesGtk, experts: i64) -> Routing {
    let chosen = Chosen { choices, experts, room: (None, DropOrder::Arrival) };
    let gate_gte = logits_gte.detach().softmax(-1, logits_gte.kind());
    Routing { plan: chosen.plan(), chosen: Some(chosen), logits_gte, gate_gte, aux: Vec::new() }
}

/// (1)-(2)
fn continuous(
    config: &Config,
    with: &Parameters,
    x_td: &Tensor,
    expert: impl Fn(usize, &Tensor) -> Tensor,
) -> Continuous {
    let (gate_2d, bias_2) = with.gate.as_ref().expect("pre-training has a branch gate");
    let gate_t2 = x_td.linear(gate_2d, bias_2.as_ref()).softmax(-1, x_td.kind()); // (1)
    let (router_ed, bias_e) = with.router.as_ref().expect("pre-training has a router");
    let logits_te = match config.score {
        Score::Linear => x_td.linear(router_ed, bias_e.as_ref()),
        Score::Embedding => x_td.matmul(&unit_rows(router_ed, config.embed_eps).tr()),
    };
    let logits_gte = logits_te.unsqueeze(0);
    let choices = ChoicesGtk::top_k(&logits_gte, config.top_k as i64);
    let gate_gtk = choices.gate_gtk.softmax(-1, x_td.kind());
    let routing = routing(logits_gte, choices.with_gates(gate_gtk), with.experts);
    let y_td = routing.plan.apply(&x_td.unsqueeze(0), expert).squeeze_dim(0);
    Continuous { routing, y_td, gate_t2 }
}

/// (6)
fn discrete(
    config: &Config,
    with: &Parameters,
    quantized: &Quantized,
    expert: impl Fn(usize, &Tensor) -> Tensor,
) -> Result<(Routing, Tensor), VqError> {
    let codes = with.codebook_cd.size()[0] as usize;
    let expert_c = config.code_map.expert_c(codes, with.experts as usize)?;
    let expert_c: Vec<i64> = expert_c.into_iter().map(|e| e as i64).collect();
    let expert_c = Tensor::from_slice(&expert_c).to_device(quantized.code_t.device());
    let expert_gtk = expert_c.index_select(0, &quantized.code_t).view([1, -1, 1]);
    let m_gtd = quantized.m_td.unsqueeze(0);
    let gate_gtk = m_gtd.narrow(-1, 0, 1).detach().ones_like();
    let logits_gte = expert_gtk.squeeze_dim(-1).one_hot(with.experts).to_kind(m_gtd.kind());
    let routing = routing(logits_gte, ChoicesGtk::new(expert_gtk, gate_gtk), with.experts);
    let norm = |on: bool, x: Tensor| if on { with.norm.apply(&x, config.ln_eps) } else { x };
    let y_gtd = routing.plan.apply(&norm(config.ln_in, m_gtd), expert);
    Ok((routing, norm(config.ln_out, y_gtd).squeeze_dim(0)))
}

/// New usage, rate and codes of a codebook after a step whose tokens had `code_t`.
pub fn reanchored(
    decay: f64,
    codebook_cd: &Tensor,
    code_t: &Tensor,
    usage_c: &Tensor,
    anchor_cd: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let codes = codebook_cd.size()[0];
    let share_c = usage(code_t, codes, usage_c.kind());
    let usage_c = usage_c * decay + share_c * (1.0 - decay);
    let rate_c = (&usage_c * (-10.0 * codes as f64 / (1.0 - decay)) - 1e-3).exp();
    let rate_c1 = rate_c.unsqueeze(-1);
    let codebook_cd = codebook_cd * (1.0 - &rate_c1) + anchor_cd * rate_c1;
    (usage_c, rate_c, codebook_cd)
}

/// The terms of a balance loss, and the loss.
#[derive(Debug)]
pub struct Balance {
    /// Share of all choices, without a graph, `[e]`.
    pub fraction_e: Tensor,
    /// Mean probability, `[e]`.
    pub mean_prob_e: Tensor,
    /// The loss, a scalar.
    pub loss: Tensor,
}

/// `E sum_e f_e P_e` over softmax(logits / temperature); the release divides it by k.
pub fn balance_terms(
    logits_te: &Tensor,
    expert_tk: &Tensor,
    temperature: f64,
    over_k: bool,
) -> Balance {
    let (experts, k) = (logits_te.size()[1], expert_tk.size()[1]);
    let prob_te = (logits_te / temperature).softmax(-1, logits_te.kind());
    let fraction_e = usage(&expert_tk.flatten(0, -1), experts, logits_te.kind());
    let mean_prob_e = prob_te.mean_dim(0, false, None);
    let scale = experts as f64 / if over_k { k as f64 } else { 1.0 };
    let loss = (&fraction_e * &mean_prob_e).sum(None::<Kind>) * scale;
    Balance { fraction_e, mean_prob_e, loss }
}
