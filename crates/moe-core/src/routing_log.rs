//! Measures of routing from a stream of decisions: any system's (step, layer, token, experts), read
//! once, in bounded memory.
//!
//! Counts are kept per layer. What compares tokens with themselves (in the step before, in the next
//! layer) remembers at most [`LogOptions::memory`] tokens of a layer, the first ones. Load over time is
//! kept in at most [`WINDOWS`] windows, which double their length when there are more.
//!
//! ```
//! use moe_core::routing_log::{LayerId, LogOptions, RoutingLog, Token};
//!
//! let mut log = RoutingLog::new(LogOptions { experts: Some(4), ..LogOptions::default() });
//! for (step, experts) in [(0, [1, 2]), (1, [1, 3])] {
//!     log.add(step, &LayerId::new("", 0), &Token::chose(7, &experts))?;
//! }
//! let report = log.finish()?;
//! assert_eq!(report.layers[0].expert_usage, [0.0, 0.5, 0.25, 0.25]);
//! assert_eq!(report.layers[0].routing_fluctuation, Some(0.0)); // the first choice stayed
//! assert_eq!(report.layers[0].routing_fluctuation_set, Some(1.0)); // the second did not
//! # Ok::<(), moe_core::routing_log::LogError>(())
//! ```
//!
//! Axis letters: `e` experts, `k` choices of a token.

mod error;
mod memory;
mod report;
mod tally;
mod window;

pub use error::LogError;
pub use report::{LayerMeasures, Pair, RoutingReport, Specialised, Totals, Window};
pub use window::WINDOWS;

use memory::{Choice, Memory};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use tally::Tally;
use window::Windows;

/// More experts than any published layer has: an index beyond is a mistake in the log.
const MAX_EXPERTS: usize = 1 << 16;

/// A layer's place: a block of the model (empty for its main stack) and a number in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerId {
    block: String,
    layer: u64,
}

impl LayerId {
    /// Layer `layer` of `block`.
    pub fn new(block: &str, layer: u64) -> Self {
        Self { block: block.into(), layer }
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = if self.block.is_empty() { "" } else { "/" };
        write!(f, "{}{gap}{}", self.block, self.layer)
    }
}

/// What one router decided about one token.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// The same number is the same token, in every layer and in every step that sees it again.
    pub id: u64,
    /// What the token is (a vocabulary id): with another input it is another token, whatever its id.
    pub input: Option<u64>,
    /// The chosen experts; none for a token that was left behind.
    pub expert_k: &'a [usize],
    /// Whether `expert_k` is in falling order of choice; otherwise only weights say which is first.
    pub ordered: bool,
    /// Their combine weights.
    pub weight_k: Option<&'a [f64]>,
    /// Which choices found room; all of them if absent.
    pub kept_k: Option<&'a [bool]>,
    /// The gate's distribution over all experts.
    pub gate_e: Option<&'a [f64]>,
    /// A class of the token, for specialisation.
    pub label: Option<&'a str>,
}

impl<'a> Token<'a> {
    /// Token `id` with its experts, best first, and nothing else known.
    pub fn chose(id: u64, expert_k: &'a [usize]) -> Self {
        Self {
            id,
            input: None,
            expert_k,
            ordered: true,
            weight_k: None,
            kept_k: None,
            gate_e: None,
            label: None,
        }
    }

    /// The expert chosen first, if that is known.
    fn first(&self) -> Option<usize> {
        match self.weight_k {
            Some(weight_k) => {
                let larger =
                    |best: usize, k: usize| if weight_k[k] > weight_k[best] { k } else { best };
                (0..weight_k.len()).reduce(larger).map(|k| self.expert_k[k])
            }
            None => {
                self.expert_k.first().copied().filter(|_| self.ordered || self.expert_k.len() == 1)
            }
        }
    }

    fn kept(&self, k: usize) -> bool {
        self.kept_k.is_none_or(|kept_k| kept_k[k])
    }

    fn check(&self, experts: Option<usize>) -> Result<(), LogError> {
        let k = self.expert_k.len();
        let lengths = [
            ("weights", self.weight_k.map_or(k, <[f64]>::len)),
            ("kept", self.kept_k.map_or(k, <[bool]>::len)),
        ];
        if let Some((what, got)) = lengths.into_iter().find(|(_, n)| *n != k) {
            return Err(LogError::Length { what, got, expected: k });
        }
        let below = experts.unwrap_or(MAX_EXPERTS);
        if let Some(&expert) = self.expert_k.iter().find(|e| **e >= below) {
            return Err(LogError::Expert { expert, below });
        }
        if self.expert_k.iter().collect::<BTreeSet<_>>().len() != k {
            return Err(LogError::ExpertTwice { expert_k: self.expert_k.to_vec() });
        }
        let bad = |values: &&[f64]| values.iter().any(|v| !v.is_finite());
        if self.weight_k.as_ref().is_some_and(bad) {
            return Err(LogError::NotFinite { what: "weights" });
        }
        self.gate_e.map_or(Ok(()), |gate_e| check_gate(gate_e, below))
    }
}

