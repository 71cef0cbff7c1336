//! Softmax over rows against its formulas in `f64`.

use crate::oracle::tolerance::{relative_to, tolerance};
use moe_kernels::{Bf16, Dtype, KernelError, Score, cross_entropy};
use proptest::prelude::*;

/// Scores of a modest range, the same for the same seed, as they are after narrowing.
fn scores<S: Score>(count: usize, seed: u64) -> Vec<S> {
    let value = |i: usize| {
        let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed.rotate_left(17));
        S::narrow(((mixed >> 40) as f32 / f32::from(1_u16 << 12) / 256.0 - 8.0) * 1.5)
    };
    (0..count).map(value).collect()
}

fn wide<S: Score>(values: &[S]) -> Vec<f32> {
    values.iter().map(|x| x.wide()).collect()
}

fn softmax(score_v: &[f64]) -> Vec<f64> {
    let most = score_v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = score_v.iter().map(|s| (s - most).exp()).sum();
    score_v.iter().map(|s| (s - most).exp() / sum).collect()
}

/// The sum of losses and the gradients in `f64`.
fn cross_entropy_by_formula(score_nv: &[f32], target_n: &[i64], scale: f64) -> (f64, Vec<f64>) {
    let columns = score_nv.len() / target_n.len();
    let (mut loss, mut grads) = (0.0, Vec::new());
    for (score_v, &target) in score_nv.chunks(columns).zip(target_n) {
        let score_v: Vec<f64> = score_v.iter().map(|&s| f64::from(s)).collect();
        let mut p_v = softmax(&score_v);
        loss -= p_v[target as usize].ln();
        p_v[target as usize] -= 1.0;
        grads.extend(p_v.iter().map(|p| scale * p));
    }
    (loss, grads)
}

fn cross_entropy_holds<S: Score>(rows: usize, columns: usize, seed: u64, dtype: Dtype) {
    let mut score_nv = scores::<S>(rows * columns, seed);
    let target_n: Vec<i64> = (0..rows).map(|row| ((row * 7 + 3) % columns) as i64).collect();
    let (loss, want_nv) = cross_entropy_by_formula(&wide(&score_nv), &target_n, 0.25);
    let got = cross_entropy(&mut score_nv, &target_n, 0.25).unwrap();
    assert!((got - loss).abs() <= tolerance(Dtype::F32).value * loss.max(1.0), "{got} {loss}");
    // Relative to what they are at most: where a target is nearly certain, little of 1 - 1 remains.
    let off = relative_to(0.25, &wide(&score_nv), &want_nv);
    assert!(off <= tolerance(dtype).gradient, "{off}");
}

proptest! {
    #[test]
    fn cross_entropy_is_its_formula(rows in 1_usize..9, columns in 1_usize..70, seed: u64) {
        cross_entropy_holds::<f32>(rows, columns, seed, Dtype::F32);
        cross_entropy_holds::<Bf16>(rows, columns, seed, Dtype::Bf16);
    }
}

/// Large scores overflow no exponential, and small ones beside them are zeros.
#[test]
fn large_scores() {
    let mut score_nv = [1e30_f32, -1e30, 88.0, 3.0e38, 3.0e38, 0.0];
    let loss = cross_entropy(&mut score_nv, &[0, 1], 1.0).unwrap();
    assert!((loss - 2_f64.ln()).abs() < tolerance(Dtype::F32).value, "{loss}");
    assert!(score_nv[0].abs() < 1e-30 && (score_nv[3], score_nv[4]) == (0.5, -0.5));
    let mut nan = [f32::NAN, 1.0];
    assert!(cross_entropy(&mut nan, &[1], 1.0).unwrap().is_nan());
}

/// More rows than one thread takes at a time.
#[test]
fn threads_change_nothing() {
    let target_n: Vec<i64> = (0..300).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut score_nv = scores::<f32>(300 * 1000, 5);
            let loss = cross_entropy(&mut score_nv, &target_n, 1.0).unwrap();
            (loss, score_nv)
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn arguments_that_do_not_fit() {
    let target = |target| cross_entropy(&mut [0_f32; 4], &[1, target], 1.0).unwrap_err();
    assert_eq!(target(2), KernelError::Target { row: 1, target: 2, columns: 2 });
    assert_eq!(target(-1), KernelError::Target { row: 1, target: -1, columns: 2 });
    let length = |what, expected, got| KernelError::Length { what, expected, got };
    let uneven = cross_entropy(&mut [0_f32; 5], &[1, 1], 1.0).unwrap_err();
    assert_eq!(uneven, length("score_nv", 4, 5));
    assert_eq!(cross_entropy::<f32>(&mut [], &[], 1.0), Ok(0.0));
}
