//! Results as a comparison could have measured them, for tests and for looking at the report.

use crate::probe::{Map, Neighbours, RoutingMetrics};
use crate::results::{Environment, Metrics, Results, Row, SCHEMA, Terms};
use crate::summary::{DENSE, RANDOM, summarise};
use crate::verdict::judge;
use std::collections::BTreeMap;

const STEPS: u64 = 600;
const LAYERS: usize = 2;
const EXPERTS: usize = 8;
const NAMES: [&str; 25] = [
    DENSE,
    RANDOM,
    "switch",
    "top2",
    "noisy-topk",
    "expert-choice",
    "sinkhorn",
    "hash",
    "base-layer",
    "top1",
    "gshard",
    "z-loss",
    "loss-free",
    "soft-moe",
    "threshold",
    "cosine",
    "perturbed",
    "bandit",
    "dselect-k",
    "hierarchical",
    "mod",
    "smear",
    "attention",
    "residual-moe",
    "similarity",
];

/// Runs of the first `routers` routers with seeds `1..=seeds`, the same at each call.
pub(crate) fn results(routers: usize, seeds: u64) -> Results {
    let names = NAMES.iter().enumerate().take(routers);
    let rows = names.flat_map(|(index, name)| (1..=seeds).map(move |seed| row(name, index, seed)));
    from_rows(rows.collect())
}

/// Results of these rows.
pub(crate) fn from_rows(rows: Vec<Row>) -> Results {
    let judgements = Some(judge(&rows, DENSE, &|_| true));
    let summary = summarise(&rows, judgements.as_ref());
    let preset = "tiny".to_owned();
    Results {
        schema: SCHEMA.to_owned(),
        environment: environment(),
        preset,
        terms: terms(),
        rows,
        summary,
        judgements,
    }
}

/// A failed run.
pub(crate) fn failure(router: &str, seed: u64, reason: &str) -> Row {
    Row { router: router.to_owned(), seed, metrics: None, error: Some(reason.to_owned()) }
}

fn environment() -> Environment {
    Environment {
        commit: "f7af877c01d2a0b9f3e6-dirty".to_owned(),
        started: "2026-01-09T14:03:27Z".to_owned(),
        platform: "linux x86_64".to_owned(),
        cpu: "Example Processor 9000 @ 2.80GHz".to_owned(),
        cpu_features: ["avx2", "fma", "avx512f"].map(str::to_owned).to_vec(),
        hardware_threads: 2,
        libtorch: "2.11.0".to_owned(),
        version: "0.1.0".to_owned(),
        device: "cpu".to_owned(),
    }
}

fn terms() -> Terms {
    Terms {
        data: "tiny-stories, first 4 MB".to_owned(),
        tokenizer: "bytes".to_owned(),
        steps: STEPS,
        tokens_per_step: 4096,
        unigram_loss: 3.07,
        unit: "token".to_owned(),
        equal: [
            "Initial weights outside the router, by seed",
            "Order of the data",
            "Optimiser and schedule",
        ]
        .map(str::to_owned)
        .to_vec(),
        unequal: [
            "expert-choice sees later tokens of its batch when it routes",
            "dense has fewer parameters in total",
        ]
        .map(str::to_owned)
        .to_vec(),
    }
}

fn row(name: &str, index: usize, seed: u64) -> Row {
    let mut noise = Noise(seed * 7919 + index as u64 * 104_729 + 1);
    Row {
        router: name.to_owned(),
        seed,
        metrics: Some(metrics(name, index, &mut noise)),
        error: None,
    }
}

