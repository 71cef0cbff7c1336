//! Self-attention against its formulas in `f64`.

use crate::instruction_sets;
use crate::oracle::tolerance::{relative_to, tolerance};
use moe_kernels::{
    AttentionInput, Bf16, Heads, Isa, KernelError, Score, attention, attention_backward,
};
use proptest::prelude::*;

/// Values of a modest range, the same for the same seed, as they are after narrowing.
fn values<S: Score>(count: usize, seed: u64) -> Vec<S> {
    let value = |i: usize| {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed.rotate_left(17));
        S::narrow((mixed >> 40) as f32 / f32::from(1_u16 << 12) / 1024.0 - 2.0)
    };
    (0..count).map(value).collect()
}

fn wide<S: Score>(values: &[S]) -> Vec<f32> {
    values.iter().map(|x| x.wide()).collect()
}

/// What a pass returns: `y`, the logarithms, and `dqkv`.
type Passed<T> = (Vec<T>, Vec<T>, Vec<T>);

/// The formulas, one pair of a query and a key after the other, and the largest magnitude that is added up
/// to a gradient: much of it may cancel.
fn by_formula(heads: &Heads, qkv: &[f32], dy: &[f32]) -> (Passed<f64>, f64) {
    let Heads { batch, tokens, heads: count, width, causal } = *heads;
    let row = count * width;
    let mut y = vec![0.0; batch * tokens * row];
    let mut logs = vec![0.0; batch * count * tokens];
    let mut dqkv = vec![0.0; batch * tokens * 3 * row];
    let mut added = dqkv.clone();
    let scale = (width as f64).sqrt().recip();
    for (b, m) in (0..batch).flat_map(|b| (0..count).map(move |m| (b, m))) {
        let at =
            |t: usize, part: usize, c: usize| ((b * tokens + t) * 3 + part) * row + m * width + c;
        let out = |t: usize, c: usize| (b * tokens + t) * row + m * width + c;
        let dot = |f: &dyn Fn(usize) -> f64| (0..width).map(f).sum::<f64>();
        let qkv = |t, part, c| f64::from(qkv[at(t, part, c)]);
        let dy = |t, c| f64::from(dy[out(t, c)]);
        for i in 0..tokens {
            let seen = if causal { i + 1 } else { tokens };
            let score = |j| scale * dot(&|c| qkv(i, 0, c) * qkv(j, 1, c));
            let most = (0..seen).map(score).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..seen).map(|j| (score(j) - most).exp()).sum();
            logs[(b * count + m) * tokens + i] = most + sum.ln();
            let p: Vec<f64> = (0..seen).map(|j| (score(j) - most).exp() / sum).collect();
            let dp: Vec<f64> = (0..seen).map(|j| dot(&|c| dy(i, c) * qkv(j, 2, c))).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (j, (p, dp)) in p.iter().zip(&dp).enumerate() {
                let ds = scale * p * (dp - mean);
                let size = scale * p * (dp.abs() + mean.abs());
                for c in 0..width {
                    y[out(i, c)] += p * qkv(j, 2, c);
                    dqkv[at(i, 0, c)] += ds * qkv(j, 1, c);
                    dqkv[at(j, 1, c)] += ds * qkv(i, 0, c);
                    dqkv[at(j, 2, c)] += p * dy(i, c);
                    added[at(i, 0, c)] += (size * qkv(j, 1, c)).abs();
                    added[at(j, 1, c)] += (size * qkv(i, 0, c)).abs();
                }
            }
        }
    }
    ((y, logs, dqkv), added.into_iter().fold(1.0, f64::max))
}

fn by_kernel<S: Score + Default>(isa: Isa, heads: &Heads, qkv: &[S], dy: &[S]) -> Passed<S> {
    let mut y = vec![S::default(); dy.len()];
    let mut logs = vec![0.0; heads.batch * heads.heads * heads.tokens];
    attention(isa, heads, qkv, &mut y, &mut logs).unwrap();
    let mut dqkv = vec![S::narrow(f32::NAN); qkv.len()];
    let input = AttentionInput { qkv, y: &y, log_bmt: &logs, dy };
    attention_backward(isa, heads, input, &mut dqkv).unwrap();
    (y, logs.into_iter().map(S::narrow).collect(), dqkv)
}

