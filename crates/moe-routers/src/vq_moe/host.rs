//! The layer in plain `f64`, in the order of the equations.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` codes, `n` rows of one expert.

use super::{Block, COS_FLOOR, CodeMap, Config, Distance, Input, Mode, Score, reanchor};
use crate::config::ConfigError;
use crate::norm::HostNorm;
use moe_core::{
    AuxForm, Choices, Chosen, DropOrder, HostRouting, RouteError, balance::LoadBalance, score,
    top_k,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use std::collections::BTreeSet;

/// What the quantiser says of the tokens.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// `D` of (3), `[t, c]`.
    pub distance_tc: Array2<f64>,
    /// The nearest code of every token, the lower one in a tie.
    pub code_t: Vec<usize>,
    /// `q`, `[t, d]`.
    pub q_td: Array2<f64>,
    /// `m` of (5), `[t, d]`.
    pub m_td: Array2<f64>,
    /// First term of (4).
    pub codebook_loss: f64,
    /// Second term of (4), without beta.
    pub commitment_loss: f64,
}

impl Quantized {
    /// (4)
    pub fn loss(&self, config: &Config) -> f64 {
        self.codebook_loss + config.beta * self.commitment_loss
    }
}

/// (3)-(5)
pub fn quantize(
    config: &Config,
    x_td: ArrayView2<'_, f64>,
    codebook_cd: ArrayView2<'_, f64>,
) -> Quantized {
    let distance_tc = distances(config.distance, x_td, codebook_cd);
    let nearest = |row: ArrayView1<'_, f64>| top_k(row.iter().map(|d| -d), 1)[0];
    let code_t: Vec<usize> = distance_tc.rows().into_iter().map(nearest).collect();
    let q_td = codebook_cd.select(Axis(0), &code_t);
    let gap_td = &q_td - &x_td;
    let m_td = match config.input {
        Input::CodeMix => &x_td * (1.0 - config.mix_rate) + &gap_td * config.mix_rate,
        Input::Quantized => &x_td + &gap_td,
    };
    let mean_square = gap_td.mapv(|v| v * v).mean().unwrap_or(0.0);
    let (codebook_loss, commitment_loss) = (mean_square, mean_square); // they differ in gradients
    Quantized { distance_tc, code_t, q_td, m_td, codebook_loss, commitment_loss }
}

fn distances(
    distance: Distance,
    x_td: ArrayView2<'_, f64>,
    codebook_cd: ArrayView2<'_, f64>,
) -> Array2<f64> {
    let square = |rows: ArrayView2<'_, f64>| rows.map_axis(Axis(1), |row| row.dot(&row));
    match distance {
        Distance::L2 => {
            let dot_tc = x_td.dot(&codebook_cd.t());
            square(x_td).insert_axis(Axis(1)) + &square(codebook_cd) - dot_tc * 2.0
        }
        Distance::Cos => 1.0 - score::cosine(x_td, codebook_cd, COS_FLOOR),
    }
}

/// Share of the tokens that have each code, `[c]`.
pub fn usage(code_t: &[usize], codes: usize) -> Array1<f64> {
    let mut usage_c = Array1::zeros(codes);
    for &code in code_t {
        usage_c[code] += 1.0 / code_t.len() as f64;
    }
    usage_c
}

/// Number of codes in use, as the exponential of their entropy; the epsilon is the release's.
pub fn perplexity(usage_c: ArrayView1<'_, f64>) -> f64 {
    (-usage_c.mapv(|p| p * (p + 1e-10).ln()).sum()).exp()
}

/// The layer's parameters besides its experts.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Codes, `[c, d]`.
    pub codebook_cd: Array2<f64>,
    /// Expert embeddings or the router's matrix, `[e, d]`, and its bias, `[e]`; unused without the
    /// continuous branch.
    pub router: Option<(Array2<f64>, Option<Array1<f64>>)>,
    /// Branch gate, `[2, d]`, and its bias, `[2]`; unused without the continuous branch.
    pub gate: Option<(Array2<f64>, Option<Array1<f64>>)>,
    /// The norm, used wherever there is one.
    pub norm: HostNorm,
    /// Number of experts.
    pub experts: usize,
}

