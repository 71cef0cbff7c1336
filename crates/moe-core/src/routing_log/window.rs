//! Load over time, in a bounded number of windows.

use super::report::Window;
use super::{LayerId, Token};
use std::collections::BTreeMap;

/// Windows at most; when there are more, neighbours become one.
pub const WINDOWS: usize = 128;

/// Loads of some steps in a row.
#[derive(Debug, Default)]
struct Span {
    first: u64,
    last: u64,
    load_e: BTreeMap<LayerId, Vec<u64>>,
}

/// All windows, of which each but the last has the same number of steps.
#[derive(Debug)]
pub(super) struct Windows {
    /// Steps of a full window.
    steps: u64,
    /// Steps in the last one.
    filled: u64,
    spans: Vec<Span>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { steps: 1, filled: 0, spans: Vec::new() }
    }
}

impl Windows {
    pub(super) fn add(&mut self, step: u64, layer: &LayerId, token: &Token<'_>) {
        if self.spans.last().is_none_or(|span| span.last != step) {
            self.begin(step);
        }
        let span = self.spans.last_mut().expect("one was begun");
        if !span.load_e.contains_key(layer) {
            span.load_e.insert(layer.clone(), Vec::new());
        }
        let load_e = span.load_e.get_mut(layer).expect("it was put there");
        for (k, &expert) in token.expert_k.iter().enumerate() {
            add(load_e, expert, u64::from(token.kept(k)));
        }
    }

    fn begin(&mut self, step: u64) {
        if !self.spans.is_empty() && self.filled < self.steps {
            self.filled += 1;
            self.spans.last_mut().expect("there is one").last = step;
            return;
        }
        if self.spans.len() == WINDOWS {
            self.halve();
        }
        self.filled = 1;
        self.spans.push(Span { first: step, last: step, load_e: BTreeMap::new() });
    }

    fn halve(&mut self) {
        let mut spans = std::mem::take(&mut self.spans).into_iter();
        while let Some(mut span) = spans.next() {
            if let Some(next) = spans.next() {
                span.absorb(next);
            }
            self.spans.push(span);
        }
        self.steps *= 2;
    }

    /// Shares of the rows by layer and expert, layers in order.
    pub(super) fn timeline(&self, experts: usize) -> Vec<Window> {
        let window = |span: &Span| Window {
            first_step: span.first,
            last_step: span.last,
            expert_usage: span.load_e.values().map(|load_e| shares(load_e, experts)).collect(),
        };
        self.spans.iter().map(window).collect()
    }
}

impl Span {
    fn absorb(&mut self, later: Self) {
        self.last = later.last;
        for (layer, load_e) in later.load_e {
            let sum = self.load_e.entry(layer).or_default();
            load_e.into_iter().enumerate().for_each(|(expert, load)| add(sum, expert, load));
        }
    }
}

fn add(load_e: &mut Vec<u64>, expert: usize, load: u64) {
    if load_e.len() <= expert {
        load_e.resize(expert + 1, 0);
    }
    load_e[expert] += load;
}

fn shares(load_e: &[u64], experts: usize) -> Vec<f64> {
    let total = load_e.iter().sum::<u64>().max(1) as f64;
    let load = |e: usize| load_e.get(e).copied().unwrap_or(0) as f64;
    (0..experts).map(|e| load(e) / total).collect()
}