fn metrics(name: &str, index: usize, noise: &mut Noise) -> Metrics {
    let floor = 1.52 + 0.11 * ((index * 7) % 25) as f64 / 25.0 + 0.012 * noise.next();
    let loss = |step: u64| {
        floor + (5.5 - floor) * (-(step as f64) / 55.0).exp() + 25.0 / (step as f64 + 60.0)
    };
    let valid_curve: Vec<_> =
        (0..=20).map(|k| k * STEPS / 20).map(|s| (s, loss(s) + 0.01 * noise.next())).collect();
    let train_curve =
        (1..=300).map(|k| (2 * k, loss(2 * k) - 0.03 + 0.12 * noise.next())).collect();
    let valid_loss = valid_curve.last().map_or(0.0, |point| point.1);
    let dead = u64::from(index % 4 == 3) * (1 + seed_of(noise) % 2);
    Metrics {
        valid_loss,
        valid_perplexity: valid_loss.exp(),
        valid_accuracy: None,
        bits_per_byte: Some(valid_loss / std::f64::consts::LN_2),
        load_imbalance: 1.05 + 0.12 * (index % 9) as f64,
        dead_experts: dead,
        dead_expert_proportion: dead as f64 / (LAYERS * EXPERTS) as f64,
        fraction_tokens_left_behind: 0.004 * (index % 6) as f64,
        gate_entropy: 0.35 + 0.02 * index as f64,
        tokens_per_second: 21_000.0 - 610.0 * ((index * 11) % 25) as f64 + 400.0 * noise.next(),
        routing_share: 0.03 + 0.01 * (index % 7) as f64,
        peak_memory_bytes: 412_000_000 + 3_000_000 * index as u64,
        params_active: 1_230_000 + 8_192 * index as u64,
        params_total: if name == DENSE { 1_230_000 } else { 4_560_000 },
        train_seconds: 130.0 + 9.0 * index as f64,
        measures: BTreeMap::new(),
        train_curve,
        valid_curve,
        expert_usage: if name == DENSE { Vec::new() } else { usage(index, dead, noise) },
        routing: (name != DENSE).then(|| routing(index, noise)),
    }
}

/// Routes that settle, the later the higher the index, and a map with a cluster per expert.
fn routing(index: usize, noise: &mut Noise) -> RoutingMetrics {
    let share =
        |k: u64| 0.6 * (-(k as f64) / (4.0 + index as f64)).exp() + 0.01 * noise.next().abs();
    let fluctuation_curve: Vec<_> = (1..=20).map(share).collect();
    let steps = (1..=20).map(|k| k * STEPS / 20);
    let point = |i: usize| {
        let angle = (i % EXPERTS) as f64 * std::f64::consts::TAU / EXPERTS as f64;
        (3.0 * angle.cos() + noise.next(), 3.0 * angle.sin() + noise.next(), Some(i % EXPERTS))
    };
    let points: Vec<_> = (0..400).map(point).collect();
    // Clusters of one expert each that lie elsewhere than in the plane.
    let xy = points.iter().map(|(x, y, _)| (4.0 * y + noise.next(), x - y)).collect();
    let tsne = Some(Neighbours { perplexity: 30.0, iterations: 500, seed: 42, xy });
    let map = Map { layer: LAYERS - 1, explained: 0.41, points, tsne };
    RoutingMetrics {
        routing_fluctuation: Some(moe_core::stats::mean(&fluctuation_curve)),
        fluctuation_curve: steps.zip(fluctuation_curve).collect(),
        representation_collapse: Some(40.0 - index as f64),
        effective_rank: Some(30.0 + index as f64),
        specialisation: Some(0.2 + 0.03 * (index % 7) as f64),
        inference_flops: Some(2.1e6 + 4e4 * ((index * 5) % 9) as f64),
        map: Some(map),
        ..RoutingMetrics::default()
    }
}

fn seed_of(noise: &mut Noise) -> u64 {
    (noise.next().abs() * 1000.0) as u64
}

/// Load that drifts from uniform to a skew particular to the router.
fn usage(index: usize, dead: u64, noise: &mut Noise) -> Vec<(u64, Vec<Vec<f64>>)> {
    let skew = 0.25 * (index % 5) as f64;
    let taste: Vec<f64> = (0..LAYERS * EXPERTS).map(|_| skew * 2.0 * noise.next()).collect();
    let at = |k: u64| {
        let layer = |l: usize| {
            shares(&taste[l * EXPERTS..][..EXPERTS], k as f64 / 20.0, dead * u64::from(l == 1))
        };
        (k * STEPS / 20, (0..LAYERS).map(layer).collect())
    };
    (0..=20).map(at).collect()
}

fn shares(taste: &[f64], progress: f64, dead: u64) -> Vec<f64> {
    let alive = |expert: usize| if (expert as u64) < dead && progress > 0.4 { 0.0 } else { 1.0 };
    let weights: Vec<f64> =
        taste.iter().enumerate().map(|(e, t)| alive(e) * (t * progress * 2.0).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// Deterministic values that look random, in -1..1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1u64 << 30) as f64 - 1.0
    }
}
