//! The tokens of this step and of the one before, for what compares a token with itself.

use super::tally::Tally;
use super::{LayerId, Token};
use crate::metrics::layer_instability;
use ndarray::ArrayView1;
use std::collections::{BTreeMap, HashMap};

/// What is remembered of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    input: Option<u64>,
    first: Option<usize>,
    /// In rising order.
    set: Box<[u32]>,
}

impl Choice {
    pub(super) fn of(token: &Token<'_>) -> Self {
        let mut set: Vec<u32> = token.expert_k.iter().map(|&e| e as u32).collect();
        set.sort_unstable();
        Self { input: token.input, first: token.first(), set: set.into() }
    }
}

type Choices = HashMap<u64, Choice>;

/// Choices by layer and token.
#[derive(Debug)]
pub(super) struct Memory {
    most: usize,
    before: BTreeMap<LayerId, Choices>,
    now: BTreeMap<LayerId, Choices>,
}

/// A token is there twice.
pub(super) struct Twice;

impl Memory {
    pub(super) fn new(most: usize) -> Self {
        Self { most, before: BTreeMap::new(), now: BTreeMap::new() }
    }

    /// Remembers a choice if there is room.
    pub(super) fn take(
        &mut self,
        layer: &LayerId,
        token: u64,
        choice: Choice,
    ) -> Result<(), Twice> {
        if !self.now.contains_key(layer) {
            self.now.insert(layer.clone(), Choices::new());
        }
        let choices = self.now.get_mut(layer).expect("it was put there");
        if choices.contains_key(&token) {
            return Err(Twice);
        }
        if choices.len() < self.most {
            choices.insert(token, choice);
        }
        Ok(())
    }

    /// Counts what the finished step says, and forgets the one before it.
    pub(super) fn next_step(&mut self, layers: &mut BTreeMap<LayerId, Tally>) {
        for (layer, now) in &self.now {
            if let Some(before) = self.before.get(layer) {
                let tally = layers.get_mut(layer).expect("it was counted when it was remembered");
                tally.compare(before, now);
            }
        }
        for ((layer, lower), (next, upper)) in self.now.iter().zip(self.now.iter().skip(1)) {
            if layer.block == next.block {
                let tally = layers.get_mut(layer).expect("it was counted when it was remembered");
                tally.look_up(lower, upper);
            }
        }
        self.before = std::mem::take(&mut self.now);
    }
}

impl Tally {
    /// Counts tokens of both steps and those that were routed differently.
    fn compare(&mut self, before: &Choices, now: &Choices) {
        for (token, choice) in now {
            let Some(earlier) = before.get(token).filter(|c| c.input == choice.input) else {
                continue;
            };
            self.sets.count(earlier.set != choice.set);
            if let (Some(a), Some(b)) = (earlier.first, choice.first) {
                self.firsts.count(a != b);
            }
        }
    }

    /// Instability between this layer and the next one, over the tokens that both routed.
    fn look_up(&mut self, lower: &Choices, upper: &Choices) {
        let both = lower
            .iter()
            .filter_map(|(token, choice)| Some((choice.first?, upper.get(token)?.first?)));
        let (lower_t, upper_t): (Vec<usize>, Vec<usize>) = both.unzip();
        let instability = layer_instability(ArrayView1::from(&lower_t), ArrayView1::from(&upper_t));
        if let Ok(instability) = instability {
            self.instability.0 += instability;
            self.instability.1 += 1;
        }
    }
}
