//! S-BASE: balanced choice by Sinkhorn's algorithm, in Megatron-LM's form.
//!
//! *Unified Scaling Laws for Routed Language Models*, Clark, de las Casas, Guy et al., 2022,
//! arXiv 2202.01169 (S-BASE); released code: Megatron-LM.
//!
//! ```text
//! K = exp(l),  d1 = 1;  repeat   d0 = (1/T) / (K d1 + 1e-8)
//!                                d1 = (1/E) / (K^T d0 + 1e-8)   until mean |change of d1| <= tol   (1)
//! P = diag(d0) K diag(d1)        rows sum to 1/T, columns to 1/E, no gradient                      (2)
//! training:    T_t = top-k of P_t;  evaluation: top-k of the activated logits                      (3)
//! g = sigmoid(l) for k = 1, softmax(l) over all E for k > 1, at the chosen; not renormalised       (4)
//! ```
//!
//! Numbers in brackets count the steps of the method.

use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_top_k, check_weight, resolve, to_settings,
};
use crate::convert::to_host;
use crate::params::Params;
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError, score};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "sinkhorn",
    title: "Unified Scaling Laws for Routed Language Models",
    authors: "Clark et al. 2022; Megatron-LM",
    arxiv: "2202.01169",
    idea: "In training, tokens choose from logits that Sinkhorn's algorithm has rescaled to equal loads.\n\
        A balance loss balances only roughly, and its weight has to be tuned.\n\
        The weight of a chosen expert comes from its raw logit; no gradient goes through the rescaling.\n\
        In evaluation each token takes its best expert.",
    state: "parameters: router W [e, d]",
    cost: "k expert calls; in training rounds over the [t, e] logits of a group until `d1` changes by less than `tol`, at most `max_iters`, each read back to the host",
    equations: &[("(1)-(2)", "transport"), ("(3)-(4)", "Sinkhorn::route")],
    deviations: &[
        "the algorithm is Megatron-LM's; a group is balanced by itself",
        "whether (1) has converged is read back to the host after every round",
        "training looks at the whole group; evaluation is causal",
    ],
    unverified: &["details of the paper itself: its number of rounds, its gate"],
    presets: Config::PRESETS,
    compared: &["megatron"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Guard of both divisions (1).
const EPS: f64 = 1e-8;

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Mean change of `d1` at which the rounds end.
    pub tol: f64,
    /// Most rounds.
    pub max_iters: usize,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["megatron", "megatron_top2"];

    fn preset(name: &str) -> Self {
        Self { top_k: if name == "megatron_top2" { 2 } else { 1 }, tol: 1e-4, max_iters: 1000 }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_weight("tol", self.tol)?;
        if self.max_iters == 0 {
            return Err(ConfigError::setting("max_iters", "0 must be at least 1"));
        }
        Ok(())
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(Sinkhorn { gate_ed, config: self.clone() })
    }
}

/// The trainable router.
#[derive(Debug)]
struct Sinkhorn {
    gate_ed: Tensor,
    config: Config,
}

/// A transport plan of one group and the rounds it took.
#[derive(Debug)]
pub struct Transport<P> {
    /// `P`, `[t, e]`.
    pub plan_te: P,
    /// Rounds of (1).
    pub iterations: usize,
}

/// (1)-(2) of one group, `[t, e]`, without a graph.
///
/// # Errors
/// If `exp` overflows (`finite`).
pub fn transport(config: &Config, logits_te: &Tensor) -> Result<Transport<Tensor>, RouteError> {
    let k_te = logits_te.detach().exp();
    let (t, e) = k_te.size2().expect("[t, e]");
    if k_te.isfinite().all().int64_value(&[]) == 0 {
        RouteError::check_finite("exp of logits", to_host(&k_te).view())?;
    }
    let (mut d1_e, mut iterations) = (k_te.new_ones([e], (k_te.kind(), k_te.device())), 0);
    loop {
        iterations += 1;
        let d0_t = ((k_te.mv(&d1_e) + EPS) * t as f64).reciprocal();
        let next_e = ((k_te.tr().mv(&d0_t) + EPS) * e as f64).reciprocal();
        let change = (&next_e - &d1_e).abs().mean(None::<Kind>).double_value(&[]);
        d1_e = next_e;
        if change <= config.tol || iterations == config.max_iters {
            return Ok(Transport { plan_te: k_te * d0_t.unsqueeze(1) * d1_e, iterations });
        }
    }
}

/// The same on the host.
///
/// # Errors
/// If `exp` overflows (`finite`).
pub fn transport_host(
    config: &Config,
    logits_te: ArrayView2<'_, f64>,
) -> Result<Transport<Array2<f64>>, RouteError> {
    let k_te = logits_te.mapv(f64::exp);
    RouteError::check_finite("exp of logits", k_te.view())?;
    let [t, e] = [k_te.nrows(), k_te.ncols()].map(|n| n as f64);
    let (mut d1_e, mut iterations) = (Array1::<f64>::ones(k_te.ncols()), 0);
    loop {
        iterations += 1;
        let d0_t = k_te.dot(&d1_e).mapv(|sum| 1.0 / t / (sum + EPS));
        let next_e = k_te.t().dot(&d0_t).mapv(|sum| 1.0 / e / (sum + EPS));
        let change = (&next_e - &d1_e).mapv(f64::abs).mean().unwrap_or(0.0);
        d1_e = next_e;
        if change <= config.tol || iterations == config.max_iters {
            return Ok(Transport { plan_te: k_te * d0_t.insert_axis(Axis(1)) * d1_e, iterations });
        }
    }
}

