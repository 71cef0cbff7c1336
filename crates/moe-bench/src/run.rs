//! One run: a recipe trained into a directory.
//!
//! ```text
//! DIR/recipe.toml        as resolved
//!     environment.json   commit, machine, versions
//!     metrics.jsonl      a line per logged step and per evaluation
//!     checkpoints/       step-000040/{model.safetensors,optimizer.safetensors,state.json}
//!     result.json        written last: the measures of a finished run
//! ```

use crate::environment::{environment, peak_memory_bytes};
use crate::error::Misuse;
use crate::log::{EvalLine, Log};
use crate::recipe::Recipe;
use crate::results::Metrics;
use crate::subject::Subject;
use anyhow::{Context, Result};
use moe_data::Split;
use moe_routers::ParamStore;
use moe_train::{StepReport, Trainer, checkpoint};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind};

/// What happens during a run, for progress bars and for a parent process.
#[derive(Debug)]
pub enum Event<'a> {
    /// Data and model are ready; this many steps are done, out of so many.
    Ready {
        /// Steps done before this session.
        done: u64,
        /// Steps of this session's end.
        last: u64,
    },
    /// A step was taken.
    Step(&'a StepReport),
    /// An evaluation ended.
    Eval(&'a EvalLine),
}

/// How a session of a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are taken; the measures are in `result.json`.
    Finished(Box<Metrics>),
    /// Stopped after this step, with a checkpoint.
    Stopped(u64),
}

/// The files of a run.
#[derive(Debug, Clone)]
pub struct RunDir(pub PathBuf);

impl RunDir {
    /// The recipe as resolved.
    pub fn recipe(&self) -> PathBuf {
        self.0.join("recipe.toml")
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// The log.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The measures of a finished run.
    pub fn result(&self) -> PathBuf {
        self.0.join("result.json")
    }

    /// The measures, if the run finished with this very recipe.
    pub fn finished(&self, recipe: &Recipe) -> Option<Metrics> {
        let same = fs::read_to_string(self.recipe()).ok()? == recipe.to_toml();
        let json = fs::read_to_string(self.result()).ok().filter(|_| same)?;
        serde_json::from_str(&json).ok()
    }

    /// Makes the directory and writes recipe and environment.
    fn begin(&self, recipe: &Recipe, device: Device) -> Result<()> {
        let writable = || -> std::io::Result<()> {
            fs::create_dir_all(&self.0)?;
            fs::write(self.recipe(), recipe.to_toml())?;
            let environment = serde_json::to_string_pretty(&environment(device))?;
            fs::write(self.0.join("environment.json"), environment + "\n")
        };
        writable().with_context(|| format!("cannot write the run to {}", self.0.display()))
    }
}

/// A recipe made ready to train.
pub struct Prepared {
    recipe: Recipe,
    subject: Subject,
    trainer: Trainer,
    device: Device,
}

/// Loads the data and builds the model.
///
/// # Errors
/// A recipe or data that cannot be used.
pub fn prepare(recipe: &Recipe, device: Device) -> Result<Prepared> {
    let recipe = recipe.resolved()?;
    recipe.check()?;
    let subject = Subject::open(&recipe)?;
    // Refuses what could not even be numbered, before libtorch is asked for it.
    if let Subject::Text(text) = &subject {
        crate::estimate::estimate(&recipe, text.vocab_size(), 0)?;
    }
    let store = ParamStore::new(recipe.seed, device, Kind::Float);
    let task = subject.task(&recipe, &store, device)?;
    let trainer = Trainer::new(task, store, recipe.train.clone(), recipe.seed);
    Ok(Prepared { recipe, subject, trainer, device })
}

impl Prepared {
    /// The trainer, for evaluation of a loaded checkpoint.
    pub fn trainer_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    /// The data.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Trains into `dir` until the recipe's last step, or until `stop` is set; then saves.
    ///
    /// # Errors
    /// A step that could not be taken, or files that could not be written.
    pub fn train(
        mut self,
        dir: &RunDir,
        resume: bool,
        stop: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        dir.begin(&self.recipe, self.device)?;
        self.go_on(dir, resume)?;
        let mut log = Log::open(&dir.metrics(), self.trainer.steps_taken())?;
        let last = self.recipe.train.last_step();
        observe(Event::Ready { done: self.trainer.steps_taken(), last });
        if self.trainer.steps_taken() == 0 {
            self.eval(&mut log, observe)?;
        }
        while self.trainer.steps_taken() < last && !stop.load(Ordering::Relaxed) {
            self.step(dir, &mut log, observe)?;
        }
        self.trainer.save(&dir.checkpoints())?;
        let step = self.trainer.steps_taken();
        if step < self.recipe.train.steps {
            return Ok(Outcome::Stopped(step));
        }
        let metrics = self.metrics(&log);
        let json = serde_json::to_string_pretty(&metrics)?;
        fs::write(dir.result(), json + "\n")
            .with_context(|| format!("cannot write {}", dir.result().display()))?;
        Ok(Outcome::Finished(Box::new(metrics)))
    }

