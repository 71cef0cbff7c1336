//! Settings of SSR.

use super::Ssr;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::params::Params;
use crate::router::{Dims, Router};
use serde::{Deserialize, Serialize};

/// What transport maximises (1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// The probabilities: SSR-S.
    Softmax,
    /// The logits: SSR-L.
    Linear,
}

/// Which side a sweep rescales first (3). Both orders have the same limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Columns, then rows, which stay exact.
    Vu,
    /// Rows, then columns, which stay exact.
    Uv,
}

/// Where the noise goes; the accounts of the paper disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseSite {
    /// Nowhere.
    None,
    /// On the logits of the softmax branch.
    SoftmaxLogits,
    /// On the cost of the Sinkhorn branch, after the softmax.
    Cost,
}

/// What the chosen experts of a balanced step are weighed by (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateSource {
    /// The plan's entries, divided by their sum.
    Plan,
    /// The softmax over the chosen raw logits.
    RawLogits,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// What transport maximises.
    pub cost: Cost,
    /// Weight of the entropy, `xi`.
    pub xi: f64,
    /// Sweeps at most.
    pub max_iters: usize,
    /// Both marginal residuals must come below this; `null` runs all sweeps.
    pub tol: Option<f64>,
    /// Order within a sweep.
    pub order: Order,
    /// Share of the training steps that are balanced.
    pub p: f64,
    /// Where the noise goes.
    pub noise_site: NoiseSite,
    /// Its standard deviation.
    pub noise_alpha: f64,
    /// What chosen experts are weighed by.
    pub gate_source: GateSource,
    /// Whether the plan is a constant for the gradient.
    pub stop_gradient: bool,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] =
        &["paper", "ssr_s", "ssr_l", "third_party", "sinkhorn_raw_gate"];

    fn preset(name: &str) -> Self {
        let paper = Self {
            top_k: 2,
            cost: Cost::Softmax,
            xi: 0.5,
            max_iters: 100,
            tol: Some(1e-4),
            order: Order::Vu,
            p: 0.001,
            noise_site: NoiseSite::None,
            noise_alpha: 0.0,
            gate_source: GateSource::Plan,
            stop_gradient: false,
        };
        match name {
            "ssr_l" => Self { cost: Cost::Linear, xi: 1.0, ..paper },
            "third_party" => Self { xi: 0.05, ..paper },
            "sinkhorn_raw_gate" => Self {
                cost: Cost::Linear,
                xi: 1.0,
                order: Order::Uv,
                p: 1.0,
                tol: Some(1e-2),
                gate_source: GateSource::RawLogits,
                ..paper
            },
            _ => paper,
        }
    }
}

impl Config {
    /// Refuses settings with which [`sinkhorn`](super::sinkhorn) cannot run.
    ///
    /// # Errors
    /// Names the key.
    pub fn check_sinkhorn(&self) -> Result<(), ConfigError> {
        check_positive("xi", self.xi)?;
        if self.max_iters == 0 {
            return Err(ConfigError::setting("max_iters", "0 must be at least 1"));
        }
        self.tol.map_or(Ok(()), |tol| check_positive("tol", tol))
    }

    /// `p` must be a probability.
    ///
    /// # Errors
    /// Names `p`.
    pub fn check_share(&self) -> Result<(), ConfigError> {
        if (0.0..=1.0).contains(&self.p) {
            return Ok(());
        }
        Err(ConfigError::setting("p", format!("{} is outside 0..=1", self.p)))
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        self.check_sinkhorn()?;
        self.check_share()?;
        check_weight("noise_alpha", self.noise_alpha)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    /// Evaluation never balances. The balanced steps of training do let tokens see later ones.
    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(Ssr { gate_ed, config: self.clone() })
    }
}
