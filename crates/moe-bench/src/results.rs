//! `results.json`: what a comparison measured, for people and for other tools.
//!
//! Axis letters: `l` sparse layers, `e` experts.

use crate::probe::RoutingMetrics;
use moe_core::stats::Paired;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the layout of `results.json`; raised when a field changes its meaning.
pub const SCHEMA: &str = "moe.results/1";

/// Everything a comparison measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Where it ran.
    pub environment: Environment,
    /// Name of the preset.
    pub preset: String,
    /// Terms that were equal for every router, and what was not, as sentences for the report.
    pub terms: Terms,
    /// One row per router and seed, in the order of the table.
    pub rows: Vec<Row>,
    /// One entry per router, in the order of the table.
    pub summary: Vec<RouterSummary>,
    /// Every router against the reference; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgements: Option<Judgements>,
}

/// Commit, machine and versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Commit of the build, with `-dirty` if the tree had changes; `unknown` outside git.
    pub commit: String,
    /// Start of the run, RFC 3339, UTC.
    pub started: String,
    /// Operating system and architecture.
    pub platform: String,
    /// Processor model.
    pub cpu: String,
    /// Instruction sets that matter for speed, as found at run time.
    pub cpu_features: Vec<String>,
    /// Hardware threads.
    pub hardware_threads: usize,
    /// libtorch's version.
    pub libtorch: String,
    /// This workspace's version.
    pub version: String,
    /// Device of the runs: `cpu` or `cuda:0`.
    pub device: String,
}

/// What was and what was not equal between routers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Terms {
    /// Name of the data set.
    pub data: String,
    /// Tokenisation.
    pub tokenizer: String,
    /// Training steps of each run.
    pub steps: u64,
    /// Tokens in one step.
    pub tokens_per_step: u64,
    /// Cross-entropy of the validation text under the unigram model of the training text, nats per token; of the
    /// validation images under the frequencies of labels.
    pub unigram_loss: f64,
    /// What losses are per: `token`, `hidden token`, `text`, `image`, or [`DRAWING`], of which they are squared errors.
    #[serde(default = "token")]
    pub unit: String,
    /// Facts equal for all routers.
    pub equal: Vec<String>,
    /// Facts that differ, each naming the router.
    pub unequal: Vec<String>,
}

/// The unit of models that draw.
pub const DRAWING: &str = "drawing";

/// The unit of files that name none.
fn token() -> String {
    "token".into()
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Router's name.
    pub router: String,
    /// Seed of weights, data order and noise.
    pub seed: u64,
    /// What came out; absent if the run failed.
    pub metrics: Option<Metrics>,
    /// Why the run failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Measures of one run. Names follow what dashboards of other MoE systems use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// Cross-entropy on the validation split, nats per token or per image.
    pub valid_loss: f64,
    /// `exp(valid_loss)`.
    pub valid_perplexity: f64,
    /// Share of validation texts or images in the right class; absent for language models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
    /// Bits per byte of the validation text; absent where the tokeniser loses text.
    pub bits_per_byte: Option<f64>,
    /// Largest over mean expert load, mean over layers; 1 is perfect balance.
    pub load_imbalance: f64,
    /// Experts that received no validation token, over all layers.
    pub dead_experts: u64,
    /// The same as a share of all experts.
    pub dead_expert_proportion: f64,
    /// Share of validation tokens that no expert kept, mean over layers.
    pub fraction_tokens_left_behind: f64,
    /// Mean entropy of a token's gate distribution over `ln E`, mean over layers; 0 is certain.
    pub gate_entropy: f64,
    /// Training tokens per second.
    pub tokens_per_second: f64,
    /// Share of the forward pass spent deciding routes and building plans.
    pub routing_share: f64,
    /// Largest resident set of the process, bytes.
    pub peak_memory_bytes: u64,
    /// Parameters that a token uses.
    pub params_active: u64,
    /// All parameters.
    pub params_total: u64,
    /// Wall time of training, seconds.
    pub train_seconds: f64,
    /// What the task measures besides on the validation split, by name, such as `accuracy`: means over its targets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
    /// Training loss per logged step: `(step, nats per token)`.
    pub train_curve: Vec<(u64, f64)>,
    /// Validation loss per evaluation: `(step, nats per token)`.
    pub valid_curve: Vec<(u64, f64)>,
    /// Share of rows per expert at each evaluation: `(step, share_le)`; rows of `share_le` sum to 1.
    pub expert_usage: Vec<(u64, Vec<Vec<f64>>)>,
    /// What the probe set showed over the run; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingMetrics>,
}

/// Mean and sample standard deviation over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; absent for a single seed.
    pub sd: Option<f64>,
}

/// One router over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouterSummary {
    /// Router's name.
    pub router: String,
    /// Finished runs.
    pub runs: usize,
    /// Failed runs.
    pub failed: usize,
    /// Scalar fields of [`Metrics`] and its `measures`, by name.
    pub metrics: BTreeMap<String, Spread>,
    /// Against the reference router: `better` or `worse` where the test says so, `no difference` where it
    /// could have, `no verdict` (too few seeds, failed runs), `not comparable` (not causal), `reference`.
    pub verdict: String,
}

/// Every router against one reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgements {
    /// The router that the others are compared with.
    pub reference: String,
    /// The measure, a scalar field of [`Metrics`]; lower is better.
    pub measure: String,
    /// Significance level of the whole family.
    pub alpha: f64,
    /// Tests that Holm's correction runs over.
    pub family: usize,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// One entry per router that shares at least two seeds with the reference.
    pub entries: Vec<Judgement>,
}

/// One router against the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The router.
    pub router: String,
    /// Seeds that both finished, in the order of `differences`.
    pub seeds: Vec<u64>,
    /// Differences, interval, test and effect size.
    #[serde(flatten)]
    pub paired: Paired,
    /// The p-value after Holm's correction; absent for a router outside the family.
    pub p_holm: Option<f64>,
    /// As in [`RouterSummary::verdict`].
    pub verdict: String,
}
