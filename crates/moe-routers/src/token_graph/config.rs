//! Settings of the token graph.

use super::router::TokenGraph;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, Symmetry, check_positive, check_top_k,
    check_weight, to_settings,
};
use crate::params::Params;
use crate::router::{Dims, Router};
use serde::{Deserialize, Serialize};

/// Where the graph comes from (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Graph {
    /// A softmax of the tokens' products.
    Similarity,
    /// The attention right before the layer.
    Attention,
    /// The identity: the router without a graph.
    None,
    /// Handed in.
    Given,
}

/// How attention heads become one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Their mean.
    Mean,
    /// Their mean under a softmax of given weights.
    Weighted,
    /// One of them.
    Single,
    /// For each token the head with the smallest entropy.
    LowestEntropy,
    /// Their mixture, each entry weighed by the likelihood of the token under a normal distribution
    /// around the head's value.
    Posterior,
}

/// What becomes of columns of cached tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// They are dropped, the rest is renormalised.
    Renormalize,
    /// They weigh the stored choices of the cached tokens.
    Use,
}

/// What is averaged (3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Probabilities.
    Prob,
    /// Logits.
    Logit,
}

/// Which probabilities weigh the experts (4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// The mixed ones.
    Mixed,
    /// The token's own.
    Own,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Where the graph comes from.
    pub graph: Graph,
    /// Temperature of the similarity.
    pub tau: f64,
    /// Whether only earlier tokens, and the token itself, count.
    pub causal: bool,
    /// How attention heads become one graph.
    pub pool: Pool,
    /// The head of [`Pool::Single`].
    pub head: usize,
    /// Deviation of [`Pool::Posterior`].
    pub sigma: f64,
    /// What becomes of columns of cached tokens.
    pub cache: Cache,
    /// Share of the token itself that is added to its row.
    pub self_edge: f64,
    /// Whether no gradient flows through the graph.
    pub detach_graph: bool,
    /// What is averaged.
    pub mix: Mix,
    /// Which probabilities weigh the experts.
    pub gate: Gate,
    /// Whether the gates are divided by their sum.
    pub renormalize: bool,
    /// Whether the similarity has a learned matrix `W_s`.
    pub learn_similarity: bool,
    /// Whether the router has a bias.
    pub bias: bool,
    /// Weight of the balance loss.
    pub balance_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] =
        &["similarity", "paper", "attention", "paper_attention", "none", "given"];

    fn preset(name: &str) -> Self {
        let graph = match name {
            "attention" | "paper_attention" => Graph::Attention,
            "none" => Graph::None,
            "given" => Graph::Given,
            _ => Graph::Similarity,
        };
        Self {
            top_k: 2,
            graph,
            tau: 1.0,
            causal: false,
            pool: Pool::Mean,
            head: 0,
            sigma: 1.0,
            cache: Cache::Renormalize,
            self_edge: 0.0,
            detach_graph: false,
            mix: Mix::Prob,
            gate: Gate::Mixed,
            renormalize: true,
            learn_similarity: false,
            bias: false,
            balance_weight: 0.01,
        }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_positive("tau", self.tau)?;
        check_positive("sigma", self.sigma)?;
        if !(0.0..=1.0).contains(&self.self_edge) {
            let reason = format!("{} is outside 0 to 1", self.self_edge);
            return Err(ConfigError::setting("self_edge", reason));
        }
        check_weight("balance_weight", self.balance_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    fn causal(&self) -> bool {
        self.causal || self.graph != Graph::Similarity
    }

    fn within_sequence(&self) -> bool {
        true
    }

    fn reads_attention(&self) -> bool {
        self.graph == Graph::Attention
    }

    fn check_block(&self, heads: usize) -> Result<(), ConfigError> {
        let refuse = |key, reason: String| Err(ConfigError::setting(key, reason));
        match (self.graph, self.pool) {
            (Graph::Given, _) => refuse("graph", "no block hands in a graph for `given`".into()),
            (Graph::Attention, Pool::Weighted) => {
                refuse("pool", "no block hands in the head weights of `weighted`".into())
            }
            (Graph::Attention, Pool::Posterior) => {
                refuse("pool", "no block hands in the head values of `posterior`".into())
            }
            (Graph::Attention, Pool::Single) if self.head >= heads => {
                refuse("head", format!("{} is out of range 0..{heads} (model.heads)", self.head))
            }
            _ => Ok(()),
        }
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry { position: self.causal && self.graph != Graph::None, ..Symmetry::default() }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let Dims { width, experts } = dims;
        let learned = self.learn_similarity && self.graph == Graph::Similarity;
        let std = (width as f64).recip();
        Box::new(TokenGraph {
            router_ed: params.matrix("router", &[experts, width], 0.02),
            bias_e: self.bias.then(|| params.constant("bias", &[experts], 0.0)),
            w_s_dd: learned.then(|| params.matrix("w_s", &[width, width], std)),
            config: self.clone(),
        })
    }
}
