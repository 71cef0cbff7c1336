//! Settings of DeepSeek-V3's router.

use super::DeepSeekV3;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::params::{Init, Params, Role};
use crate::router::{Dims, Router};
use moe_core::RouteError;
use serde::{Deserialize, Serialize};

/// What becomes of a logit (1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Its sigmoid.
    Sigmoid,
    /// Softmax over all experts.
    Softmax,
}

/// Which choices the sequence loss counts (5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FSource {
    /// The top-k of the unbiased scores, over all groups.
    Unbiased,
    /// The actual ones.
    Selected,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Equal groups of consecutive experts.
    pub n_groups: usize,
    /// Groups among which a token chooses.
    pub topk_groups: usize,
    /// How many of its largest scores a group counts.
    pub group_score_k: usize,
    /// What becomes of a logit.
    pub score: Score,
    /// Whether weights are divided by their sum; `null` is yes for sigmoid, no for softmax.
    pub normalize: Option<bool>,
    /// Factor on every weight.
    pub route_scale: f64,
    /// Whether the gate has a bias tensor.
    pub bias: bool,
    /// Step of the bias (4).
    pub gamma: f64,
    /// Weight of the sequence loss (5).
    pub alpha: f64,
    /// Tokens of a sequence of (5); `null` is the whole group.
    pub sequence_length: Option<usize>,
    /// Which choices (5) counts.
    pub f_source: FSource,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["small", "plain", "paper"];

    fn preset(name: &str) -> Self {
        let (n_groups, topk_groups, route_scale) =
            if name == "paper" { (8, 4, 2.5) } else { (1, 1, 1.0) };
        Self {
            top_k: if name == "small" { 2 } else { 8 },
            n_groups,
            topk_groups,
            group_score_k: 2,
            score: Score::Sigmoid,
            normalize: None,
            route_scale,
            bias: true,
            gamma: 1e-3,
            alpha: 1e-4,
            sequence_length: None,
            f_source: FSource::Unbiased,
        }
    }
}

impl Config {
    /// Whether weights are divided by their sum (3).
    pub fn normalizes(&self) -> bool {
        self.normalize.unwrap_or(self.score == Score::Sigmoid)
    }

    /// Tokens of a sequence among `tokens`.
    ///
    /// # Errors
    /// If sequences do not fill them.
    pub fn sequence(&self, tokens: usize) -> Result<usize, RouteError> {
        let length = self.sequence_length.unwrap_or(tokens);
        if length == 0 || !tokens.is_multiple_of(length) {
            let reason = format!("{length} does not divide {tokens} tokens");
            return Err(RouteError::Setting { key: "sequence_length", reason });
        }
        Ok(length)
    }

    fn check_groups(&self, experts: usize) -> Result<(), ConfigError> {
        let bad = |key, reason| Err(ConfigError::setting(key, reason));
        let Self { n_groups, topk_groups, group_score_k, top_k, .. } = *self;
        if n_groups == 0 || !experts.is_multiple_of(n_groups) {
            return bad("n_groups", format!("{n_groups} does not divide {experts} experts"));
        }
        if !(1..=n_groups).contains(&topk_groups) {
            return bad(
                "topk_groups",
                format!("{topk_groups} is outside 1..={n_groups} (n_groups)"),
            );
        }
        if group_score_k == 0 {
            return bad("group_score_k", "0 must be at least 1".into());
        }
        let open = experts / n_groups * topk_groups;
        if top_k > open {
            return bad(
                "top_k",
                format!("{top_k} exceeds the {open} experts of {topk_groups} groups"),
            );
        }
        Ok(())
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        self.check_groups(experts)?;
        check_positive("route_scale", self.route_scale)?;
        check_weight("gamma", self.gamma)?;
        check_weight("alpha", self.alpha)?;
        match self.sequence_length {
            Some(0) => Err(ConfigError::setting("sequence_length", "0 must be at least 1")),
            _ => Ok(()),
        }
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let bias = || params.add("bias", &[dims.experts], Init::Const(0.0), Role::Buffer);
        Box::new(DeepSeekV3 {
            gate_ed: params.matrix("gate", &[dims.experts, dims.width], 0.02),
            bias_e: self.bias.then(bias),
            config: self.clone(),
        })
    }
}
