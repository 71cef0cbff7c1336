//! Settings of ACMoE; the presets differ in almost every one.

use super::router::AcMoe;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::params::{Init, Params, Role};
use crate::router::{Dims, Router};
use moe_core::{CapacityError, CapacityPolicy, DropOrder};
use serde::{Deserialize, Serialize};

/// Largest `num_clusters`: more experts than any layer has.
pub const MAX_CLUSTERS: usize = 1 << 16;

/// How the spread of a feature inside a cluster is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Mean absolute deviation from the cluster's mean.
    Mad,
    /// Population variance.
    Var,
    /// Mean absolute difference of ordered pairs of distinct tokens; 0 for a single token.
    Pairwise,
}

/// What the weights are divided by in the end (6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rescale {
    /// Nothing.
    None,
    /// Each feature by its mean over the clusters.
    PerFeature,
    /// The mean of all weights before clipping.
    GlobalPre,
    /// The mean of all weights after clipping.
    GlobalPost,
}

/// What becomes of clusters that are too small to have a spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Empty {
    /// Weight 1, and no part in any mean.
    Neutral,
    /// Spread 0 and so weight `1 / eps`, which dominates the means: as the released code does.
    AsCode,
}

/// Whose weights a token takes (7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Those of its best previous expert.
    Top1,
    /// Those of all its previous experts, mixed by a softmax of their scores.
    Soft,
    /// The same, mixed by the scores themselves.
    Raw,
}

/// How a scaled token meets an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Product with the expert's embedding at unit length.
    Embedding,
    /// Product with the router's row.
    Linear,
}

/// How logits become gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Softmax over the k chosen logits.
    SoftmaxK,
    /// Softmax over all logits; the k chosen values are not renormalised.
    SoftmaxAll,
}

/// Who reads the scaled tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The router.
    RouterOnly,
    /// The router and the experts: apply the plan to [`super::Scaling::scaled_gtd`].
    RouterAndExperts,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// How spread is measured (2).
    pub measure: Measure,
    /// Added to the spread (3).
    pub eps: f64,
    /// Largest weight as a multiple of the mean weight (5); 0 for no limit.
    pub clip: f64,
    /// What the weights are divided by (6).
    pub rescale: Rescale,
    /// What becomes of small clusters.
    pub empty: Empty,
    /// Tokens that a cluster needs to count under [`Empty::Neutral`].
    pub min_count: usize,
    /// Number of clusters; 0 is one more than the largest label.
    pub num_clusters: usize,
    /// Whose weights a token takes (7).
    pub mix: Mix,
    /// How a scaled token meets an expert.
    pub score: Score,
    /// Floor of the embeddings' norms.
    pub embed_eps: f64,
    /// Whether a linear router has a bias.
    pub bias: bool,
    /// How logits become gates.
    pub gate: Gate,
    /// Deviation of the noise in training, times the number of experts.
    pub noise_std: f64,
    /// Room per expert is `k floor(factor ceil(T / E))`, which as in the code may come to none; a
    /// factor of 0 is unlimited.
    pub capacity_factor: f64,
    /// Who reads the scaled tokens.
    pub scope: Scope,
    /// Weight of the balance loss; the released scripts' 0.01 never took effect.
    pub balance_weight: f64,
}

impl Config {
    /// Preset `reference`: the released language-model code.
    fn reference() -> Self {
        Self {
            top_k: 2,
            measure: Measure::Mad,
            eps: 1e-4,
            clip: 10.0,
            rescale: Rescale::PerFeature,
            empty: Empty::AsCode,
            min_count: 2,
            num_clusters: 0,
            mix: Mix::Top1,
            score: Score::Embedding,
            embed_eps: 1e-4,
            bias: false,
            gate: Gate::SoftmaxK,
            noise_std: 0.0,
            capacity_factor: 0.0,
            scope: Scope::RouterOnly,
            balance_weight: 0.0,
        }
    }

    /// Room per expert, and the order in which it is handed out, for (tokens, experts).
    pub(super) fn room(
        &self,
        policy: Option<&CapacityPolicy>,
        (tokens, experts): (usize, usize),
    ) -> Result<(Option<usize>, DropOrder), CapacityError> {
        if let Some(policy) = policy {
            return Ok((policy.slots(tokens, experts, self.top_k)?, policy.order));
        }
        if self.capacity_factor == 0.0 {
            return Ok((None, DropOrder::Arrival));
        }
        let per_rank = (self.capacity_factor * tokens.div_ceil(experts) as f64).floor();
        // Saturates for absurd factors, where room beyond the tokens is no limit anyway.
        Ok((Some(self.top_k.saturating_mul(per_rank as usize)), DropOrder::BatchPriority))
    }
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["reference", "paper", "lm", "swin", "soft"];

    fn preset(name: &str) -> Self {
        let reference = Self::reference();
        match name {
            "paper" => Self {
                eps: 0.0,
                clip: 0.0,
                rescale: Rescale::None,
                empty: Empty::Neutral,
                score: Score::Linear,
                ..reference
            },
            "swin" => Self {
                clip: 1.5,
                rescale: Rescale::GlobalPre,
                score: Score::Linear,
                gate: Gate::SoftmaxAll,
                noise_std: 1.0,
                capacity_factor: 1.25,
                scope: Scope::RouterAndExperts,
                ..reference
            },
            "soft" => Self {
                eps: 0.35,
                clip: 5.0,
                rescale: Rescale::GlobalPost,
                mix: Mix::Soft,
                ..reference
            },
            _ => reference,
        }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_weight("eps", self.eps)?;
        check_weight("clip", self.clip)?;
        if self.num_clusters > MAX_CLUSTERS {
            let reason = format!("{} is above {MAX_CLUSTERS}", self.num_clusters);
            return Err(ConfigError::setting("num_clusters", reason));
        }
        check_positive("embed_eps", self.embed_eps)?;
        check_weight("noise_std", self.noise_std)?;
        check_weight("capacity_factor", self.capacity_factor)?;
        check_weight("balance_weight", self.balance_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    /// The statistics pool every token of the group, later ones too.
    fn causal(&self) -> bool {
        false
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let shape = [dims.experts, dims.width];
        let (name, init) = match self.score {
            Score::Embedding => ("embeddings", Init::Normal((dims.width as f64).sqrt().recip())),
            Score::Linear => ("router", Init::Normal(0.02)),
        };
        let matrix_ed = params.add(name, &shape, init, Role::Decayed);
        let has_bias = self.bias && self.score == Score::Linear;
        let bias_e = has_bias.then(|| params.constant("bias", &[dims.experts], 0.0));
        Box::new(AcMoe { matrix_ed, bias_e, config: self.clone() })
    }
}
