//! Noisy top-k gating.
//!
//! *Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer*, Shazeer,
//! Mirhoseini, Maziarz et al., 2017, arXiv 1701.06538.
//!
//! ```text
//! h = x Wg,  std = softplus(x Wn) + 1e-2,  H = h + std N(0, 1)      noise in training only  (4)
//! T = top-k of H,  G(x) = softmax of H over T                                               (3), (5)
//! Importance = sum_x G(x),       L_importance = w CV(Importance)^2                          (6), (7)
//! P(x, e) = Phi((h_e - t) / std_e),  t = the k-th largest of the other H                    (8), (9)
//! Load = sum_x P(x, .),          L_load = w CV(Load)^2                                      (10), (11)
//! CV^2 = variance / (mean^2 + 1e-10)
//! ```

mod reference;

pub use reference::{Host, HostTerms};

use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_top_k, check_weight, resolve, to_settings,
};
use crate::convert::to_host;
use crate::losses;
use crate::params::{Init, Params, Role};
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Reference, RouteError};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "noisy-topk",
    title: "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    authors: "Shazeer et al. 2017",
    arxiv: "1701.06538",
    idea: "Learned noise on the logits before top-k, and two losses that even out gates and expected loads.\n\
        A router that picks the best experts trains those, and so picks them again.\n\
        The noise lets other experts be tried, and makes expected loads a smooth function of the logits.\n\
        Both matrices start at zero: at first noise alone decides.",
    state: "parameters: router Wg [e, d], noise Wn [e, d]",
    cost: "k expert calls; in training a second product, Wn x, with e normal draws and e values of the normal distribution function",
    equations: &[
        ("(3)-(5)", "NoisyTopk::terms"),
        ("(6)-(7), (11)", "losses::cv_squared_guarded"),
        ("(8)-(10)", "probability"),
    ],
    deviations: &[
        "the floor 1e-2 of the deviation and the guard 1e-10 of CV^2 are tensor2tensor's, not the paper's",
        "without noise, or with k = E, the load is the number of positive gates, as in tensor2tensor: no gradient",
        "one weight for both losses, as in tensor2tensor; the paper has two, equal in most of its experiments",
    ],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the noise, standard normal, `[g, t, e]`.
pub const NOISE: &str = "noise";

/// What keeps CV^2 finite for a mean of zero.
pub const CV_EPSILON: f64 = 1e-10;

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Least standard deviation of the noise (4).
    pub noise_epsilon: f64,
    /// Weight of both losses.
    pub loss_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper"];

    fn preset(_: &str) -> Self {
        Self { top_k: 2, noise_epsilon: 1e-2, loss_weight: 1e-2 }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_weight("noise_epsilon", self.noise_epsilon)?;
        check_weight("loss_weight", self.loss_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    fn causal(&self) -> bool {
        true
    }

    /// Both matrices start at zero: all experts are equally likely, and noise alone decides.
    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let shape = [dims.experts, dims.width];
        Box::new(NoisyTopk {
            gate_ed: params.add("gate", &shape, Init::Const(0.0), Role::Decayed),
            noise_gate_ed: params.add("noise_gate", &shape, Init::Const(0.0), Role::Decayed),
            config: self.clone(),
        })
    }
}

/// The trainable router.
#[derive(Debug)]
pub struct NoisyTopk {
    /// `Wg` transposed, `[e, d]`.
    pub gate_ed: Tensor,
    /// `Wn` transposed, `[e, d]`.
    pub noise_gate_ed: Tensor,
    /// Settings.
    pub config: Config,
}

/// Everything that the equations name.
#[derive(Debug)]
pub struct Terms {
    /// `h`, `[g, t, e]`.
    pub clean_gte: Tensor,
    /// Standard deviation of the noise, zero without noise, `[g, t, e]`.
    pub std_gte: Tensor,
    /// `H`, `[g, t, e]`.
    pub noisy_gte: Tensor,
    /// Experts and gates (3).
    pub choices: ChoicesGtk,
    /// `P` of (9), `[g, t, e]`; with noise and k < E only.
    pub prob_gte: Option<Tensor>,
    /// (6), `[g, e]`.
    pub importance_ge: Tensor,
    /// (10), `[g, e]`.
    pub load_ge: Tensor,
}

