//! Evaluation: the loss on a split, and how the routers behave on it.
//!
//! Axis letters: `e` experts, `l` sparse layers.

use crate::trainer::TrainError;
use moe_data::Split;
use moe_models::LayerTrace;
use moe_routers::{Phase, RouteCx, SeededNoise};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Kind, Tensor};

/// How one sparse layer's router behaved over an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Rows that each expert read, `[e]`.
    pub load_e: Vec<f64>,
    /// Mean entropy of the tokens' gate distributions over `ln E`.
    pub gate_entropy: f64,
    /// Share of tokens that no expert read.
    pub fraction_tokens_left_behind: f64,
    /// Rows that experts processed, in all calls that the rule made; absent in files of earlier versions.
    #[serde(default)]
    pub expert_rows: f64,
}

impl EvalReport {
    /// Rows that the experts of every sparse layer processed per target, `[l]`.
    pub(crate) fn rows_per_target(&self) -> Vec<f64> {
        self.layers.iter().map(|layer| layer.expert_rows / self.tokens as f64).collect()
    }
}

/// What an evaluation measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// Mean cross-entropy, nats per token.
    pub loss: f64,
    /// Target tokens it is a mean over.
    pub tokens: usize,
    /// One entry per sparse layer.
    pub layers: Vec<LayerReport>,
    /// Share of the forward passes' time spent deciding routes and building plans. Measured on a
    /// CPU, where calls return when the work is done.
    pub routing_share: f64,
    /// What the task measures besides, by name: means over the targets, or sizes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
}

/// What the model says of one batch.
#[derive(Debug)]
pub struct Scored {
    /// Mean loss of the batch, a scalar.
    pub loss: Tensor,
    /// Targets it is a mean over.
    pub count: usize,
    /// One entry per sparse layer.
    pub traces: Vec<LayerTrace>,
    /// Other means over the targets of the batch, scalars, by name.
    pub measures: Vec<(&'static str, Tensor)>,
    /// What an image classifier says of every class, `[b, v]`; absent of other models.
    pub logits_bv: Option<Tensor>,
}

/// Sums over the batches of one evaluation.
#[derive(Debug, Default)]
struct Totals {
    nats: f64,
    tokens: usize,
    forward_seconds: f64,
    route_seconds: f64,
    layers: Vec<LayerReport>,
    measures: BTreeMap<String, f64>,
}

impl Totals {
    fn add(&mut self, scored: &Scored, seconds: f64) {
        let Scored { loss, count, traces, measures, .. } = scored;
        self.nats += loss.double_value(&[]) * *count as f64;
        self.tokens += count;
        self.forward_seconds += seconds;
        self.route_seconds += traces.iter().map(|t| t.route_time.as_secs_f64()).sum::<f64>();
        for (name, mean) in measures {
            let sum = self.measures.entry((*name).to_owned()).or_default();
            *sum += mean.double_value(&[]) * *count as f64;
        }
        let reports = traces.iter().map(|trace| layer_report(trace, *count as f64));
        if self.layers.is_empty() {
            self.layers = reports.collect();
        } else {
            self.layers.iter_mut().zip(reports).for_each(|(sum, new)| sum.add(&new));
        }
    }

    fn report(self) -> EvalReport {
        let tokens = self.tokens as f64;
        let layers = self.layers.into_iter().map(|layer| layer.over(tokens)).collect();
        EvalReport {
            loss: self.nats / tokens,
            tokens: self.tokens,
            layers,
            routing_share: self.route_seconds / self.forward_seconds,
            measures: self.measures.into_iter().map(|(name, sum)| (name, sum / tokens)).collect(),
        }
    }
}

/// A trace on the host, means weighted by the number of tokens.
fn layer_report(trace: &LayerTrace, tokens: f64) -> LayerReport {
    LayerReport {
        load_e: Vec::try_from(trace.routing.plan.load_e().to_kind(Kind::Double)).expect("a vector"),
        gate_entropy: trace.gate_entropy.double_value(&[]) * tokens,
        fraction_tokens_left_behind: trace.left_behind.double_value(&[]) * tokens,
        expert_rows: trace.expert_rows.double_value(&[]),
    }
}

impl LayerReport {
    fn add(&mut self, other: &Self) {
        self.load_e.iter_mut().zip(&other.load_e).for_each(|(sum, new)| *sum += new);
        self.gate_entropy += other.gate_entropy;
        self.fraction_tokens_left_behind += other.fraction_tokens_left_behind;
        self.expert_rows += other.expert_rows;
    }

    fn over(mut self, tokens: f64) -> Self {
        self.gate_entropy /= tokens;
        self.fraction_tokens_left_behind /= tokens;
        self
    }
}

/// Where and on how much to evaluate.
#[derive(Clone)]
pub struct EvalPlan<'a> {
    /// Which part of the data.
    pub split: Split,
    /// At most this many batches; `None` is the whole split.
    pub batches: Option<usize>,
    /// Seed of the draws of routers that draw in evaluation.
    pub seed: u64,
    /// When set, no further batch is begun.
    pub stop: Arc<AtomicBool>,
    /// Sees every batch after it was scored, in order: for logs and measures of single decisions.
    pub watch: Option<&'a dyn Fn(&Scored)>,
}

impl fmt::Debug for EvalPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { split, batches, seed, watch, .. } = self;
        write!(f, "{split:?}, {batches:?} batches, seed {seed}, watched: {}", watch.is_some())
    }
}

/// Evaluates on `batches` with `score`, without a graph.
///
/// # Errors
/// The first that `score` returns; [`TrainError::Stopped`].
pub fn evaluate<B>(
    plan: &EvalPlan<'_>,
    batches: impl Iterator<Item = B>,
    mut score: impl FnMut(&B, &RouteCx<'_>) -> Result<Scored, TrainError>,
) -> Result<EvalReport, TrainError> {
    let _guard = tch::no_grad_guard();
    let mut totals = Totals::default();
    for (index, batch) in batches.take(plan.batches.unwrap_or(usize::MAX)).enumerate() {
        if plan.stop.load(Ordering::Relaxed) {
            return Err(TrainError::Stopped);
        }
        let noise = SeededNoise::eval(plan.seed, index as u64);
        let start = Instant::now();
        let scored = score(&batch, &RouteCx::new(Phase::Eval, &noise))?;
        totals.add(&scored, start.elapsed().as_secs_f64());
        if let Some(watch) = plan.watch {
            watch(&scored);
        }
    }
    Ok(totals.report())
}
