//! One run: a recipe trained into a directory.
//!
//! ```text
//! DIR/recipe.toml        as resolved
//!     environment.json   commit, machine, versions
//!     metrics.jsonl      a line per logged step and per evaluation
//!     events.out.tfevents.*   the same for TensorBoard, a file per session
//!     probe/             routes of the probe set at every evaluation
//!     checkpoints/       step-000040/{model.safetensors,optimizer.safetensors,state.json}
//!     result.json        written last: the measures of a finished run
//! ```

use crate::environment::{environment, peak_memory_bytes};
use crate::error::{Misuse, is_stop};
use crate::files::{self, Held};
use crate::limits;
use crate::log::{EvalLine, Log, SkipLine};
use crate::recipe::{DataRecipe, Recipe};
use crate::results::Metrics;
use crate::subject::Subject;
use crate::which::Which;
use crate::worker::unless_stopped;
use anyhow::{Context, Result};
use moe_data::Split;
use moe_routers::ParamStore;
use moe_train::{Advance, Disk, EvalReport, Scored, StepReport, Task, Trainer, checkpoint};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    /// Something the user should know, as a sentence.
    Note(&'a str),
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
        let recorded = Recipe::read(&self.recipe(), &[]).ok()?;
        let same = recipe.differences(&recorded).is_empty();
        let json = fs::read_to_string(self.result()).ok().filter(|_| same)?;
        serde_json::from_str(&json).ok()
    }

    /// Refuses to go on with a run that another recipe began: neither of the two would be what came out.
    ///
    /// # Errors
    /// Every key that differs, with both values.
    pub fn refuse_other_recipe(&self, recipe: &Recipe) -> Result<(), Misuse> {
        if !self.recipe().exists() {
            return Ok(());
        }
        let differences = recipe.differences(&Recipe::read(&self.recipe(), &[])?);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Misuse::new(format!(
            "{} was trained with other settings ({}); choose another --out, or the same settings to continue",
            self.recipe().display(),
            differences.join("; ")
        )))
    }

    /// Makes the directory and takes it for this process.
    fn hold(&self) -> Result<Option<Held>> {
        let made = fs::create_dir_all(&self.0);
        made.with_context(|| format!("cannot write the run to {}", self.0.display()))?;
        Held::take(&self.0)
    }

    /// Writes recipe and environment.
    fn begin(&self, recipe: &Recipe, device: Device) -> Result<()> {
        let environment = serde_json::to_string_pretty(&environment(device))? + "\n";
        files::replace(&self.recipe(), recipe.to_toml().as_bytes())?;
        files::replace(&self.0.join("environment.json"), environment.as_bytes())
    }
}

/// A recipe made ready to train.
pub struct Prepared {
    recipe: Recipe,
    subject: Subject,
    trainer: Trainer,
    device: Device,
    stop: Arc<AtomicBool>,
    /// The last step that was saved.
    saved: Option<u64>,
}

/// Loads the data and builds the model.
///
/// # Errors
/// A recipe or data that cannot be used, too little memory, or [`Stopped`](crate::error::Stopped).
pub fn prepare(recipe: &Recipe, device: Device, stop: &Arc<AtomicBool>) -> Result<Prepared> {
    prepare_for(recipe, None, device, stop)
}

/// The same with data for a model that was trained on `trained`.
fn prepare_for(
    recipe: &Recipe,
    trained: Option<DataRecipe>,
    device: Device,
    stop: &Arc<AtomicBool>,
) -> Result<Prepared> {
    let recipe = recipe.resolved()?;
    recipe.check()?;
    let source = recipe.clone();
    let subject = unless_stopped(stop, move || Subject::open(&source, trained.as_ref()))?;
    // Refuses what could not even be numbered, before libtorch is asked for it.
    if let Some(ends) = subject.ends() {
        crate::estimate::estimate(&recipe, ends, 0)?;
    }
    limits::within(&recipe.clone(), || build(recipe, subject, device, stop))
}

fn build(
    recipe: Recipe,
    subject: Subject,
    device: Device,
    stop: &Arc<AtomicBool>,
) -> Result<Prepared> {
    let store = ParamStore::new(recipe.seed, device, Kind::Float);
    let task = subject.task(&recipe, &store, device)?;
    let trainer = Trainer::new(task, store, recipe.train.clone(), recipe.seed)
        .with_record(serde_json::to_value(&recipe)?)
        .with_stop(Arc::clone(stop));
    Ok(Prepared { recipe, subject, trainer, device, stop: Arc::clone(stop), saved: None })
}