fn holds<S: Score + Default>(heads: &Heads, seed: u64) {
    let rows = heads.batch * heads.tokens * heads.heads * heads.width;
    let (qkv, dy) = (values::<S>(3 * rows, seed), values::<S>(rows, seed + 1));
    let (want, added) = by_formula(heads, &wide(&qkv), &wide(&dy));
    let limit = tolerance(S::DTYPE);
    for isa in instruction_sets() {
        let got = by_kernel(isa, heads, &qkv, &dy);
        for (what, got, want, least, limit) in [
            ("y", &got.0, &want.0, 1.0, limit.value),
            ("logs", &got.1, &want.1, 1.0, limit.value),
            ("dqkv", &got.2, &want.2, added, limit.gradient),
        ] {
            let off = relative_to(least, &wide(got), want);
            assert!(off <= limit, "{what} of {heads:?} on {isa:?}: {off}");
        }
    }
}

proptest! {
    #[test]
    fn attention_is_its_formulas(
        batch in 1_usize..3,
        tokens in 1_usize..80,
        heads in 1_usize..3,
        width in 1_usize..40,
        causal: bool,
        seed in 0..u64::MAX,
    ) {
        let heads = Heads { batch, tokens, heads, width, causal };
        holds::<f32>(&heads, seed);
        holds::<Bf16>(&heads, seed);
    }
}

/// Several blocks of queries on every instruction set, and a head wider than two panels.
#[test]
fn long_sequences_and_wide_heads() {
    for causal in [true, false] {
        let heads = Heads { batch: 1, tokens: 471, heads: 1, width: 70, causal };
        holds::<f32>(&heads, 3);
        holds::<Bf16>(&heads, 4);
    }
}

/// Scores beyond what exponentials can hold.
#[test]
fn large_scores() {
    let heads = Heads { batch: 1, tokens: 33, heads: 1, width: 4, causal: false };
    let large =
        |seed| -> Vec<f32> { values::<f32>(33 * 12, seed).iter().map(|x| 300.0 * x).collect() };
    let dy = values::<f32>(33 * 4, 2);
    let (y, logs, dqkv) = by_kernel(Isa::detect(), &heads, &large(1), &dy);
    assert!([y, logs, dqkv].iter().flatten().all(|x| x.is_finite()));
}

#[test]
fn threads_change_nothing() {
    let heads = Heads { batch: 3, tokens: 50, heads: 2, width: 16, causal: true };
    let (qkv, dy) = (values::<Bf16>(3 * 50 * 96, 5), values::<Bf16>(3 * 50 * 32, 6));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| by_kernel(Isa::detect(), &heads, &qkv, &dy))
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn arguments_that_do_not_fit() {
    let heads = Heads { batch: 2, tokens: 3, heads: 1, width: 4, causal: true };
    let length = |what, expected, got| Err(KernelError::Length { what, expected, got });
    let isa = Isa::detect();
    let (qkv, y, logs) = ([0_f32; 72], [0_f32; 24], [0.0; 6]);
    let forward = |qkv: &[f32], y: usize, logs: usize| {
        attention(isa, &heads, qkv, &mut vec![0.0; y], &mut vec![0.0; logs])
    };
    assert_eq!(forward(&qkv[1..], 24, 6), length("qkv", 72, 71));
    assert_eq!(forward(&qkv, 23, 6), length("y", 24, 23));
    assert_eq!(forward(&qkv, 24, 5), length("log_bmt", 6, 5));
    let input = AttentionInput { qkv: &qkv, y: &y, log_bmt: &logs, dy: &y };
    let backward =
        |input, grads: usize| attention_backward(isa, &heads, input, &mut vec![0.0; grads]);
    assert_eq!(backward(AttentionInput { y: &y[1..], ..input }, 72), length("y", 24, 23));
    assert_eq!(backward(AttentionInput { dy: &y[1..], ..input }, 72), length("dy", 24, 23));
    assert_eq!(backward(input, 71), length("dqkv", 72, 71));
    let huge = Heads { tokens: usize::MAX / 2, ..heads };
    let overflow = attention(isa, &huge, &qkv, &mut [0.0], &mut [0.0]).unwrap_err();
    assert!(matches!(overflow, KernelError::Overflow { what: "qkv", .. }), "{overflow}");
    let empty = Heads { batch: 0, ..heads };
    assert_eq!(attention::<f32>(isa, &empty, &[], &mut [], &mut []), Ok(()));
}
