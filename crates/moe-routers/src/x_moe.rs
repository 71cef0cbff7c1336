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

mod balance;
mod collapse;
mod config;
mod gate;
mod reference;

pub use balance::{Balance, HostBalance, balance, balance_host};
pub use collapse::{Collapse, TensorCollapse};
pub use config::{BalanceForm, Capacity, Config, Gate, NormalizeGates, PaddingMode, SecondPolicy};
pub use gate::probabilities;
pub use reference::Host;

use crate::config::{Preset, resolve};
use crate::convert::{to_host, to_host1};
use crate::params::Params;
use crate::router::{Aux, Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{Reference, RouteError};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "x-moe",
    title: "On the Representation Collapse of Sparse Mixture of Experts",
    authors: "Chi et al. 2022",
    arxiv: "2204.09179",
    idea: "Tokens and expert embeddings are compared by their cosine in few dimensions, under a learned temperature.\n\
        Dot-product routing pulls hidden states into the space that the e expert embeddings span: representation collapse.\n\
        The temperature makes the gate sharper or softer; it does not change the choice.\n\
        Routing is meant to leave hidden states more of their own dimensions.",
    state: "parameters: projection [p, d], expert embeddings [e, p], temperature [1] (not in `reference*`), bias [p] in `tutel`; p = e/2 unless `width` sets it",
    cost: "k expert calls; (d + e) p multiply-adds in the place of W x; two softmaxes over e, one of them for the loss",
    equations: &[
        ("(5)-(6)", "XMoe::scores"),
        ("(7)-(8)", "gate::choose"),
        ("(9)", "balance::balance"),
        ("capacity of the release", "config::Capacity"),
        ("collapse identity", "collapse::Collapse"),
    ],
    deviations: &[
        "the released code (presets `reference*`, torchscale) does not normalise the token, has no temperature, rescales embeddings to norm 1.5 before every forward pass, and projects to 16 dimensions",
        "preset `tutel` is Tutel's cosine gate: projection to 256 dimensions with bias, theta = ln(1/tau) learned from ln 2",
        "the learned temperature is stored as theta = ln(1/tau), so that it stays above 0; it acts as at least 1e-4, or 1/100 where `theta` is given (Tutel's clamp at ln 100); the paper publishes neither initial value nor clamp, tau starts at tau0",
        "an embedding of length zero stays zero when it is rescaled, where the release would divide by zero",
        "the paper has no capacity limit; the rule of the release is `Capacity`, whose rows go into the key `capacity`",
        "the random second-choice policy of the released code draws in training only",
    ],
    unverified: &["weight 0.01 of the balance loss in pre-training"],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the draw of the random second-choice policy, uniform on `[0, 1)`, `[g, t, 1]`.
pub const SECOND: &str = "second_uniform";

/// The trainable router. Axis `p` is the hypersphere's.
#[derive(Debug)]
pub struct XMoe {
    proj_pd: Tensor,
    bias_p: Option<Tensor>,
    emb_ep: Tensor,
    theta: Option<Tensor>,
    config: Config,
}

/// (5)-(6) of all tokens, with their graph.
#[derive(Debug)]
pub struct Scored {
    /// Tokens on the hypersphere's space, before they are normalised, `[g, t, p]`.
    pub projected_gtp: Tensor,
    /// Scores before the temperature, `[g, t, e]`.
    pub score_gte: Tensor,
}

impl XMoe {
    /// A router whose parameters are `proj`, `bias?`, `emb` and `theta?` below `params`.
    pub fn new(config: &Config, params: &Params<'_>, dims: Dims) -> Self {
        let width = config.width.map_or((dims.experts / 2).max(2), |w| w as i64);
        let theta = || params.constant("theta", &[1], -config.tau().ln());
        Self {
            proj_pd: params.matrix("proj", &[width, dims.width], (1.0 / dims.width as f64).sqrt()),
            bias_p: config.bias.then(|| params.constant("bias", &[width], 0.0)),
            emb_ep: params.matrix("emb", &[dims.experts, width], (1.0 / width as f64).sqrt()),
            theta: config.learn_temperature.then(theta),
            config: config.clone(),
        }
    }

    /// Rescales the embeddings in place, which [`Router::route`] does first; neither gradient nor
    /// optimiser sees it as an update.
    pub fn rescale(&self) {
        let Some(norm) = self.config.emb_rescale_norm else { return };
        let mut emb_ep = self.emb_ep.detach();
        let norm_e1 = norm_of(&emb_ep).clamp_min(f64::MIN_POSITIVE);
        let _ = emb_ep.g_mul_(&(norm_e1.reciprocal() * norm));
    }

    /// The present embeddings, `[e, p]`.
    pub fn embeddings(&self) -> Tensor {
        self.emb_ep.shallow_clone()
    }

    /// (5)-(6), of `[g, t, d]`, with the present embeddings.
    pub fn scores(&self, x_gtd: &Tensor) -> Scored {
        let eps = self.config.eps;
        let projected_gtp = x_gtd.linear(&self.proj_pd, self.bias_p.as_ref());
        let p_gtp = if self.config.normalize_token {
            &projected_gtp / norm_of(&projected_gtp).clamp_min(eps)
        } else {
            projected_gtp.shallow_clone()
        };
        let emb_ep = &self.emb_ep / norm_of(&self.emb_ep).clamp_min(eps);
        let score_gte = p_gtp.matmul(&emb_ep.tr());
        let score_gte =
            if self.config.make_finite { gate::make_finite(&score_gte) } else { score_gte };
        Scored { projected_gtp, score_gte }
    }

    /// `tau`, of one value, with its graph if it is learned.
    pub fn temperature(&self) -> Tensor {
        match &self.theta {
            Some(theta) => theta.clamp_max(self.config.max_theta()).neg().exp(),
            None => {
                let options = (self.emb_ep.kind(), self.emb_ep.device());
                Tensor::full([1], self.config.tau(), options)
            }
        }
    }

    /// The same rule in host arithmetic, with a copy of the present parameters, rescaled.
    pub fn host(&self) -> Host {
        self.rescale();
        Host {
            proj_pd: to_host(&self.proj_pd),
            bias_p: self.bias_p.as_ref().map(to_host1),
            emb_ep: to_host(&self.emb_ep),
            temperature: self.temperature().double_value(&[0]),
            config: self.config.clone(),
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
        let Scored { score_gte, .. } = self.scores(x_gtd);
        let (_, t, e) = axes3(&score_gte);
        let logits_gte = &score_gte / self.temperature();
        let choices = gate::choose(&self.config, &score_gte, &logits_gte, cx);
        let first_gt = choices.expert_gtk.select(-1, 0);
        let value = balance(&self.config, &score_gte, &first_gt, cx.padding_gt).loss; // (9)
        let room = self.config.room(cx.capacity, (t as usize, e as usize))?;
        let chosen = Chosen { choices, experts: e, room };
        Ok(Routing {
            plan: gate::plan(&self.config, &chosen),
            chosen: Some(chosen),
            gate_gte: logits_gte.detach().softmax(-1, logits_gte.kind()),
            logits_gte,
            aux: vec![Aux { name: "balance", weight: self.config.balance_weight, value }],
        })
    }

    fn takes_padding(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(self.host())
    }
}
