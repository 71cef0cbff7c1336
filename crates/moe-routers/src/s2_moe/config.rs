//! Settings of S2MoE.

use super::S2Moe;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_choices, check_positive, check_top_k,
    check_weight, to_settings,
};
use crate::params::Params;
use crate::router::{Dims, Router};
use serde::{Deserialize, Serialize};

/// How the copy is made noisy (1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// By the statistics of the sequence.
    Statistics,
    /// By shaking instance-normalised tokens.
    InstanceNorm,
}

/// What mean and deviation are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatsAxis {
    /// The tokens of the sequence, per feature.
    Tokens,
    /// The features, per token.
    Features,
}

/// Form of the balance loss (5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// `E sum f P`, `f` a share of all choices.
    Switch,
    /// Divergence of the mean probability from uniform.
    Kl,
}

/// What InfoNCE (4) contrasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NceOn {
    /// Tokens and their noisy copies.
    Inputs,
    /// The outputs of the two passes.
    Outputs,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token in training.
    pub top_k: usize,
    /// Experts per token at inference.
    pub top_k_infer: usize,
    /// Whether the router has a bias.
    pub bias: bool,
    /// Initial bias of the blend gate (3): the larger, the more of the clean pass.
    pub blend_bias: f64,
    /// How the copy is made noisy.
    pub noise: Noise,
    /// What its statistics are taken over.
    pub stats_axis: StatsAxis,
    /// Whether the variance divides by `n - 1`.
    pub unbiased: bool,
    /// Scale `s` of the noise (1).
    pub noise_scale: f64,
    /// Whether the statistics are constants for the gradient.
    pub detach_stats: bool,
    /// Multiplicative scale after instance normalisation.
    pub scale_mul: f64,
    /// Additive scale after instance normalisation.
    pub scale_add: f64,
    /// Added to the variance of instance normalisation.
    pub in_eps: f64,
    /// Whether the copy routes on its own rather than re-using experts and gates of the token.
    pub reroute: bool,
    /// What InfoNCE contrasts.
    pub nce_on: NceOn,
    /// Temperature of InfoNCE.
    pub tau: f64,
    /// Form of the balance loss.
    pub balance: Balance,
    /// Weight of the balance loss.
    pub alpha: f64,
    /// Weight of InfoNCE.
    pub beta: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "third_party", "third_party_norm"];

    fn preset(name: &str) -> Self {
        let paper = Self {
            top_k: 2,
            top_k_infer: 1,
            bias: true,
            blend_bias: 0.0,
            noise: Noise::Statistics,
            stats_axis: StatsAxis::Tokens,
            unbiased: true,
            noise_scale: 1.0,
            detach_stats: false,
            scale_mul: 1.0,
            scale_add: 1.0,
            in_eps: 1e-5,
            reroute: true,
            nce_on: NceOn::Inputs,
            tau: 1.0,
            balance: Balance::Switch,
            alpha: 0.01,
            beta: 0.1,
        };
        match name {
            "third_party" => Self { reroute: false, balance: Balance::Kl, ..paper },
            "third_party_norm" => {
                Self { noise: Noise::InstanceNorm, beta: 0.0, blend_bias: 5.0, ..paper }
            }
            _ => paper,
        }
    }
}

impl Config {
    /// Refuses values of the noise outside their range.
    ///
    /// # Errors
    /// Names the key.
    pub fn check_noise(&self) -> Result<(), ConfigError> {
        check_weight("noise_scale", self.noise_scale)?;
        check_weight("scale_mul", self.scale_mul)?;
        check_weight("scale_add", self.scale_add)?;
        check_positive("in_eps", self.in_eps)
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_choices("top_k_infer", self.top_k_infer, experts)?;
        self.check_noise()?;
        check_positive("tau", self.tau)?;
        check_weight("alpha", self.alpha)?;
        check_weight("beta", self.beta)
    }

    /// In training, where every token takes two passes; inference visits `top_k_infer`.
    fn active_experts(&self, _: usize) -> f64 {
        2.0 * self.top_k as f64
    }

    /// Evaluation has no noisy copy, and no capacity of its own.
    fn causal(&self) -> bool {
        true
    }

    fn within_sequence(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        Box::new(S2Moe {
            router_ed: params.matrix("router", &[dims.experts, dims.width], 0.02),
            bias_e: self.bias.then(|| params.constant("bias", &[dims.experts], 0.0)),
            blend_1d: params.matrix("blend", &[1, dims.width], 0.02),
            blend_bias_1: params.constant("blend_bias", &[1], self.blend_bias),
            config: self.clone(),
        })
    }
}
