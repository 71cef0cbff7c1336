//! A run between two steps, and the step.

use crate::adamw::{AdamW, AdamWConfig, clip_factor, grad_norm};
use crate::checkpoint::{self, Best, CheckpointError, Contents, Progress, State};
use crate::disk::Disk;
use crate::evaluate::{EvalPlan, EvalReport, Scored};
use crate::gradient::{Gradient, Phases};
use crate::guard::{self, NonFinite, finite};
use crate::schedule::{Decay, Schedule};
use crate::task::Task;
use moe_core::{MetricError, RouteError};
use moe_data::{DataError, Split};
use moe_models::Precision;
use moe_routers::ParamStore;
use moe_torch_sys::ShimError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::Tensor;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Stop after this many steps as if interrupted; the schedule still spans `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<u64>,
    /// Sequences of a batch.
    pub batch: usize,
    /// Micro batches that a batch is cut into, one after another: as many times less memory for
    /// activations, the same gradient up to rounding, but balance losses within a micro batch.
    pub accumulate: usize,
    /// What products are carried out in; parameters, optimiser, routers, norms and losses are `f32`.
    pub precision: Precision,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Lowest learning rate after decay, as a share of `lr`.
    pub lr_floor: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// How the learning rate falls.
    pub decay: Decay,
    /// Largest norm of all gradients together; 0 does not clip.
    pub clip: f64,
    /// Optimiser.
    pub adamw: AdamWConfig,
    /// A line in the log every so many steps.
    pub log_every: u64,
    /// An evaluation every so many steps, besides those at the start and at the end.
    pub eval_every: u64,
    /// Batches of an evaluation during training and at its end; 0 is the whole split.
    pub eval_batches: usize,
    /// A checkpoint every so many steps, besides the one at the end; 0 is only that one.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept, the newest; 0 keeps all.
    pub keep_last: usize,
    /// Whether an evaluation better than all before it writes a checkpoint, kept until a better one.
    pub keep_best: bool,
    /// Steps in all whose update may be skipped because a loss or gradient is not finite; one more
    /// stops the run, as the first does at 0.
    pub skip_nonfinite: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 200,
            stop_after: None,
            batch: 16,
            accumulate: 1,
            precision: Precision::Fp32,
            sequence: 128,
            lr: 3e-3,
            lr_floor: 0.1,
            warmup: 20,
            decay: Decay::Cosine,
            clip: 1.0,
            adamw: AdamWConfig::default(),
            log_every: 1,
            eval_every: 50,
            eval_batches: 16,
            checkpoint_every: 0,
            keep_last: 0,
            keep_best: false,
            skip_nonfinite: 0,
        }
    }
}

impl TrainConfig {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// The key, and what is wrong with its value.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let counts = [
            ("steps", self.steps),
            ("batch", self.batch as u64),
            ("sequence", self.sequence as u64),
            ("log_every", self.log_every),
            ("eval_every", self.eval_every),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, n)| *n == 0) {
            return Err((key, "0 must be at least 1".into()));
        }
        if self.accumulate == 0 || !self.batch.is_multiple_of(self.accumulate) {
            let reason = format!("{} does not divide batch {}", self.accumulate, self.batch);
            return Err(("accumulate", reason));
        }
        let below_one = [("adamw.beta1", self.adamw.beta1), ("adamw.beta2", self.adamw.beta2)];
        if let Some((key, v)) = below_one.into_iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return Err((key, format!("{v} is outside 0..1")));
        }
        let not_negative = [
            ("lr", self.lr),
            ("lr_floor", self.lr_floor),
            ("clip", self.clip),
            ("adamw.eps", self.adamw.eps),
            ("adamw.weight_decay", self.adamw.weight_decay),
        ];
        let bad = |v: f64| !(v.is_finite() && v >= 0.0);
        if let Some((key, v)) = not_negative.into_iter().find(|(_, v)| bad(*v)) {
            return Err((key, format!("{v} must be finite and at least 0")));
        }
        Ok(())
    }

    /// The learning rate over time.
    pub fn schedule(&self) -> Schedule {
        let Self { lr, lr_floor, warmup, steps, decay, .. } = *self;
        Schedule { peak: lr, floor: lr_floor, warmup, steps, decay }
    }

    /// The step after which this session of the run ends.
    pub fn last_step(&self) -> u64 {
        self.stop_after.map_or(self.steps, |stop| stop.min(self.steps))
    }
}

/// A step or an evaluation that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The data are too short, or the batch has no sensible shape.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A router refused.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The optimiser's kernel refused.
    #[error("the optimiser: {0}")]
    Optimizer(#[from] ShimError),
    /// An attack on images with settings out of their range, or on a model that is not finite.
    #[error("the attack: {0}")]
    Attack(#[from] MetricError),
    /// The user stopped an evaluation.
    #[error("stopped before the end of an evaluation")]
    Stopped,
    /// Loss, gradient, or what a router reads is NaN or infinite; the weights were not touched.
    #[error(
        "step {step}: {found}; the weights of step {step} are unharmed{}; lower train.lr or train.clip", after(*skipped)
    )]
    NotFinite {
        /// The step that was not taken.
        step: u64,
        /// Steps that were skipped before, for as much as `train.skip_nonfinite` allowed.
        skipped: u64,
        /// The number, and where it was met.
        found: NonFinite,
    },
}

fn after(skipped: u64) -> String {
    match skipped {
        0 => String::new(),
        n => format!("; {n} steps were skipped before, as many as train.skip_nonfinite allows"),
    }
}

/// How a run went on by one step.
#[derive(Debug, Clone, PartialEq)]
pub enum Advance {
    /// The update was made.
    Taken(StepReport),
    /// The step counts, but its update was skipped.
    Skipped {
        /// Steps taken, this one included.
        step: u64,
        /// What was not finite.
        found: NonFinite,
    },
}

/// What one step measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// Cross-entropy of the batch, nats per token.
    pub loss: f64,
    /// Auxiliary losses, unweighted, as `layer<l>/<name>`.
    pub aux: Vec<(String, f64)>,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Wall time of the step.
    pub seconds: f64,
    /// Where it went.
    #[serde(default)]
    pub phases: Phases,
}

/// A run between two steps.
#[derive(Debug)]
pub struct Trainer {
    task: Box<dyn Task>,
    store: ParamStore,
    optimizer: AdamW,
    config: TrainConfig,
    seed: u64,
    step: u64,
    skipped: u64,
    best: Option<Best>,
    record: serde_json::Value,
    stop: Arc<AtomicBool>,
}

impl Trainer {
    /// A run at step 0, whose data order and noise follow from `seed`.
    pub fn new(task: Box<dyn Task>, store: ParamStore, config: TrainConfig, seed: u64) -> Self {
        let optimizer = AdamW::new(&store, config.adamw);
        let (skipped, best, record) = (0, None, serde_json::Value::Null);
        let stop = Arc::default();
        Self { task, store, optimizer, config, seed, step: 0, skipped, best, record, stop }
    }

    /// The same run, whose evaluations end early when `stop` is set.
    pub fn with_stop(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = stop;
        self
    }

    /// The same run, whose checkpoints carry `record`: everything that decided it.
    pub fn with_record(mut self, record: serde_json::Value) -> Self {
        self.record = record;
        self
    }

    /// Steps taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Parameters that one token uses: all but the experts it does not visit.
    pub fn active_params(&self) -> usize {
        self.task.active_params(&self.store)
    }

    /// What it trains.
    pub fn task(&self) -> &dyn Task {
        self.task.as_ref()
    }

    /// Its parameters.
    pub fn store(&self) -> &ParamStore {
        &self.store
    }

    /// One step, or one skipped because something was not finite, for as much as the configuration
    /// allows.
    ///
    /// # Errors
    /// As [`Self::train_step`].
    pub fn advance(&mut self) -> Result<Advance, TrainError> {
        match self.train_step() {
            Err(TrainError::NotFinite { found, .. })
                if self.skipped < self.config.skip_nonfinite =>
            {
                self.skipped += 1;
                self.step += 1;
                Ok(Advance::Skipped { step: self.step, found })
            }
            taken => taken.map(Advance::Taken),
        }
    }

    /// One step: batch, loss, gradient, clipping, update.
    ///
    /// # Errors
    /// See [`TrainError`]; the weights are as they were.
    pub fn train_step(&mut self) -> Result<StepReport, TrainError> {
        self.try_step().map_err(|error| match guard::name_tensor(error, &self.store) {
            TrainError::NotFinite { step, found, .. } => {
                TrainError::NotFinite { step, skipped: self.skipped, found }
            }
            error => error,
        })
    }

    fn try_step(&mut self) -> Result<StepReport, TrainError> {
        let (start, step) = (Instant::now(), self.step);
        // First of all: gradients of the step before are no gradients of this one.
        self.store.zero_grad();
        let parts = self.config.accumulate;
        let found = Gradient::accumulate(self.task.as_ref(), (self.seed, step), parts)?;
        let Gradient { loss, aux, load_le, mut phases } = found;
        let update = Instant::now();
        let limit = if self.config.clip > 0.0 { self.config.clip } else { f64::INFINITY };
        let grad_norm = finite(step, "the norm of the gradient", grad_norm(&self.store))?;
        let lr = self.config.schedule().at(step);
        self.optimizer.step(lr, clip_factor(grad_norm, limit))?;
        phases.update = update.elapsed().as_secs_f64();
        self.task.after_step(&load_le);
        self.step += 1;
        let seconds = start.elapsed().as_secs_f64();
        Ok(StepReport { step: self.step, loss, aux, grad_norm, lr, seconds, phases })
    }

    /// Evaluates on `split`; `batches` of `None` is the whole split.
    ///
    /// # Errors
    /// See [`Task::evaluate`].
    pub fn evaluate(&self, split: Split, batches: Option<usize>) -> Result<EvalReport, TrainError> {
        self.task.evaluate(&self.plan(split, batches, None))
    }

    /// As [`Self::evaluate`]; `watch` sees every batch after it was scored, in order.
    ///
    /// # Errors
    /// See [`Task::evaluate`].
    pub fn evaluate_watched(
        &self,
        split: Split,
        batches: Option<usize>,
        watch: &dyn Fn(&Scored),
    ) -> Result<EvalReport, TrainError> {
        self.task.evaluate(&self.plan(split, batches, Some(watch)))
    }

    fn plan<'a>(
        &self,
        split: Split,
        batches: Option<usize>,
        watch: Option<&'a dyn Fn(&Scored)>,
    ) -> EvalPlan<'a> {
        EvalPlan { split, batches, seed: self.seed, stop: Arc::clone(&self.stop), watch }
    }

    /// Takes note of an evaluation of the present weights; whether it is the best so far.
    pub fn note_evaluation(&mut self, valid_loss: f64) -> bool {
        let better = self.best.is_none_or(|best| valid_loss < best.valid_loss);
        if better && valid_loss.is_finite() {
            self.best = Some(Best { step: self.step, valid_loss });
            return true;
        }
        false
    }

    /// Writes a checkpoint of this step below `checkpoints` and removes those that are not to be kept.
    ///
    /// # Errors
    /// The file system's; then earlier checkpoints are as they were.
    pub fn save(&self, checkpoints: &Path) -> Result<(), CheckpointError> {
        self.save_on(&Disk::PLAIN, checkpoints)
    }

    /// The same on a disk that may be watched.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_on(&self, disk: &Disk<'_>, checkpoints: &Path) -> Result<(), CheckpointError> {
        let dir = checkpoint::directory(checkpoints, self.step);
        checkpoint::save(disk, &dir, self.progress(), &self.contents())?;
        let best = self.best.filter(|_| self.config.keep_best).map(|best| best.step);
        checkpoint::retain(disk, checkpoints, self.config.keep_last, best)
    }

    fn progress(&self) -> Progress {
        let Self { step, seed, skipped, best, .. } = *self;
        Progress { step, seed, skipped, best, config: self.record.clone() }
    }

    /// Goes on from the checkpoint in `dir`.
    ///
    /// # Errors
    /// A damaged checkpoint, or one of another model.
    pub fn resume(&mut self, dir: &Path) -> Result<State, CheckpointError> {
        let state = checkpoint::load(dir, &self.contents())?;
        let Progress { step, seed, skipped, best, .. } = state.progress;
        (self.step, self.seed, self.skipped, self.best) = (step, seed, skipped, best);
        self.optimizer.set_steps(step.saturating_sub(skipped));
        Ok(state)
    }

    /// Takes the weights and buffers of the checkpoint in `dir`, and nothing of the optimiser: for
    /// evaluation, also by a rule that has frozen some of what the checkpoint's rule learned.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub fn load_weights(&mut self, dir: &Path) -> Result<State, CheckpointError> {
        let state = checkpoint::load_model(dir, &named(&self.store))?;
        self.step = state.progress.step;
        self.seed = state.progress.seed;
        Ok(state)
    }

    fn contents(&self) -> Contents {
        let resumed = self.optimizer.state().into_iter().chain(self.task.state());
        Contents { model: named(&self.store), optimizer: resumed.collect() }
    }
}

/// Every parameter and buffer by name.
pub fn named(store: &ParamStore) -> Vec<(String, Tensor)> {
    store.entries().iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
}
