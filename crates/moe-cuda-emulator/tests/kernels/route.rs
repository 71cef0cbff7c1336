//! Scores, choices, gates and their way back, against `moe-core`.

use crate::memory::{DTYPES, Memory, ORDERS, kernels, rounded, widened};
use crate::tolerance::{DIFFERENCES, STEP, assert_close, tolerance};
use moe_core::Choices;
use moe_core::score::{sigmoid, softmax};
use moe_cuda::kernels::{CHUNK, Route, RouteBackward, RouteShape};
use moe_cuda::{Address, Dtype, Score};
use moe_cuda_emulator::Emulator;
use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;

const SCORES: [Score; 4] = [
    Score { sigmoid: false, renormalise: false },
    Score { sigmoid: false, renormalise: true },
    Score { sigmoid: true, renormalise: false },
    Score { sigmoid: true, renormalise: true },
];

struct Routed {
    score: Memory,
    expert: Memory,
    gate: Memory,
    count: Memory,
}

fn run(on: &Emulator, dtype: Dtype, shape: &RouteShape, score: Score, logits: &[f32]) -> Routed {
    let all = shape.groups * shape.tokens;
    let mut routed = Routed {
        score: Memory::room(all * shape.experts, 4),
        expert: Memory::room(shape.choices(), 4),
        gate: Memory::room(shape.choices(), 4),
        count: Memory::room(shape.queues() * shape.chunks(), 4),
    };
    let mut logit = Memory::values(dtype, logits);
    let it = Route {
        logit_gte: logit.address(),
        score_gte: routed.score.address(),
        expert_gtk: routed.expert.address(),
        gate_gtk: routed.gate.address(),
        count_qc: routed.count.address(),
    };
    // SAFETY: the addresses are those of the tensors above, which have the sizes of `shape`.
    unsafe { kernels(on).route(dtype, shape, score, &it) }.unwrap();
    routed
}

fn scores(score: Score, logit_te: ArrayView2<'_, f64>) -> Array2<f64> {
    if score.sigmoid { logit_te.mapv(sigmoid) } else { softmax(logit_te) }
}

fn gates(score: Score, logit_te: ArrayView2<'_, f64>, expert_tk: &Array2<usize>) -> Array2<f64> {
    let score_te = scores(score, logit_te);
    let gate_tk =
        Array2::from_shape_fn(expert_tk.raw_dim(), |(t, k)| score_te[(t, expert_tk[(t, k)])]);
    let choices = Choices { expert_tk: expert_tk.clone(), gate_tk };
    if score.renormalise { choices.renormalised().gate_tk } else { choices.gate_tk }
}

/// Choices of each expert and group in each chunk, by a loop.
fn counts(shape: &RouteShape, expert_gtk: &[i32]) -> Vec<i32> {
    let mut count_qc = vec![0; shape.queues() * shape.chunks()];
    for (choice, &expert) in expert_gtk.iter().enumerate() {
        let (group, token) = (choice / shape.k / shape.tokens, choice / shape.k % shape.tokens);
        let queue = expert as usize * shape.groups + group;
        count_qc[queue * shape.chunks() + token / CHUNK] += 1;
    }
    count_qc
}

fn check(on: &Emulator, dtype: Dtype, shape: &RouteShape, score: Score, logits: &[f32]) {
    let routed = run(on, dtype, shape, score, logits);
    let all = (shape.groups * shape.tokens, shape.experts);
    let logit_te = Array2::from_shape_vec(all, widened(logits)).unwrap();
    let want = Choices::top_k(logit_te.view(), shape.k);
    let expert = routed.expert.to_i32s();
    assert_eq!(expert, want.expert_tk.iter().map(|e| *e as i32).collect::<Vec<_>>());
    assert_eq!(routed.count.to_i32s(), counts(shape, &expert));
    // Scores and gates are f32 whatever the logits are.
    let bound = tolerance(Dtype::F32);
    let score_te = scores(score, logit_te.view());
    assert_close("score", &widened(&routed.score.to_f32s()), score_te.as_slice().unwrap(), bound);
    let gate_tk = gates(score, logit_te.view(), &want.expert_tk);
    assert_close("gate", &widened(&routed.gate.to_f32s()), gate_tk.as_slice().unwrap(), bound);
}

/// One token, one chunk and several, one expert, more experts than a warp has lanes, `k = E`.
#[test]
fn scores_choices_gates_and_counts() {
    for (groups, tokens, experts, k) in
        [(1, 1, 1, 1), (1, 40, 8, 2), (2, 33, 5, 5), (1, 7, 70, 9), (3, 1, 64, 1), (1, 0, 4, 2)]
    {
        let shape = RouteShape { groups, tokens, experts, k };
        for (on, dtype, score) in every_way() {
            let logits = rounded(dtype, 7, groups * tokens * experts);
            check(&on, dtype, &shape, score, &logits);
        }
    }
}