/// The continuous branch and its gates.
#[derive(Debug)]
pub struct Continuous {
    /// What its router decided.
    pub routing: HostRouting,
    /// Its output, `[t, d]`.
    pub y_td: Array2<f64>,
    /// Branch gates, `[t, 2]`.
    pub gate_t2: Array2<f64>,
}

/// A layer's results.
#[derive(Debug)]
pub struct Output {
    /// (3)-(5)
    pub quantized: Quantized,
    /// The discrete branch as a routing with weight 1.
    pub discrete: HostRouting,
    /// Its output, `[t, d]`.
    pub y_discrete_td: Array2<f64>,
    /// Absent in discrete mode.
    pub continuous: Option<Continuous>,
    /// (7), `[t, d]`.
    pub y_td: Array2<f64>,
    /// The stream behind the block, where there is one, `[t, d]`.
    pub x_out_td: Option<Array2<f64>>,
}

/// (1)-(7); `expert(e, rows)` is one expert.
///
/// # Errors
/// If the codebook does not fit the experts, or values are not finite.
pub fn layer(
    config: &Config,
    with: &Parameters,
    x_td: ArrayView2<'_, f64>,
    expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
) -> Result<Output, VqError> {
    let normed = |x_td: ArrayView2<'_, f64>| with.norm.apply(x_td, config.ln_eps);
    let h_td = if config.block == Block::Pre { normed(x_td) } else { x_td.to_owned() };
    let quantized = quantize(config, h_td.view(), with.codebook_cd.view());
    let (discrete, y_discrete_td) = discrete(config, with, &quantized, &expert)?;
    let continuous = match config.mode {
        Mode::Pretrain => Some(continuous(config, with, h_td.view(), &expert)?),
        Mode::Discrete => None,
    };
    let y_td = match &continuous {
        Some(c) => {
            let gate = |branch: usize| c.gate_t2.column(branch).insert_axis(Axis(1));
            &c.y_td * &gate(0) + &y_discrete_td * &gate(1)
        }
        None => y_discrete_td.clone(),
    };
    let x_out_td = match config.block {
        Block::None => None,
        Block::Post => Some(normed((&x_td + &y_td).view())),
        Block::Pre => Some(&x_td + &y_td),
    };
    Ok(Output { quantized, discrete, y_discrete_td, continuous, y_td, x_out_td })
}

/// Why a layer cannot run.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VqError {
    /// A setting does not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Routing failed.
    #[error(transparent)]
    Route(#[from] RouteError),
}

fn routing(logits_te: Array2<f64>, choices: Choices) -> Result<HostRouting, VqError> {
    let gate_te = score::softmax(logits_te.view());
    let room = (None, DropOrder::Arrival);
    let chosen = Chosen::new(choices, logits_te.ncols(), room).map_err(RouteError::from)?;
    let plan = chosen.plan().map_err(RouteError::from)?;
    Ok(HostRouting { plan, chosen: Some(chosen), logits_te, gate_te, aux: Vec::new() })
}

/// `x w^T + b`.
fn linear(x_td: ArrayView2<'_, f64>, w_ed: &Array2<f64>, b_e: Option<&Array1<f64>>) -> Array2<f64> {
    let y_te = x_td.dot(&w_ed.t());
    if let Some(b_e) = b_e { y_te + b_e } else { y_te }
}

/// (1)-(2)
fn continuous(
    config: &Config,
    with: &Parameters,
    x_td: ArrayView2<'_, f64>,
    expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
) -> Result<Continuous, VqError> {
    let (gate_2d, bias_2) = with.gate.as_ref().expect("pre-training has a branch gate");
    let gate_t2 = score::softmax(linear(x_td, gate_2d, bias_2.as_ref()).view()); // (1)
    let (router_ed, bias_e) = with.router.as_ref().expect("pre-training has a router");
    let logits_te = match config.score {
        Score::Linear => linear(x_td, router_ed, bias_e.as_ref()),
        Score::Embedding => x_td.dot(&unit_rows(router_ed, config.embed_eps).t()),
    };
    let choices = Choices::top_k(logits_te.view(), config.top_k);
    let gate_tk = score::softmax(choices.gate_tk.view());
    let routing = routing(logits_te, choices.with_gates(gate_tk))?;
    Ok(Continuous { y_td: routing.plan.apply(x_td, expert), routing, gate_t2 })
}

