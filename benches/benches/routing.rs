//! Routing on the host: selection, plans, and moving tokens through them.
//!
//! Axis letters: `t` tokens, `d` model width, `e` experts, `k` choices, `n` routed rows.
//!
//! Sizes are those of one training step's tokens: `t` = 4096, `d` = 64, over 16, 64 and 256 experts
//! and 2 and 8 choices.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use moe_core::{Choices, DropOrder, SparsePlan, score, top_k};
use ndarray::Array2;
use std::hint::black_box;

const TOKENS: usize = 4096;
const WIDTH: usize = 64;
const SIZES: [(usize, usize); 6] = [(16, 2), (16, 8), (64, 2), (64, 8), (256, 2), (256, 8)];

/// Reproducible numbers in -1..1, by the mixing function of SplitMix64.
fn noise(rows: usize, cols: usize) -> Array2<f64> {
    Array2::from_shape_fn((rows, cols), |(row, col)| {
        let mut z = ((row * cols + col) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
}

fn gates(experts: usize) -> Array2<f64> {
    score::softmax((noise(TOKENS, experts) * 3.0).view())
}

/// Two thirds of what a balanced layer would need: a third of the choices is dropped.
fn tight(experts: usize, k: usize) -> Option<usize> {
    Some(TOKENS * k * 2 / experts / 3)
}

/// Calls `bench` once for every number of experts and of choices.
fn over_sizes(
    c: &mut Criterion,
    name: &str,
    mut bench: impl FnMut(&mut criterion::Bencher<'_>, usize, usize),
) {
    let mut group = c.benchmark_group(name);
    for (experts, k) in SIZES {
        let id = BenchmarkId::from_parameter(format!("e{experts}-k{k}"));
        group.bench_function(id, |b| bench(b, experts, k));
    }
}

fn selection(c: &mut Criterion) {
    over_sizes(c, "softmax", |b, experts, _| {
        let logits_te = noise(TOKENS, experts);
        b.iter(|| score::softmax(black_box(logits_te.view())));
    });
    over_sizes(c, "choices", |b, experts, k| {
        let gate_te = gates(experts);
        b.iter(|| Choices::top_k(black_box(gate_te.view()), k));
    });
    over_sizes(c, "top_k of a column", |b, experts, k| {
        let gate_te = gates(experts);
        let column_t = gate_te.column(0);
        b.iter(|| top_k(black_box(column_t).iter().copied(), TOKENS * k / experts));
    });
}

fn plans(c: &mut Criterion) {
    for order in [DropOrder::Arrival, DropOrder::BatchPriority] {
        over_sizes(c, &format!("plan by {order:?}"), |b, experts, k| {
            let choices = Choices::top_k(gates(experts).view(), k);
            let capacity = tight(experts, k);
            b.iter(|| SparsePlan::from_choices(black_box(&choices), experts, capacity, order));
        });
    }
    over_sizes(c, "plan by expert choice", |b, experts, k| {
        let gate_te = gates(experts);
        b.iter(|| SparsePlan::expert_choice(black_box(gate_te.view()), TOKENS * k / experts));
    });
}

fn flow(c: &mut Criterion) {
    let x_td = noise(TOKENS, WIDTH);
    let plan = |experts, k| {
        let choices = Choices::top_k(gates(experts).view(), k);
        SparsePlan::from_choices(&choices, experts, None, DropOrder::Arrival).expect("a valid plan")
    };
    over_sizes(c, "dispatch", |b, experts, k| {
        let plan = plan(experts, k);
        b.iter(|| plan.dispatch(black_box(x_td.view())));
    });
    over_sizes(c, "combine", |b, experts, k| {
        let plan = plan(experts, k);
        let y_nd = plan.dispatch(x_td.view());
        b.iter(|| plan.combine(black_box(y_nd.view())));
    });
}

criterion_group!(benches, selection, plans, flow);
criterion_main!(benches);
