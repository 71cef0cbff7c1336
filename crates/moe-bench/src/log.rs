//! `metrics.jsonl`: a line per logged step and per evaluation, the same for TensorBoard, and what a run comes to.
//!
//! Axis letters: `l` sparse layers, `e` experts.

use crate::files;
use crate::probe::{ProbeReport, RoutingMetrics};
use crate::results::Metrics;
use crate::tensorboard::{self, EventFile};
use anyhow::{Context, Result};
use moe_core::LoadStats;
use moe_train::{EvalReport, LayerReport, StepReport};
use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Line {
    Train(StepReport),
    Eval(EvalLine),
    Skipped(SkipLine),
}

/// A step whose update was skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SkipLine {
    /// Steps taken, this one included.
    pub step: u64,
    /// What was not finite.
    pub reason: String,
}

/// An evaluation, as logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// Steps taken.
    pub step: u64,
    /// `train`, `valid` or `test`.
    pub split: String,
    /// Bits per byte of text; absent where tokens lose text.
    pub bits_per_byte: Option<f64>,
    /// Wall time.
    pub seconds: f64,
    /// What was measured.
    #[serde(flatten)]
    pub report: EvalReport,
    /// What the probe set showed; absent in logs of earlier versions and on other splits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeReport>,
}

/// The log of a run: the file, its lines so far, and TensorBoard's file of this session.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    events: EventFile,
    tokens_per_step: usize,
    lines: Vec<Line>,
}

impl Log {
    /// Opens the log of a run that goes on after `step`; lines of later steps, which an interrupted
    /// session wrote after its last checkpoint, are taken out. A step takes `tokens_per_step` tokens.
    ///
    /// # Errors
    /// A file that cannot be written, or a line that is none of this log's.
    pub fn open(path: &Path, step: u64, tokens_per_step: usize) -> Result<Self> {
        let lines = if step == 0 { Vec::new() } else { read(path, step)? };
        let text: String = lines.iter().map(text_of).collect();
        files::replace(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let events = begin_events(path, step, &lines, tokens_per_step)
            .with_context(|| format!("cannot write event files beside {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, events, tokens_per_step, lines })
    }

    /// Logs a step.
    ///
    /// # Errors
    /// The file system's.
    pub fn step(&mut self, report: &StepReport) -> Result<()> {
        self.write(Line::Train(report.clone()))
    }

    /// Logs a step whose update was skipped.
    ///
    /// # Errors
    /// The file system's.
    pub fn skip(&mut self, line: SkipLine) -> Result<()> {
        self.write(Line::Skipped(line))
    }

    /// Whether the weights of `step` were evaluated.
    pub fn has_eval(&self, step: u64) -> bool {
        self.lines.iter().filter_map(Line::as_eval).any(|line| line.step == step)
    }

    /// The step of the evaluation logged last.
    pub fn last_eval(&self) -> Option<u64> {
        self.lines.iter().rev().find_map(Line::as_eval).map(|line| line.step)
    }

    /// Logs an evaluation.
    ///
    /// # Errors
    /// The file system's.
    pub fn eval(&mut self, line: &EvalLine) -> Result<()> {
        self.write(Line::Eval(line.clone()))
    }

    fn write(&mut self, line: Line) -> Result<()> {
        // One write per line: a reader never sees half of one.
        let done = self.file.write_all(text_of(&line).as_bytes());
        done.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.events
            .scalars(line.step(), &line.scalars(self.tokens_per_step))
            .with_context(|| format!("cannot write the event file of {}", self.path.display()))?;
        self.lines.push(line);
        Ok(())
    }

    /// What the run comes to by its last evaluation; sizes and memory are the caller's.
    pub fn summary(&self) -> Metrics {
        let evals: Vec<&EvalLine> = self.lines.iter().filter_map(Line::as_eval).collect();
        let steps: Vec<&StepReport> = self.lines.iter().filter_map(Line::as_train).collect();
        let train_seconds: f64 = steps.iter().map(|s| s.seconds).sum();
        let mut metrics = evals.last().map(|last| quality(last)).unwrap_or_default();
        metrics.tokens_per_second =
            (self.tokens_per_step * steps.len()) as f64 / train_seconds.max(1e-9);
        metrics.train_seconds = train_seconds;
        metrics.train_curve = steps.iter().map(|s| (s.step, s.loss)).collect();
        metrics.valid_curve = evals.iter().map(|e| (e.step, e.report.loss)).collect();
        metrics.routing = RoutingMetrics::of(&evals);
        // A single expert has all the load, which is nothing to look at.
        let choice = evals.iter().filter(|e| e.report.layers.iter().any(|l| l.load_e.len() > 1));
        metrics.expert_usage = choice.map(|e| (e.step, usage(&e.report.layers))).collect();
        metrics
    }
}

impl Line {
    fn as_eval(&self) -> Option<&EvalLine> {
        if let Self::Eval(line) = self { Some(line) } else { None }
    }

    fn as_train(&self) -> Option<&StepReport> {
        if let Self::Train(report) = self { Some(report) } else { None }
    }

    fn step(&self) -> u64 {
        match self {
            Self::Train(report) => report.step,
            Self::Eval(line) => line.step,
            Self::Skipped(line) => line.step,
        }
    }

    /// What TensorBoard is told of it; nothing of a skipped update.
    fn scalars(&self, tokens_per_step: usize) -> Vec<(String, f64)> {
        match self {
            Self::Train(report) => tensorboard::of_step(report, tokens_per_step),
            Self::Eval(line) => tensorboard::of_eval(line),
            Self::Skipped(_) => Vec::new(),
        }
    }
}

/// The event file of a session that goes on after `step`; a run that has none of earlier sessions gets their lines.
fn begin_events(path: &Path, step: u64, lines: &[Line], tokens: usize) -> io::Result<EventFile> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let told = EventFile::any(dir)?;
    let mut events = EventFile::begin(dir, if step == 0 { 0 } else { step + 1 })?;
    for line in lines.iter().filter(|_| !told) {
        events.scalars(line.step(), &line.scalars(tokens))?;
    }
    Ok(events)
}

fn text_of(line: &Line) -> String {
    serde_json::to_string(line).expect("a line is plain data") + "\n"
}

fn read(path: &Path, step: u64) -> Result<Vec<Line>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str::<Line>(line) {
            Ok(line) if line.step() <= step => lines.push(line),
            Ok(_) => {}
            // A session that was killed may have left half a line at the end.
            Err(_) if number + 1 == text.lines().count() => {}
            Err(e) => anyhow::bail!("{} line {}: {e}", path.display(), number + 1),
        }
    }
    Ok(lines)
}