/// Share by which the probabilities of a gate may miss 1: logs are written in few digits.
const GATE_SUM: f64 = 0.02;

fn check_gate(gate_e: &[f64], below: usize) -> Result<(), LogError> {
    let sum: f64 = gate_e.iter().sum();
    if gate_e.len() > below {
        return Err(LogError::Length { what: "probs", got: gate_e.len(), expected: below });
    }
    match gate_e.iter().all(|p| *p >= 0.0) && (sum - 1.0).abs() <= GATE_SUM {
        true => Ok(()),
        false => Err(LogError::Gate { sum }),
    }
}

/// How to read a log.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Experts of a layer; the largest index plus 1 if not given, which hides dead experts at the end.
    pub experts: Option<usize>,
    /// Tokens of a layer that are remembered for comparison.
    pub memory: usize,
    /// Different labels at most.
    pub labels: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { experts: None, memory: 1 << 14, labels: 1 << 12 }
    }
}

/// All that is kept of a log while it is read.
#[derive(Debug)]
pub struct RoutingLog {
    options: LogOptions,
    layers: BTreeMap<LayerId, Tally>,
    labels: BTreeMap<String, usize>,
    memory: Memory,
    windows: Windows,
    step: Option<u64>,
    first_step: u64,
    steps: u64,
}

impl RoutingLog {
    /// Nothing read yet.
    pub fn new(options: LogOptions) -> Self {
        Self {
            options,
            layers: BTreeMap::new(),
            labels: BTreeMap::new(),
            memory: Memory::new(options.memory),
            windows: Windows::default(),
            step: None,
            first_step: 0,
            steps: 0,
        }
    }

    /// Takes one decision. Steps may not fall; within a step, layers and tokens come in any order.
    ///
    /// # Errors
    /// What is wrong with the decision; it was not counted.
    pub fn add(&mut self, step: u64, layer: &LayerId, token: &Token<'_>) -> Result<(), LogError> {
        token.check(self.options.experts)?;
        let label = self.label(token.label)?;
        self.enter(step)?;
        let choice = Choice::of(token);
        self.memory.take(layer, token.id, choice).map_err(|_| LogError::Twice {
            step,
            layer: layer.to_string(),
            token: token.id,
        })?;
        if !self.layers.contains_key(layer) {
            self.layers.insert(layer.clone(), Tally::default());
        }
        let tally = self.layers.get_mut(layer).expect("it was put there");
        tally.add(token, label);
        self.windows.add(step, layer, token);
        Ok(())
    }

    /// The number of a label, new ones counted up.
    fn label(&mut self, label: Option<&str>) -> Result<Option<usize>, LogError> {
        let Some(label) = label else { return Ok(None) };
        if let Some(&known) = self.labels.get(label) {
            return Ok(Some(known));
        }
        let next = self.labels.len();
        if next == self.options.labels {
            return Err(LogError::Labels { most: self.options.labels });
        }
        self.labels.insert(label.to_owned(), next);
        Ok(Some(next))
    }

    fn enter(&mut self, step: u64) -> Result<(), LogError> {
        match self.step {
            Some(now) if now == step => return Ok(()),
            Some(now) if step < now => return Err(LogError::StepBack { step, now }),
            Some(_) => self.memory.next_step(&mut self.layers),
            None => self.first_step = step,
        }
        (self.step, self.steps) = (Some(step), self.steps + 1);
        Ok(())
    }

    /// The measures of everything that was read.
    ///
    /// # Errors
    /// [`LogError::Empty`] if nothing was read.
    pub fn finish(mut self) -> Result<RoutingReport, LogError> {
        let last_step = self.step.ok_or(LogError::Empty)?;
        self.memory.next_step(&mut self.layers);
        let largest = self.layers.values().map(Tally::experts).max().unwrap_or(0);
        let experts = self.options.experts.unwrap_or(largest);
        let labels = self.labels.len();
        let measure = |(layer, tally): (&LayerId, &Tally)| {
            tally.measures(&layer.to_string(), experts, labels)
        };
        let layers: Vec<LayerMeasures> = self.layers.iter().map(measure).collect();
        Ok(RoutingReport {
            steps: self.steps,
            first_step: self.first_step,
            last_step,
            experts,
            experts_given: self.options.experts.is_some(),
            totals: Totals::of(&layers),
            timeline: self.windows.timeline(experts),
            layers,
        })
    }
}

#[cfg(test)]
mod tests;