impl NoisyTopk {
    /// The equations; without `noise_gte` there is no noise.
    pub fn terms(&self, x_gtd: &Tensor, noise_gte: Option<&Tensor>) -> Terms {
        let clean_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (_, _, e) = axes3(&clean_gte);
        let (std_gte, noisy_gte) = match noise_gte {
            Some(noise_gte) => {
                let raw_gte = x_gtd.linear(&self.noise_gate_ed, None::<&Tensor>);
                // softplus(x) as -ln sigmoid(-x): libtorch's own is linear beyond 20.
                let std_gte = -(-raw_gte).log_sigmoid() + self.config.noise_epsilon;
                let noisy_gte = &clean_gte + &std_gte * noise_gte;
                (std_gte, noisy_gte)
            }
            None => (clean_gte.detach().zeros_like(), clean_gte.shallow_clone()),
        };
        let k = self.config.top_k as i64;
        let choices = ChoicesGtk::top_k(&noisy_gte, k);
        let gate_gtk = choices.gate_gtk.softmax(-1, noisy_gte.kind()); // (3)
        let gate_gte = noisy_gte.zeros_like().scatter(-1, &choices.expert_gtk, &gate_gtk);
        let smooth = noise_gte.is_some() && k < e;
        let prob_gte = smooth.then(|| probability(&clean_gte, &std_gte, &noisy_gte, k));
        let load_gte = match &prob_gte {
            Some(prob_gte) => prob_gte.shallow_clone(),
            None => gate_gte.gt(0.0).to_kind(gate_gte.kind()),
        };
        Terms {
            importance_ge: gate_gte.sum_dim_intlist(1, false, None), // (6)
            load_ge: load_gte.sum_dim_intlist(1, false, None),       // (10)
            choices: choices.with_gates(gate_gtk),
            clean_gte,
            std_gte,
            noisy_gte,
            prob_gte,
        }
    }
}

/// (8)-(9): how likely each expert stays among the k best if its own noise is drawn again.
///
/// The threshold is the k-th largest of the *other* values: for an expert inside the top-k that is
/// the (k+1)-th largest of all. The gradient flows through the threshold too.
fn probability(clean_gte: &Tensor, std_gte: &Tensor, noisy_gte: &Tensor, k: i64) -> Tensor {
    let best_gtk = ChoicesGtk::top_k(noisy_gte, k + 1).gate_gtk;
    let (inside_gt1, outside_gt1) = (best_gtk.narrow(-1, k, 1), best_gtk.narrow(-1, k - 1, 1));
    let is_in_gte = noisy_gte.gt_tensor(&inside_gt1);
    let threshold_gte =
        inside_gt1.expand_as(noisy_gte).where_self(&is_in_gte, &outside_gt1.expand_as(noisy_gte));
    ((clean_gte - threshold_gte) / std_gte).special_ndtr()
}

impl Router for NoisyTopk {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let like_gte = Tensor::zeros(
            [x_gtd.size()[0], x_gtd.size()[1], self.gate_ed.size()[0]],
            (x_gtd.kind(), x_gtd.device()),
        );
        let noise_gte = cx.training().then(|| cx.normal(NOISE, &like_gte));
        let terms = self.terms(x_gtd, noise_gte.as_ref());
        let (_, t, e) = axes3(&terms.clean_gte);
        let loss = |name, x_ge: &Tensor| Aux {
            name,
            weight: self.config.loss_weight,
            value: losses::cv_squared_guarded(x_ge, CV_EPSILON),
        };
        let aux = vec![loss("importance", &terms.importance_ge), loss("load", &terms.load_ge)];
        let room = room(cx.capacity, None, (t as usize, e as usize, self.config.top_k))?;
        let choices = terms.choices.without_padding(cx.padding_gt);
        let chosen = Chosen { choices, experts: e, room };
        Ok(chosen.routing(
            terms.clean_gte,
            terms.noisy_gte.detach().softmax(-1, terms.noisy_gte.kind()),
            aux,
        ))
    }

    fn takes_padding(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host {
            gate_ed: to_host(&self.gate_ed),
            noise_gate_ed: to_host(&self.noise_gate_ed),
            config: self.config.clone(),
        })
    }
}