impl Prepared {
    /// The trainer, for evaluation of a loaded checkpoint.
    pub fn trainer_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }

    /// Steps that the present weights have seen.
    pub fn steps_taken(&self) -> u64 {
        self.trainer.steps_taken()
    }

    /// Model and data.
    pub fn task(&self) -> &dyn Task {
        self.trainer.task()
    }

    /// What is trained, and how.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The data.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The flag that stops it.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// The present weights on other data of the same kind, for evaluation.
    ///
    /// # Errors
    /// Data that do not fit the model, or too little memory.
    pub fn with_subject(&self, subject: Subject) -> Result<Self> {
        let other = limits::within(&self.recipe, || {
            build(self.recipe.clone(), subject, self.device, &self.stop)
        })?;
        let (to, from) = (other.trainer.store().entries(), self.trainer.store().entries());
        let pairs = to.iter().zip(from.iter());
        tch::no_grad(|| pairs.for_each(|(to, from)| to.tensor.shallow_clone().copy_(&from.tensor)));
        drop((to, from));
        Ok(other)
    }

    /// Trains into `dir` until the recipe's last step, or until the flag of [`prepare`] is set; then
    /// saves.
    ///
    /// # Errors
    /// A step that could not be taken, too little memory, or files that could not be written.
    pub fn train(
        self,
        dir: &RunDir,
        resume: bool,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        limits::within(&self.recipe.clone(), || self.train_on(dir, resume, observe))
    }

    fn train_on(
        mut self,
        dir: &RunDir,
        resume: bool,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        let held = dir.hold()?;
        if held.is_none() {
            observe(Event::Note(
                "this file system has no locks: do not train into the directory twice at once",
            ));
        }
        if resume {
            dir.refuse_other_recipe(&self.recipe)?;
        }
        dir.begin(&self.recipe, self.device)?;
        self.go_on(dir, resume, observe)?;
        let tokens = self.subject.tokens_per_step(&self.recipe);
        let mut log = Log::open(&dir.metrics(), self.trainer.steps_taken(), tokens)?;
        let (begun, last) = (self.trainer.steps_taken(), self.recipe.train.last_step());
        observe(Event::Ready { done: begun, last });
        // A session that was stopped during an evaluation left it out.
        if self.due(self.recipe.train.eval_every) && !log.has_eval(begun) {
            self.eval(dir, &mut log, observe)?;
        }
        while self.trainer.steps_taken() < last && !self.stop.load(Ordering::Relaxed) {
            self.step(dir, &mut log, observe)?;
        }
        self.save(dir)?;
        let step = self.trainer.steps_taken();
        if step < self.recipe.train.steps || !log.has_eval(step) {
            return Ok(Outcome::Stopped(step));
        }
        let metrics = self.metrics(dir, &log)?;
        let json = serde_json::to_string_pretty(&metrics)?
            + "
";
        files::replace(&dir.result(), json.as_bytes())?;
        Ok(Outcome::Finished(Box::new(metrics)))
    }

    /// Resumes from the newest checkpoint if asked to and if there is one, and says what an interrupted
    /// save left; fine-tuning otherwise begins with the language model's weights.
    fn go_on(
        &mut self,
        dir: &RunDir,
        resume: bool,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        for line in checkpoint::sweep(&Disk::PLAIN, &dir.checkpoints())? {
            observe(Event::Note(&line));
        }
        if let Some(newest) = checkpoint::latest(&dir.checkpoints())?.filter(|_| resume) {
            self.trainer.resume(&newest)?;
            self.saved = Some(self.trainer.steps_taken());
        } else if let Some(classify) = &self.recipe.classify {
            observe(Event::Note(&classify.start(&self.recipe, &mut self.trainer)?));
        }
        Ok(())
    }

    /// Whether something is due after the present step that falls due every so many, and at the end.
    fn due(&self, every: u64) -> bool {
        let step = self.trainer.steps_taken();
        every > 0 && (step.is_multiple_of(every) || step == self.recipe.train.steps)
    }

    /// Saves the present step, unless that was done.
    fn save(&mut self, dir: &RunDir) -> Result<()> {
        let step = Some(self.trainer.steps_taken());
        if self.saved != step {
            self.trainer.save(&dir.checkpoints())?;
            self.saved = step;
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
        let name = || format!("router {}", self.recipe.router.name);
        match self.trainer.advance().with_context(name)? {
            Advance::Taken(report) => {
                if self.due(self.recipe.train.log_every) {
                    log.step(&report)?;
                }
                observe(Event::Step(&report));
            }
            Advance::Skipped { step, found } => {
                log.skip(SkipLine { step, reason: found.to_string() })?;
                observe(Event::Note(&format!("step {step}: {found}; its update was skipped")));
            }
        }
        if self.due(self.recipe.train.eval_every) {
            self.eval(dir, log, observe)?;
        }
        let end = self.trainer.steps_taken() == self.recipe.train.steps;
        if self.due(self.recipe.train.checkpoint_every) && !end {
            self.save(dir)?;
        }
        Ok(())
    }

    /// Evaluates, unless the run is stopped meanwhile: then resuming does it.
    fn eval(
        &mut self,
        dir: &RunDir,
        log: &mut Log,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let line = match self.evaluate_probed(dir, log.last_eval()) {
            Err(error) if is_stop(&error) => return Ok(()),
            line => line?,
        };
        log.eval(&line)?;
        observe(Event::Eval(&line));
        let best = self.trainer.note_evaluation(line.report.loss);
        if best && self.recipe.train.keep_best {
            self.save(dir)?;
        }
        Ok(())
    }

    /// Evaluates the present weights.
    ///
    /// # Errors
    /// A split that is too short, a router without room, too little memory, or a stop.
    pub fn evaluate(&self, split: Split, batches: Option<usize>) -> Result<EvalLine> {
        let start = Instant::now();
        let evaluate = || Ok(self.trainer.evaluate(split, batches)?);
        let report = limits::within(&self.recipe, evaluate)?;
        Ok(self.line(split, report, start))
    }

    /// The step of the present weights, and what routers decide on `split`: `watch` sees every batch.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub fn watch(
        &self,
        split: Split,
        batches: Option<usize>,
        watch: &dyn Fn(&Scored),
    ) -> Result<EvalLine> {
        let start = Instant::now();
        let evaluate = || Ok(self.trainer.evaluate_watched(split, batches, watch)?);
        let report = limits::within(&self.recipe, evaluate)?;
        Ok(self.line(split, report, start))
    }

    fn line(&self, split: Split, report: EvalReport, start: Instant) -> EvalLine {
        let step = self.trainer.steps_taken();
        let bits_per_byte = self.subject.bits_per_byte(split, report.loss);
        let seconds = start.elapsed().as_secs_f64();
        EvalLine { step, split: split.name().into(), bits_per_byte, seconds, report, probe: None }
    }

    fn metrics(&self, dir: &RunDir, log: &Log) -> Result<Metrics> {
        let mut metrics = Metrics {
            params_active: self.trainer.active_params() as u64,
            params_total: self.trainer.store().trainable_count() as u64,
            peak_memory_bytes: peak_memory_bytes(),
            ..log.summary()
        };
        if let Some(routing) = &mut metrics.routing {
            routing.keep(dir, self.steps_taken())?;
        }
        Ok(metrics)
    }
}

