//! What is counted of one layer.

use super::Token;
use super::report::{LayerMeasures, Pair, Specialised};
use crate::metrics::{LoadStats, Specialisation};
use ndarray::{Array1, Array2};
use std::collections::{BTreeMap, HashMap};

/// Pairs of experts that are listed.
const PAIRS: usize = 10;

/// Events out of occasions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    events: u64,
    of: u64,
}

impl Share {
    pub(super) fn count(&mut self, event: bool) {
        self.events += u64::from(event);
        self.of += 1;
    }

    fn value(self) -> Option<f64> {
        (self.of > 0).then(|| self.events as f64 / self.of as f64)
    }
}

/// Sum and number of what it is a sum of.
pub(super) type Mean = (f64, u64);

fn value((sum, count): Mean) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}

/// Counts of one layer.
#[derive(Debug, Default)]
pub(super) struct Tally {
    tokens: u64,
    left_behind: Share,
    dropped: Share,
    load_e: Vec<u64>,
    weights: Mean,
    gate_entropy: Mean,
    chosen_entropy: Mean,
    gate_experts: usize,
    together: HashMap<(u32, u32), u64>,
    labelled: BTreeMap<(usize, usize), usize>,
    pub(super) firsts: Share,
    pub(super) sets: Share,
    pub(super) instability: Mean,
}

impl Tally {
    pub(super) fn add(&mut self, token: &Token<'_>, label: Option<usize>) {
        self.tokens += 1;
        let kept: Vec<usize> = (0..token.expert_k.len()).filter(|&k| token.kept(k)).collect();
        self.left_behind.count(kept.is_empty());
        (0..token.expert_k.len()).for_each(|k| self.dropped.count(!token.kept(k)));
        for &k in &kept {
            let expert = token.expert_k[k];
            if self.load_e.len() <= expert {
                self.load_e.resize(expert + 1, 0);
            }
            self.load_e[expert] += 1;
        }
        self.add_weights(token, &kept);
        self.add_pairs(token.expert_k);
        if let (Some(label), Some(first)) = (label, token.first()) {
            *self.labelled.entry((label, first)).or_insert(0) += 1;
        }
    }

    fn add_weights(&mut self, token: &Token<'_>, kept: &[usize]) {
        if let Some(weight_k) = token.weight_k {
            kept.iter().for_each(|&k| add(&mut self.weights, weight_k[k]));
            let total: f64 = weight_k.iter().sum();
            if weight_k.len() > 1 && weight_k.iter().all(|w| *w >= 0.0) && total > 0.0 {
                let even = (weight_k.len() as f64).ln();
                add(&mut self.chosen_entropy, entropy(weight_k, total) / even);
            }
        }
        if let Some(gate_e) = token.gate_e.filter(|gate_e| gate_e.len() > 1) {
            let even = (gate_e.len() as f64).ln();
            add(&mut self.gate_entropy, entropy(gate_e, gate_e.iter().sum()) / even);
            self.gate_experts = self.gate_experts.max(gate_e.len());
        }
    }

    fn add_pairs(&mut self, expert_k: &[usize]) {
        for (k, &a) in expert_k.iter().enumerate() {
            for &b in &expert_k[k + 1..] {
                *self.together.entry((a.min(b) as u32, a.max(b) as u32)).or_insert(0) += 1;
            }
        }
    }

    /// Experts that are known to exist.
    pub(super) fn experts(&self) -> usize {
        let paired = self.together.keys().map(|&(_, b)| b as usize + 1).max();
        self.load_e.len().max(self.gate_experts).max(paired.unwrap_or(0))
    }

    pub(super) fn measures(&self, layer: &str, experts: usize, labels: usize) -> LayerMeasures {
        let load_e = self.loads(experts);
        let total = load_e.sum();
        // A layer in which nothing was routed has no balance; its experts are all dead.
        let stats = LoadStats::of(load_e.view()).ok();
        let dead = load_e.iter().filter(|load| **load == 0.0).count();
        LayerMeasures {
            layer: layer.into(),
            tokens: self.tokens,
            load_imbalance: stats.map(|s| s.max_over_mean),
            load_cv: stats.map(|s| s.cv),
            load_entropy: stats.map(|s| s.entropy_normalised),
            dead_experts: dead,
            dead_expert_proportion: dead as f64 / experts.max(1) as f64,
            fraction_tokens_left_behind: self.left_behind.value().unwrap_or(0.0),
            fraction_choices_dropped: self.dropped.value().unwrap_or(0.0),
            router_confidence: value(self.weights),
            gate_entropy: value(self.gate_entropy),
            chosen_entropy: value(self.chosen_entropy),
            routing_fluctuation: self.firsts.value(),
            routing_fluctuation_set: self.sets.value(),
            tokens_compared: self.sets.of,
            cross_layer_instability: value(self.instability),
            specialisation: self.specialisation(experts, labels),
            coactivation: self.pairs(load_e.as_slice().expect("a vector")),
            expert_usage: load_e.iter().map(|load| load / total.max(1.0)).collect(),
        }
    }

    fn loads(&self, experts: usize) -> Array1<f64> {
        let load = |e: usize| self.load_e.get(e).copied().unwrap_or(0) as f64;
        Array1::from_shape_fn(experts, load)
    }

    fn specialisation(&self, experts: usize, labels: usize) -> Option<Specialised> {
        let mut count_le = Array2::zeros((labels.max(1), experts));
        self.labelled.iter().for_each(|(&place, &n)| count_le[place] = n);
        let found = Specialisation::of_counts(count_le).ok()?;
        Some(Specialised {
            tokens: self.labelled.values().sum(),
            mutual_information: found.mi,
            normalised: found.nmi,
            purity: found.purity,
        })
    }

    /// The pairs chosen together most, with how much more often than if choices were independent.
    fn pairs(&self, load_e: &[f64]) -> Vec<Pair> {
        let tokens = self.tokens as f64;
        let mut pairs: Vec<_> = self.together.iter().collect();
        pairs.sort_by_key(|(pair, n)| (std::cmp::Reverse(**n), **pair));
        let listed = pairs.into_iter().take(PAIRS).map(|(&(a, b), &n)| {
            let expected = load_e[a as usize] * load_e[b as usize] / tokens;
            let lift = (expected > 0.0).then(|| n as f64 / expected);
            Pair { experts: [a as usize, b as usize], share: n as f64 / tokens, lift }
        });
        listed.collect()
    }
}

fn add(mean: &mut Mean, value: f64) {
    mean.0 += value;
    mean.1 += 1;
}

/// `-sum p ln p` of `values` over their sum `total`.
fn entropy(values: &[f64], total: f64) -> f64 {
    let shares = values.iter().map(|v| v / total);
    shares.filter(|p| *p > 0.0).fold(0.0, |entropy, p| entropy - p * p.ln())
}