    /// Resumes from the newest checkpoint if asked to and if there is one.
    fn go_on(&mut self, dir: &RunDir, resume: bool) -> Result<()> {
        if let Some(newest) = checkpoint::latest(&dir.checkpoints())?.filter(|_| resume) {
            self.trainer.resume(&newest)?;
        }
        Ok(())
    }

    /// One step with whatever falls due after it.
    fn step(
        &mut self,
        dir: &RunDir,
        log: &mut Log,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let report = self.trainer.train_step()?;
        let (step, train) = (report.step, &self.recipe.train);
        let end = step == train.steps;
        if step.is_multiple_of(train.log_every) || end {
            log.step(&report)?;
        }
        observe(Event::Step(&report));
        if step.is_multiple_of(train.eval_every) || end {
            self.eval(log, observe)?;
        }
        let every = self.recipe.train.checkpoint_every;
        if every > 0 && step.is_multiple_of(every) && !end {
            self.trainer.save(&dir.checkpoints())?;
        }
        Ok(())
    }

    fn eval(&self, log: &mut Log, observe: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let line = self.evaluate(Split::Valid, self.batches())?;
        log.eval(&line)?;
        observe(Event::Eval(&line));
        Ok(())
    }

    fn batches(&self) -> Option<usize> {
        Some(self.recipe.train.eval_batches).filter(|n| *n > 0)
    }

    /// Evaluates the present weights.
    ///
    /// # Errors
    /// A split that is too short, or a router without room.
    pub fn evaluate(&self, split: Split, batches: Option<usize>) -> Result<EvalLine> {
        let start = Instant::now();
        let report = self.trainer.evaluate(split, batches)?;
        let step = self.trainer.steps_taken();
        let bits_per_byte = self.subject.bits_per_byte(split, report.loss);
        let seconds = start.elapsed().as_secs_f64();
        Ok(EvalLine { step, split: split.name().into(), bits_per_byte, seconds, report })
    }

    fn metrics(&self, log: &Log) -> Metrics {
        let tokens = self.subject.tokens_per_step(&self.recipe);
        Metrics {
            params_active: self.trainer.active_params() as u64,
            params_total: self.trainer.store().trainable_count() as u64,
            peak_memory_bytes: peak_memory_bytes(),
            ..log.summary(tokens)
        }
    }
}

/// A model with the weights of the newest checkpoint of a run, for evaluation: the optimiser starts
/// afresh.
///
/// # Errors
/// No run, no checkpoint, or a damaged one.
pub fn load(dir: &Path, sets: &[String], device: Device) -> Result<Prepared> {
    let dir = RunDir(dir.to_owned());
    if !dir.recipe().exists() {
        let message = format!("{}: no run here (no recipe.toml)", dir.0.display());
        return Err(Misuse::new(message).into());
    }
    let recipe = Recipe::read(&dir.recipe(), sets)?;
    let newest = checkpoint::latest(&dir.checkpoints())?.ok_or_else(|| {
        Misuse::new(format!("{}: no checkpoint yet", dir.checkpoints().display()))
    })?;
    let mut prepared = prepare(&recipe, device)?;
    prepared.trainer_mut().load_weights(&newest)?;
    Ok(prepared)
}