impl Sinkhorn {
    /// (3): what the choice goes by, `[g, t, e]`.
    fn wanted(
        &self,
        logits_gte: &Tensor,
        gate_gte: &Tensor,
        train: bool,
    ) -> Result<Tensor, RouteError> {
        if !train {
            return Ok(gate_gte.shallow_clone());
        }
        let group = |g| Ok(transport(&self.config, &logits_gte.get(g))?.plan_te);
        let plans: Vec<Tensor> =
            (0..logits_gte.size()[0]).map(group).collect::<Result<_, RouteError>>()?;
        Ok(Tensor::stack(&plans, 0))
    }
}

impl Router for Sinkhorn {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (_, t, e) = axes3(&logits_gte);
        let (k, kind) = (self.config.top_k, logits_gte.kind());
        let gate_gte = if k == 1 { logits_gte.sigmoid() } else { logits_gte.softmax(-1, kind) }; // (4)
        let wanted_gte = self.wanted(&logits_gte, &gate_gte, cx.training())?;
        let expert_gtk = ChoicesGtk::top_k(&wanted_gte, k as i64).expert_gtk; // (3)
        let gate_gtk = gate_gte.gather(-1, &expert_gtk, false);
        let room = room(cx.capacity, None, (t as usize, e as usize, k))?;
        let chosen = Chosen { choices: ChoicesGtk::new(expert_gtk, gate_gtk), experts: e, room };
        let gate_gte = logits_gte.detach().softmax(-1, kind);
        Ok(chosen.routing(logits_gte, gate_gte, Vec::new()))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host { gate_ed: to_host(&self.gate_ed), config: self.config.clone() })
    }
}

struct Host {
    gate_ed: Array2<f64>,
    config: Config,
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let (t, e) = logits_te.dim();
        let k = self.config.top_k;
        let prob_te = score::softmax(logits_te.view());
        let gate_te = if k == 1 { logits_te.mapv(score::sigmoid) } else { prob_te.clone() }; // (4)
        let wanted_te = match input.train {
            true => transport_host(&self.config, logits_te.view())?.plan_te,
            false => gate_te.clone(),
        };
        let choices = Choices::top_k(wanted_te.view(), k); // (3)
        let gate_tk = Array2::from_shape_fn((t, k), |at| gate_te[[at.0, choices.expert_tk[at]]]);
        let room = room(input.capacity, None, (t, e, k))?;
        let chosen = moe_core::Chosen::new(choices.with_gates(gate_tk), e, room)?;
        Ok(chosen.routing(logits_te, prob_te, Vec::new())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Two tokens, two experts, `K = [[4, 1], [2, 1]]` (logits are its logarithms). One round by
    /// hand, guards left out: `d0 = 1/2 / (5, 3) = (1/10, 1/6)`, `K^T d0 = (2/5 + 1/3, 1/10 + 1/6)
    /// = (11/15, 4/15)`, `d1 = 1/2 / that = (15/22, 15/8)`. The plan is `[[6/22, 3/16],
    /// [5/22, 5/16]]`: token 0 takes expert 0, token 1 expert 1, though both like expert 0 better.
    /// Gates are `sigmoid(ln 4) = 4/5` and `sigmoid(ln 1) = 1/2`; at evaluation token 1 takes expert
    /// 0 with `sigmoid(ln 2) = 2/3`.
    #[test]
    fn by_hand() {
        let config = Config { max_iters: 1, ..Config::preset("megatron") };
        let logits_te = array![[4f64.ln(), 0.0], [2f64.ln(), 0.0]];
        let transport = transport_host(&config, logits_te.view()).unwrap();
        let want_te = array![[6. / 22., 3. / 16.], [5. / 22., 5. / 16.]];
        assert!((&transport.plan_te - &want_te).iter().all(|v| v.abs() < 1e-7));
        let host = Host { gate_ed: Array2::eye(2), config };
        for (train, want_te) in
            [(true, array![[0.8, 0.0], [0.0, 0.5]]), (false, array![[0.8, 0.0], [2. / 3., 0.0]])]
        {
            let routing = host.route(&HostInput::new(logits_te.view()).train(train)).unwrap();
            let difference = routing.plan.combine_te() - want_te;
            assert!(difference.iter().all(|v| v.abs() < 1e-12), "training {train}");
        }
    }

    /// An expert that nobody wants: its column of `K` is `e^-20` = 2e-9, no larger than the guard.
    #[test]
    fn the_guards_are_the_same_on_both_sides() {
        let logits_te = array![[0.5, -20.0, 1.0], [0.0, -20.5, -1.0], [0.3, -21.0, 0.1]];
        let tensor = tch::Tensor::from_slice(logits_te.as_slice().unwrap()).view([3, 3]);
        let config = Config::preset("megatron");
        let host_te = transport_host(&config, logits_te.view()).unwrap().plan_te;
        let plan_te = to_host(&transport(&config, &tensor).unwrap().plan_te);
        let limit = crate::tolerance::tolerance(Kind::Double).value;
        assert!((plan_te - host_te).iter().all(|difference| difference.abs() < limit));
    }

    /// The mean change ends the rounds, not the sum: both sides agree at every tolerance.
    #[test]
    fn both_sides_end_after_the_same_rounds() {
        let logits_te =
            Array2::from_shape_fn((12, 6), |(t, e)| ((t * 7 + e * e) as f64).sin() * 3.0);
        let tensor = tch::Tensor::from_slice(logits_te.as_slice().unwrap()).view([12, 6]);
        let rounds = (0..24).map(|i| {
            let config = Config { tol: 0.7f64.powi(i), ..Config::preset("megatron") };
            let host = transport_host(&config, logits_te.view()).unwrap().iterations;
            assert_eq!(transport(&config, &tensor).unwrap().iterations, host, "tol {}", config.tol);
            host
        });
        assert!(rounds.max() > Some(3));
    }
}