fn every_way() -> impl Iterator<Item = (Emulator, Dtype, Score)> {
    let with_score = |(on, dtype)| SCORES.map(move |score| (on, dtype, score));
    ORDERS.into_iter().flat_map(|on| DTYPES.map(move |dtype| (on, dtype))).flat_map(with_score)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_shape(groups in 1usize..3, tokens in 1usize..70, experts in 1usize..40, k in 1usize..9,
        seed in any::<u64>()) {
        let shape = RouteShape { groups, tokens, experts, k: k.min(experts) };
        let logits = rounded(Dtype::Bf16, seed, groups * tokens * experts);
        check(&ORDERS[(seed % 2) as usize], Dtype::F32, &shape, SCORES[(seed % 4) as usize], &logits);
    }
}

/// Ties, both zeros, infinities and NaN: the order is that of `moe-core`, which is total.
#[test]
fn ties_go_to_the_lower_index() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let logits = [
        [1.0, 2.0, 2.0, 1.0],
        [0.0, -0.0, 0.0, -0.0],
        [-0.0, 0.0, -1.0, 1.0],
        [-inf, inf, inf, -inf],
        [nan, inf, -nan, 0.0],
        [f32::from_bits(u32::MAX), -inf, -1.0, f32::from_bits(u32::MAX)],
    ];
    for dtype in DTYPES {
        let shape = RouteShape { groups: 1, tokens: logits.len(), experts: 4, k: 4 };
        let routed = run(&ORDERS[0], dtype, &shape, SCORES[2], logits.as_flattened());
        let logit_te = Array2::from_shape_vec((6, 4), widened(logits.as_flattened())).unwrap();
        let want = Choices::top_k(logit_te.view(), 4).expert_tk;
        let want: Vec<_> = want.iter().map(|e| *e as i32).collect();
        assert_eq!(routed.expert.to_i32s(), want);
    }
}

/// `sum dgate gate + sum dscore score` as a function of the logits.
fn loss(score: Score, logit_te: &Array2<f64>, fixed: &Fixed) -> f64 {
    let gate_tk = gates(score, logit_te.view(), &fixed.expert_tk);
    let score_te = scores(score, logit_te.view());
    (&gate_tk * &fixed.dgate_tk).sum() + (&score_te * &fixed.dscore_te).sum()
}

struct Fixed {
    expert_tk: Array2<usize>,
    dgate_tk: Array2<f64>,
    dscore_te: Array2<f64>,
}

#[test]
fn gradients_are_central_differences() {
    for (tokens, experts, k) in [(1, 1, 1), (5, 4, 2), (9, 40, 3), (3, 3, 3)] {
        for (on, dtype, score) in every_way() {
            for with_scores in [true, false] {
                let shape = RouteShape { groups: 1, tokens, experts, k };
                gradients(&on, dtype, &shape, score, with_scores);
            }
        }
    }
}

fn gradients(on: &Emulator, dtype: Dtype, shape: &RouteShape, score: Score, with_scores: bool) {
    let &RouteShape { tokens, experts, k, .. } = shape;
    let logits = rounded(dtype, 3, tokens * experts);
    let mut routed = run(on, dtype, shape, score, &logits);
    let dgate = rounded(Dtype::F32, 4, tokens * k);
    let dscore = rounded(Dtype::F32, 5, if with_scores { tokens * experts } else { 0 });
    let (mut dgate_tk, mut dscore_te) = (Memory::f32s(&dgate), Memory::f32s(&dscore));
    let mut dlogit_te = Memory::room_of(dtype, tokens * experts);
    let it = RouteBackward {
        score_te: routed.score.address(),
        expert_tk: routed.expert.address(),
        gate_tk: routed.gate.address(),
        dgate_tk: dgate_tk.address(),
        dscore_te: if with_scores { dscore_te.address() } else { Address::NULL },
        dlogit_te: dlogit_te.address(),
    };
    // SAFETY: the addresses are those of the tensors above, which have the sizes of `shape`.
    unsafe { kernels(on).route_backward(dtype, shape, score, &it) }.unwrap();

    let matrix =
        |columns, values: Vec<f64>| Array2::from_shape_vec((tokens, columns), values).unwrap();
    let chosen = routed.expert.to_i32s().iter().map(|e| *e as usize).collect();
    let dscore = if with_scores { widened(&dscore) } else { vec![0.0; tokens * experts] };
    let fixed = Fixed {
        expert_tk: Array2::from_shape_vec((tokens, k), chosen).unwrap(),
        dgate_tk: matrix(k, widened(&dgate)),
        dscore_te: matrix(experts, dscore),
    };
    let logit_te = matrix(experts, widened(&logits));
    let moved = |at: usize, by: f64| {
        let mut logit_te = logit_te.clone();
        logit_te.as_slice_mut().unwrap()[at] += by;
        loss(score, &logit_te, &fixed)
    };
    let want: Vec<f64> = (0..tokens * experts)
        .map(|at| (moved(at, STEP) - moved(at, -STEP)) / (2.0 * STEP))
        .collect();
    let got = dlogit_te.to_values(dtype);
    // Where everything cancels (one expert, say) there is no scale but that of the gradients given.
    let scale = want.iter().fold(1.0, |scale: f64, want| scale.max(want.abs()));
    let bound = (tolerance(dtype) + DIFFERENCES) * scale;
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= bound, "{got} is not {want}: {shape:?}, {score:?}");
    }
}
