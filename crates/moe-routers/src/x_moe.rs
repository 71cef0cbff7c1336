//! X-MoE: routing on a low-dimensional hypersphere.
//!
//! *On the Representation Collapse of Sparse Mixture of Experts*, Chi, Dong, Huang et al., 2022,
//! arXiv 2204.09179.
//!
//! ```text
//! p   = proj h                                        d_e = E/2 dimensions           (5)
//! s_i = p . e_i / (max(|p|, eps) max(|e_i|, eps))     cosine in [-1, 1]              (6)
//! T   = top-k of s                                    the temperature has no say     (7)
//! g   = softmax(s / tau) over all E, or sigmoid(s / tau); not renormalised           (8)
//! L_bal = E sum_i t_i P_i,  P_i = mean_t softmax(s / tau0)_i                         (9)
//! ```
//!
//! Numbers in brackets count the steps of the method; the paper's own numbering could not be
//! checked.

mod gate;
mod reference;

use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    resolve, to_settings,
};
use crate::convert::{to_host, to_host1};
use crate::losses;
use crate::params::Params;
use crate::router::{Aux, Chosen, Dims, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{AuxForm, Reference, RouteError};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "x-moe",
    title: "On the Representation Collapse of Sparse Mixture of Experts",
    authors: "Chi et al. 2022",
    arxiv: "2204.09179",
    idea: "Tokens and expert embeddings meet on a low-dimensional hypersphere with a learned temperature, so that routing no longer pulls hidden states towards the expert embeddings.",
    equations: &[
        ("(5)-(6)", "XMoe::scores"),
        ("(7)-(8)", "gate::choose"),
        ("(9)", "losses::load_balance"),
    ],
    deviations: &[
        "the released code (presets `reference*`, torchscale) does not normalise the token, has no temperature, rescales embeddings to norm 1.5 before every forward pass, and projects to 16 dimensions",
        "preset `tutel` is Tutel's cosine gate: projection to 256 dimensions with bias, theta = ln(1/tau) learned from ln 2",
        "the learned temperature is stored as theta = ln(1/tau), clamped at ln 100, the robust form; the paper publishes neither initial value nor clamp, tau starts at tau0",
        "the random second-choice policy of the released code draws in training only",
    ],
    unverified: &["weight 0.01 of the balance loss in pre-training"],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    config: |settings| Ok(Box::new(resolve::<Config>(settings)?)),
};

/// Name of the draw of the random second-choice policy, uniform on `[0, 1)`, `[g, t, 1]`.
pub const SECOND: &str = "second_uniform";

/// `theta` at which the temperature is clamped: tau = 1/100.
const MAX_THETA: f64 = 4.605_170_185_988_092;

/// How a score becomes a weight (8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each score.
    Sigmoid,
    /// Softmax over the chosen experts.
    SoftmaxTopk,
}

/// Whether the k gates are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeGates {
    /// They are not.
    None,
    /// Before choices are dropped.
    BeforeDrop,
}

/// Which second choices queue at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondPolicy {
    /// All.
    All,
    /// One with gate `g` queues iff `2 g > u`, `u ~ U(0, 1)`.
    Random,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Width of the hypersphere, `d_e`; `null` is half the number of experts, at least 2.
    pub width: Option<usize>,
    /// Whether the projection has a bias.
    pub bias: bool,
    /// How a score becomes a weight.
    pub gate: Gate,
    /// Temperature `tau`, or its initial value.
    pub temperature: f64,
    /// Whether the temperature is learned.
    pub learn_temperature: bool,
    /// Whether the token's projection is normalised (6).
    pub normalize_token: bool,
    /// Floor of both norms (6).
    pub eps: f64,
    /// Norm to which embeddings are rescaled in place before every forward pass.
    pub emb_rescale_norm: Option<f64>,
    /// Whether scores that are not finite are replaced by the smallest finite one.
    pub make_finite: bool,
    /// Whether the gates are divided by their sum.
    pub normalize_gates: NormalizeGates,
    /// Which second choices queue.
    pub second_policy: SecondPolicy,
    /// Temperature of the balance loss (9).
    pub tau0: f64,
    /// Weight of the balance loss.
    pub balance_weight: f64,
}

impl Config {
    fn paper(gate: Gate, tau0: f64) -> Self {
        Self {
            top_k: 1,
            width: None,
            bias: false,
            gate,
            temperature: tau0,
            learn_temperature: true,
            normalize_token: true,
            eps: 1e-4,
            emb_rescale_norm: None,
            make_finite: false,
            normalize_gates: NormalizeGates::None,
            second_policy: SecondPolicy::All,
            tau0,
            balance_weight: 0.01,
        }
    }