/// Measures of one evaluation, means over the sparse layers.
fn quality(line: &EvalLine) -> Metrics {
    let EvalReport { loss, ref layers, routing_share, ref measures, .. } = line.report;
    let mean = |f: &dyn Fn(&LayerReport) -> f64| {
        layers.iter().map(f).sum::<f64>() / layers.len().max(1) as f64
    };
    let loads = || layers.iter().flat_map(|l| &l.load_e);
    let dead = loads().filter(|load| **load == 0.0).count();
    Metrics {
        valid_loss: loss,
        valid_perplexity: loss.exp(),
        bits_per_byte: line.bits_per_byte,
        valid_accuracy: measures.get("accuracy").copied(),
        load_imbalance: mean(&imbalance),
        dead_experts: dead as u64,
        dead_expert_proportion: dead as f64 / loads().count().max(1) as f64,
        fraction_tokens_left_behind: mean(&|l| l.fraction_tokens_left_behind),
        gate_entropy: mean(&|l| l.gate_entropy),
        routing_share,
        measures: line.report.measures.clone(),
        ..Metrics::default()
    }
}

/// Largest over mean load; 1 if nothing was routed at all.
pub(crate) fn imbalance(layer: &LayerReport) -> f64 {
    LoadStats::of(ArrayView1::from(&layer.load_e)).map_or(1.0, |stats| stats.max_over_mean)
}

