//! The probe set of a run: the first batches of the validation split, at which every evaluation looks
//! closely. Which tokens these are is a function of data, batch and sequence, so that seeds, routers and
//! both halves of a resumed run look at the same ones.
//!
//! ```text
//! DIR/probe/step-000060.json   the experts of every probe token at that evaluation
//!           map.json           router inputs of the last sparse layer in two dimensions, after the last step
//! ```
//!
//! The evaluation runs the model anyway; what the probe adds is arithmetic on the host.
//!
//! Axis letters: `l` sparse layers, `t` probe tokens, `k` choices, `e` experts, `n` samples, `d` width.

mod files;
mod layer;
mod look;
mod metrics;

pub use files::{Map, Neighbours, Routes};
pub use metrics::RoutingMetrics;

use crate::log::EvalLine;
use crate::run::{Prepared, RunDir};
use crate::subject::Subject;
use anyhow::Result;
use look::Look;
use moe_data::Split;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::time::Instant;

/// Batches of the validation split.
pub const BATCHES: usize = 2;

/// What the probe set showed at one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// Its tokens.
    pub tokens: usize,
    /// Wall time that looking took, beside the evaluation's.
    pub seconds: f64,
    /// One entry per sparse layer.
    pub layers: Vec<LayerProbe>,
}

/// One sparse layer on the probe set. Measures are absent where they have no meaning (a router that mixes
/// all tokens decides nothing) or could not be computed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerProbe {
    /// Share of tokens whose first expert differs from that at the evaluation before; absent at the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_fluctuation: Option<f64>,
    /// Share of tokens whose set of experts differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_fluctuation_set: Option<f64>,
    /// Share of token pairs together at one expert in this layer or the next, but not in both (ACMoE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_layer_instability: Option<f64>,
    /// Mean combine weight of the kept choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_confidence: Option<f64>,
    /// Largest over mean load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_imbalance: Option<f64>,
    /// Standard deviation over mean of the load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_cv: Option<f64>,
    /// Entropy of the load over `ln E`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_entropy: Option<f64>,
    /// Mutual information of first expert and class (the token's id; an image's class), nats. Few tokens
    /// of many classes lift it; by how much is alike for all routers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialisation: Option<f64>,
    /// The same as a share of the mean of both entropies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub specialisation_normalised: Option<f64>,
    /// `RC` of what the router read, classes by first expert; smaller is more collapsed (X-MoE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub representation_collapse: Option<f64>,
    /// Effective rank of what the router read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_rank: Option<f64>,
    /// Effective rank of what the layer made of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_rank_output: Option<f64>,
    /// Mean cosine of two experts' weights; after the last step only, like the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_similarity_weights: Option<f64>,
    /// Mean cosine of what two experts make of the same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_similarity_outputs: Option<f64>,
}

impl Prepared {
    /// Evaluates the present weights with a look at the probe set. `before` is the step of the evaluation
    /// before, whose routes `dir` holds.
    ///
    /// # Errors
    /// As [`Prepared::evaluate`], and files that cannot be read or written.
    pub fn evaluate_probed(&self, dir: &RunDir, before: Option<u64>) -> Result<EvalLine> {
        let recipe = self.recipe();
        let labels = labels(self.subject(), recipe)?;
        let look = RefCell::new(Look::new(labels));
        let batches = Some(recipe.train.eval_batches).filter(|n| *n > 0);
        let mut line =
            self.watch(Split::Valid, batches, &|scored| look.borrow_mut().take(scored))?;
        let (start, look) = (Instant::now(), look.into_inner());
        // A run of an earlier version kept no routes.
        let earlier = before.map(|step| Routes::read(dir, step)).transpose()?.flatten();
        let end = line.step == recipe.train.steps;
        let mut layers = look.layers(earlier.as_ref(), end)?;
        look.routes().write(dir, line.step)?;
        if end {
            let sparse = self.task().sparse_layers();
            layers.iter_mut().zip(&sparse).zip(&look.seen).for_each(|((l, sparse), seen)| {
                layer::similarities(l, sparse, seen);
            });
            if let Some(map) = look.map() {
                map.write(dir)?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        line.probe = Some(ProbeReport { tokens: look.tokens(), seconds, layers });
        Ok(line)
    }
}

/// The class of every probe token, batch by batch: its id, or its image's class; one per image there.
fn labels(subject: &Subject, recipe: &crate::recipe::Recipe) -> Result<Vec<Vec<usize>>> {
    let (batch, sequence) = (recipe.train.batch, recipe.train.sequence);
    let ids = |ids: &mut dyn Iterator<Item = &i64>| ids.map(|&id| id as usize).collect();
    if let Subject::Images(images, _) = subject {
        let batches = images.eval_batches(Split::Valid, batch)?.take(BATCHES);
        return Ok(batches.map(|batch| ids(&mut batch.label_b.iter())).collect());
    }
    let Subject::Text(text) = subject else { return Ok(Vec::new()) };
    if recipe.model.span.is_none() {
        let batches = text.eval_batches(Split::Valid, batch, sequence)?.take(BATCHES);
        return Ok(batches.map(|batch| ids(&mut batch.x_bt.iter())).collect());
    }
    let texts = text.side_by_side(Split::Valid, batch, sequence)?;
    let stretches = (0..texts.stretches().min(BATCHES)).map(|index| texts.stretch(index));
    Ok(stretches.map(|batch| ids(&mut batch.x_bt.iter())).collect())
}