/// A model with the weights of a checkpoint of a run, for evaluation: the optimiser starts afresh.
///
/// # Errors
/// No run, no checkpoint, or a damaged one.
pub fn load(
    (dir, which): (&Path, Which),
    sets: &[String],
    device: Device,
    stop: &Arc<AtomicBool>,
) -> Result<Prepared> {
    let Trained { recipe, data, checkpoint } = trained((dir, which), sets)?;
    let mut prepared = prepare_for(&recipe, Some(data), device, stop)?;
    prepared.trainer_mut().load_weights(&checkpoint)?;
    Ok(prepared)
}

/// What a run left for evaluation.
pub(crate) struct Trained {
    /// Its recipe with settings put over it.
    pub(crate) recipe: Recipe,
    /// The data that it was trained on.
    pub(crate) data: DataRecipe,
    /// The checkpoint.
    pub(crate) checkpoint: PathBuf,
}

/// A run, with `sets` put over its recipe.
///
/// # Errors
/// No run or no such checkpoint there.
pub(crate) fn trained((dir, which): (&Path, Which), sets: &[String]) -> Result<Trained> {
    let dir = RunDir(dir.to_owned());
    if !dir.recipe().exists() {
        let message = format!("{}: no run here (no recipe.toml)", dir.0.display());
        return Err(Misuse::new(message).into());
    }
    let checkpoint = which.of(&dir)?;
    let recipe = Recipe::read(&dir.recipe(), sets)?;
    let data = Recipe::read(&dir.recipe(), &[])?.data;
    Ok(Trained { recipe, data, checkpoint })
}