/// Shares of the rows, `[l][e]`.
fn usage(layers: &[LayerReport]) -> Vec<Vec<f64>> {
    let share = |l: &LayerReport| {
        let total = l.load_e.iter().sum::<f64>().max(1.0);
        l.load_e.iter().map(|load| load / total).collect()
    };
    layers.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensorboard::read::{Scalars, files, scalars};
    use moe_train::Phases;
    use std::collections::BTreeMap;

    const TOKENS: usize = 32;

    fn train(step: u64, loss: f64) -> StepReport {
        let aux = vec![("layer0/balance".to_owned(), 1.25)];
        let phases = Phases::default();
        StepReport { step, loss, aux, grad_norm: loss / 3.0, lr: 1e-3, seconds: 0.3, phases }
    }

    fn eval(step: u64, loss: f64) -> EvalLine {
        let layer = |load_e: &[f64]| LayerReport {
            load_e: load_e.to_vec(),
            gate_entropy: 0.7,
            fraction_tokens_left_behind: 0.1,
            expert_rows: load_e.iter().sum(),
        };
        let layers = vec![layer(&[6.0, 0.0]), layer(&[8.0])];
        let measures = BTreeMap::from([("accuracy".to_owned(), 0.3)]);
        let report = EvalReport { loss, tokens: 6, layers, routing_share: 0.2, measures };
        let split = "valid".to_owned();
        EvalLine { step, split, bits_per_byte: Some(loss / 2.0), seconds: 0.1, report, probe: None }
    }

    /// A session that takes the steps after `from`, with losses around `shift`.
    fn session(dir: &Path, from: u64, to: u64, shift: f64) -> Log {
        let mut log = Log::open(&dir.join("metrics.jsonl"), from, TOKENS).unwrap();
        if from == 0 {
            log.eval(&eval(0, 5.0)).unwrap();
        }
        for step in from + 1..=to {
            log.step(&train(step, shift + step as f64 / 7.0)).unwrap();
        }
        log.eval(&eval(to, shift)).unwrap();
        log
    }

    /// What `metrics.jsonl` says, by tag and step, as a reader of event files holds it.
    fn logged(dir: &Path) -> Scalars {
        let lines = read(&dir.join("metrics.jsonl"), u64::MAX).unwrap();
        let of = |line: &Line| {
            let step = line.step();
            line.scalars(TOKENS).into_iter().map(move |(tag, value)| ((tag, step), value as f32))
        };
        lines.iter().flat_map(of).collect()
    }

    #[test]
    fn event_files_say_what_the_log_says() {
        let dir = tempfile::tempdir().unwrap();
        session(dir.path(), 0, 6, 1.0);
        let found = scalars(dir.path());
        assert_eq!(found, logged(dir.path()));
        let at = |tag: &str, step| found[&(tag.to_owned(), step)];
        assert_eq!(at("train/loss", 3), (1.0 + 3.0 / 7.0) as f32);
        assert_eq!(at("train/tokens_per_second", 3), (32.0 / 0.3) as f32);
        assert_eq!((at("aux/layer0/balance", 6), at("valid/loss", 6)), (1.25, 1.0));
        assert_eq!((at("load_imbalance/layer0", 0), at("valid/accuracy", 0)), (2.0, 0.3));
        assert_eq!(at("dead_expert_proportion/layer0", 0), 0.5);
        assert!(!found.contains_key(&("load_imbalance/layer1".to_owned(), 0)), "one expert");
    }

    /// Killed after step 6 with a checkpoint of step 4: steps 5 and 6 are taken again, and come out elsewhere.
    #[test]
    fn a_resumed_session_leaves_no_stale_step() {
        let dir = tempfile::tempdir().unwrap();
        session(dir.path(), 0, 6, 1.0);
        session(dir.path(), 4, 5, 9.0);
        let found = scalars(dir.path());
        assert_eq!(found, logged(dir.path()));
        assert!(!found.contains_key(&("train/loss".to_owned(), 6)));
        assert_eq!(found[&("train/loss".to_owned(), 5)], (9.0 + 5.0 / 7.0) as f32);
        assert_eq!(files(dir.path()).len(), 2);
        // From the beginning, without a checkpoint: nothing of before is left.
        session(dir.path(), 0, 1, 3.0);
        assert_eq!(scalars(dir.path()), logged(dir.path()));
    }

    #[test]
    fn a_run_of_an_earlier_version_gets_its_history() {
        let dir = tempfile::tempdir().unwrap();
        session(dir.path(), 0, 4, 1.0);
        files(dir.path()).iter().for_each(|file| fs::remove_file(file).unwrap());
        session(dir.path(), 4, 6, 1.0);
        let found = scalars(dir.path());
        assert!(found.contains_key(&("train/loss".to_owned(), 1)));
        assert_eq!(found, logged(dir.path()));
    }
}
