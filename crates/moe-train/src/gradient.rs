//! The gradient of a step, from one micro batch after another.
//!
//! Losses are means over tokens and micro batches are of one size, so that the mean of their gradients
//! is the gradient of the whole batch, up to rounding. What a router adds to the objective is computed
//! within a micro batch: a balance loss sees the loads of its tokens alone, and its mean over micro
//! batches is not the loss of the whole batch.
//!
//! Axis letters: `l` sparse layers, `e` experts.

use crate::guard;
use crate::task::{Draw, Task};
use crate::trainer::TrainError;
use moe_models::LayerTrace;
use moe_routers::{Phase, RouteCx, SeededNoise};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::Tensor;

/// Wall time of the parts of a step, seconds. On a device that computes while the host goes on, a part
/// ends when the host reads its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Batch, forward pass and losses.
    pub forward: f64,
    /// Backward pass.
    pub backward: f64,
    /// Norm, clipping and update.
    pub update: f64,
}

/// What the micro batches of a step left besides the gradients in the parameters.
#[derive(Debug, Default)]
pub(crate) struct Gradient {
    /// Mean loss.
    pub(crate) loss: f64,
    /// Mean of each auxiliary loss, unweighted.
    pub(crate) aux: Vec<(String, f64)>,
    /// Rows of each expert, one `[e]` per sparse layer.
    pub(crate) load_le: Vec<Tensor>,
    /// Time so far.
    pub(crate) phases: Phases,
}

impl Gradient {
    /// Adds the gradients of all micro batches of a step to those of the parameters.
    ///
    /// # Errors
    /// A loss that is not finite, data too short, or a router that refuses.
    pub(crate) fn accumulate(
        task: &dyn Task,
        (seed, step): (u64, u64),
        parts: usize,
    ) -> Result<Self, TrainError> {
        let mut sum = Self::default();
        for part in 0..parts {
            sum.add(task, Draw { seed, step, part, parts })?;
        }
        Ok(sum)
    }

    fn add(&mut self, task: &dyn Task, draw: Draw) -> Result<(), TrainError> {
        let (start, Draw { seed, step, part, parts }) = (Instant::now(), draw);
        // Micro batches draw apart, and a step without them draws as it always did.
        let noise = SeededNoise::train(seed, step * parts as u64 + part as u64);
        let cx = RouteCx::new(Phase::Train { step }, &noise);
        let (loss, traces) = task.loss(draw, &cx).map_err(|error| guard::refused(step, error))?;
        self.loss += guard::losses(step, &loss, &traces)? / parts as f64;
        let forward = start.elapsed();
        let objective = weighted_aux(&traces).map_or(loss.shallow_clone(), |aux| loss + aux);
        (objective / parts as f64).backward();
        self.phases.forward += forward.as_secs_f64();
        self.phases.backward += (start.elapsed() - forward).as_secs_f64();
        self.keep(&traces, parts);
        Ok(())
    }

    /// Adds what is reported of a micro batch.
    fn keep(&mut self, traces: &[LayerTrace], parts: usize) {
        let aux = aux_values(traces).into_iter().map(|(name, v)| (name, v / parts as f64));
        let loads = traces.iter().map(|trace| trace.routing.plan.load_e());
        if self.load_le.is_empty() {
            (self.aux, self.load_le) = (aux.collect(), loads.collect());
            return;
        }
        self.aux.iter_mut().zip(aux).for_each(|((_, sum), (_, value))| *sum += value);
        self.load_le.iter_mut().zip(loads).for_each(|(sum, load_e)| *sum = &*sum + load_e);
    }
}

/// What routers add to the objective.
fn weighted_aux(traces: &[LayerTrace]) -> Option<Tensor> {
    let all = traces.iter().flat_map(|trace| &trace.routing.aux);
    let all = all.filter(|aux| aux.weight != 0.0); // the others are only reported
    all.map(|aux| &aux.value * aux.weight).reduce(|sum, aux| sum + aux)
}

fn aux_values(traces: &[LayerTrace]) -> Vec<(String, f64)> {
    let layers = traces.iter();
    let named =
        layers.flat_map(|trace| {
            trace.routing.aux.iter().map(|aux| {
                (format!("layer{}/{}", trace.layer, aux.name), aux.value.double_value(&[]))
            })
        });
    named.collect()
}
