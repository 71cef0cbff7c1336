//! `metrics.jsonl`: a line per logged step and per evaluation, and what a run comes to.
//!
//! Axis letters: `l` sparse layers, `e` experts.

use crate::files;
use crate::probe::{ProbeReport, RoutingMetrics};
use crate::results::Metrics;
use anyhow::{Context, Result};
use moe_core::LoadStats;
use moe_train::{EvalReport, LayerReport, StepReport};
use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
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

/// The log of a run: the file, and its lines so far.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    lines: Vec<Line>,
}

impl Log {
    /// Opens the log of a run that goes on after `step`; lines of later steps, which an interrupted
    /// session wrote after its last checkpoint, are taken out.
    ///
    /// # Errors
    /// A file that cannot be written, or a line that is none of this log's.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let lines = if step == 0 { Vec::new() } else { read(path, step)? };
        let text: String = lines.iter().map(text_of).collect();
        files::replace(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, lines })
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
        self.lines.push(line);
        Ok(())
    }

    /// What the run comes to by its last evaluation; sizes and memory are the caller's.
    pub fn summary(&self, tokens_per_step: usize) -> Metrics {
        let evals: Vec<&EvalLine> = self.lines.iter().filter_map(Line::as_eval).collect();
        let steps: Vec<&StepReport> = self.lines.iter().filter_map(Line::as_train).collect();
        let train_seconds: f64 = steps.iter().map(|s| s.seconds).sum();
        let mut metrics = evals.last().map(|last| quality(last)).unwrap_or_default();
        metrics.tokens_per_second =
            (tokens_per_step * steps.len()) as f64 / train_seconds.max(1e-9);
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
    let EvalReport { loss, ref layers, routing_share, .. } = line.report;
    let mean = |f: &dyn Fn(&LayerReport) -> f64| {
        layers.iter().map(f).sum::<f64>() / layers.len().max(1) as f64
    };
    let loads = || layers.iter().flat_map(|l| &l.load_e);
    let dead = loads().filter(|load| **load == 0.0).count();
    Metrics {
        valid_loss: loss,
        valid_perplexity: loss.exp(),
        bits_per_byte: line.bits_per_byte,
        load_imbalance: mean(&imbalance),
        dead_experts: dead as u64,
        dead_expert_proportion: dead as f64 / loads().count().max(1) as f64,
        fraction_tokens_left_behind: mean(&|l| l.fraction_tokens_left_behind),
        gate_entropy: mean(&|l| l.gate_entropy),
        routing_share,
        ..Metrics::default()
    }
}

/// Largest over mean load; 1 if nothing was routed at all.
fn imbalance(layer: &LayerReport) -> f64 {
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