    fn torchscale(top_k: usize) -> Self {
        let (normalize_gates, second_policy) = match top_k {
            1 => (NormalizeGates::None, SecondPolicy::All),
            _ => (NormalizeGates::BeforeDrop, SecondPolicy::Random),
        };
        Self {
            top_k,
            width: Some(16),
            learn_temperature: false,
            normalize_token: false,
            emb_rescale_norm: Some(1.5),
            make_finite: true,
            normalize_gates,
            second_policy,
            ..Self::paper(Gate::Softmax, 1.0)
        }
    }
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] =
        &["paper", "paper_sigmoid", "reference", "reference_top1", "tutel"];

    fn preset(name: &str) -> Self {
        match name {
            "paper_sigmoid" => Self::paper(Gate::Sigmoid, 0.07),
            "reference" => Self::torchscale(2),
            "reference_top1" => Self::torchscale(1),
            "tutel" => {
                let paper = Self::paper(Gate::Softmax, 0.5);
                Self { width: Some(256), bias: true, eps: 1e-12, ..paper }
            }
            _ => Self::paper(Gate::Softmax, 0.3),
        }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        if self.width == Some(0) {
            return Err(ConfigError::setting("width", "0 must be at least 1"));
        }
        check_positive("temperature", self.temperature)?;
        check_positive("tau0", self.tau0)?;
        check_positive("eps", self.eps)?;
        self.emb_rescale_norm.map_or(Ok(()), |n| check_positive("emb_rescale_norm", n))?;
        check_weight("balance_weight", self.balance_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let width = self.width.map_or((dims.experts / 2).max(2), |w| w as i64);
        let theta = (1.0 / self.temperature).ln();
        Box::new(XMoe {
            proj_pd: params.matrix("proj", &[width, dims.width], (1.0 / dims.width as f64).sqrt()),
            bias_p: self.bias.then(|| params.constant("bias", &[width], 0.0)),
            emb_ep: params.matrix("emb", &[dims.experts, width], (1.0 / width as f64).sqrt()),
            theta: self.learn_temperature.then(|| params.constant("theta", &[1], theta)),
            config: self.clone(),
        })
    }
}

/// The trainable router. Axis `p` is the hypersphere's.
#[derive(Debug)]
struct XMoe {
    proj_pd: Tensor,
    bias_p: Option<Tensor>,
    emb_ep: Tensor,
    theta: Option<Tensor>,
    config: Config,
}

impl XMoe {
    /// Rescales the embeddings in place; neither gradient nor optimiser sees it as an update.
    fn rescale(&self) {
        let Some(norm) = self.config.emb_rescale_norm else { return };
        let mut emb_ep = self.emb_ep.detach();
        let norm_e1 = norm_of(&emb_ep);
        let _ = emb_ep.g_mul_(&(norm_e1.reciprocal() * norm));
    }

    /// (5)-(6), `[g, t, d] -> [g, t, e]`.
    fn scores(&self, x_gtd: &Tensor) -> Tensor {
        let eps = self.config.eps;
        let mut p_gtp = x_gtd.linear(&self.proj_pd, self.bias_p.as_ref());
        if self.config.normalize_token {
            p_gtp = &p_gtp / norm_of(&p_gtp).clamp_min(eps);
        }
        let emb_ep = &self.emb_ep / norm_of(&self.emb_ep).clamp_min(eps);
        let score_gte = p_gtp.matmul(&emb_ep.tr());
        if self.config.make_finite { gate::make_finite(&score_gte) } else { score_gte }
    }

    /// `tau`, a scalar with its graph if it is learned.
    fn temperature(&self, like: &Tensor) -> Tensor {
        match &self.theta {
            Some(theta) => theta.clamp_max(MAX_THETA).neg().exp(),
            None => Tensor::full([1], self.config.temperature, (like.kind(), like.device())),
        }
    }
}

/// Norm along the last axis, which stays with length 1.
fn norm_of(v: &Tensor) -> Tensor {
    v.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)
}

impl Router for XMoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        self.rescale();
        let score_gte = self.scores(x_gtd);
        let (_, t, e) = axes3(&score_gte);
        let logits_gte = &score_gte / self.temperature(&score_gte);
        let choices = gate::choose(&self.config, &score_gte, &logits_gte, cx);
        let balance_gte = (&score_gte / self.config.tau0).softmax(-1, score_gte.kind());
        let first_gt1 = choices.expert_gtk.narrow(-1, 0, 1);
        let value = losses::load_balance(&balance_gte, &first_gt1, AuxForm::SumK); // (9)
        let room = room(cx.capacity, None, (t as usize, e as usize, self.config.top_k))?;
        let chosen = Chosen { choices, experts: e, room };
        Ok(Routing {
            plan: chosen.plan(),
            chosen: Some(chosen),
            gate_gte: logits_gte.detach().softmax(-1, logits_gte.kind()),
            logits_gte,
            aux: vec![Aux { name: "balance", weight: self.config.balance_weight, value }],
        })
    }

    fn reference(&self) -> Box<dyn Reference> {
        self.rescale();
        let theta = self.theta.as_ref().map(|theta| theta.double_value(&[0]));
        Box::new(reference::Host {
            proj_pd: to_host(&self.proj_pd),
            bias_p: self.bias_p.as_ref().map(to_host1),
            emb_ep: to_host(&self.emb_ep),
            temperature: theta
                .map_or(self.config.temperature, |theta| (-theta.min(MAX_THETA)).exp()),
            config: self.config.clone(),
        })
    }
}