/// Rows over their length, or over `floor` where they are shorter.
fn unit_rows(w_ed: &Array2<f64>, floor: f64) -> Array2<f64> {
    let length_e = w_ed.map_axis(Axis(1), |row| row.dot(&row).sqrt().max(floor));
    w_ed / &length_e.insert_axis(Axis(1))
}

/// (6)
fn discrete(
    config: &Config,
    with: &Parameters,
    quantized: &Quantized,
    expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
) -> Result<(HostRouting, Array2<f64>), VqError> {
    let expert_t =
        experts_of(config.code_map, &quantized.code_t, with.codebook_cd.nrows(), with.experts)?;
    let tokens = expert_t.len();
    let hard = |(t, e): (usize, usize)| f64::from(u8::from(expert_t[t] == e));
    let logits_te = Array2::from_shape_fn((tokens, with.experts), hard);
    let expert_tk = Array1::from_vec(expert_t).insert_axis(Axis(1));
    let routing = routing(logits_te, Choices { expert_tk, gate_tk: Array2::ones((tokens, 1)) })?;
    let norm = |on: bool, x_td: Array2<f64>| {
        if on { with.norm.apply(x_td.view(), config.ln_eps) } else { x_td }
    };
    let u_td = norm(config.ln_in, quantized.m_td.clone());
    let y_td = routing.plan.apply(u_td.view(), expert);
    Ok((routing, norm(config.ln_out, y_td)))
}

/// The expert of every token's code.
///
/// # Errors
/// If the codebook does not fit the experts.
pub fn experts_of(
    map: CodeMap,
    code_t: &[usize],
    codes: usize,
    experts: usize,
) -> Result<Vec<usize>, ConfigError> {
    let expert_c = map.expert_c(codes, experts)?;
    Ok(code_t.iter().map(|&code| expert_c[code]).collect())
}

/// New usage, rate and codes of a codebook after a step whose tokens had `code_t`.
pub fn reanchored(
    decay: f64,
    codebook_cd: ArrayView2<'_, f64>,
    code_t: &[usize],
    usage_c: ArrayView1<'_, f64>,
    anchor_cd: ArrayView2<'_, f64>,
) -> (Array1<f64>, Array1<f64>, Array2<f64>) {
    let codes = codebook_cd.nrows();
    let share_c = usage(code_t, codes);
    let usage_c = ndarray::Zip::from(&usage_c)
        .and(&share_c)
        .map_collect(|&usage, &share| reanchor::usage(decay, usage, share));
    let rate_c = usage_c.mapv(|usage| reanchor::rate(decay, usage, codes));
    let rate_c1 = rate_c.view().insert_axis(Axis(1));
    let codebook_cd = &codebook_cd * &(1.0 - &rate_c1) + &anchor_cd * &rate_c1;
    (usage_c, rate_c, codebook_cd)
}

/// `E sum_e f_e P_e` over softmax(logits / temperature), `f` the share of all choices; the release
/// divides it by k.
pub fn balance_terms(
    logits_te: ArrayView2<'_, f64>,
    expert_tk: ArrayView2<'_, usize>,
    temperature: f64,
    over_k: bool,
) -> LoadBalance {
    let prob_te = score::softmax((&logits_te / temperature).view());
    let mut balance = LoadBalance::of(prob_te.view(), expert_tk, AuxForm::DivK);
    if over_k {
        balance.loss /= expert_tk.ncols() as f64;
    }
    balance
}

/// Share of tokens that have the same set of experts in two routings.
pub fn consistency(before_tk: ArrayView2<'_, usize>, now_tk: ArrayView2<'_, usize>) -> f64 {
    let set = |row: ArrayView1<'_, usize>| row.iter().copied().collect::<BTreeSet<_>>();
    let pairs = before_tk.rows().into_iter().zip(now_tk.rows());
    pairs.filter(|(a, b)| set(*a) == set(*b)).count() as f64 / before_tk.nrows() as f64
}

/// Mean |cosine| of different rows: 1 if all are parallel.
pub fn collapse(y_nd: ArrayView2<'_, f64>) -> f64 {
    let n = y_nd.nrows();
    let cos_nn = score::cosine(y_nd, y_nd, COS_FLOOR);
    let all = cos_nn.mapv(f64::abs).sum() - cos_nn.diag().mapv(f64::abs).sum();
    all / (n * (n - 1)) as f64
}
