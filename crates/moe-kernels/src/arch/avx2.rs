//! The microkernels for AVX2 with FMA: 6 rows of two registers.
//!
//! 12 sums, two registers of `b` and one or two of `a` fill the 16 registers.

#![expect(unsafe_code, reason = "intrinsics that read and write through pointers")]

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32,
    _mm256_storeu_ps,
};

use super::{Lane, Pair};

const MR: usize = 6;
const NR: usize = 16;
const VECTOR: usize = 8;

/// The proof that the processor has AVX2 and FMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it is true.
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

/// The same for pairs of `bf16`, which are widened in registers: half the memory, no fewer
/// multiply-adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2Bf16(Avx2);

impl From<Avx2> for Avx2Bf16 {
    fn from(avx2: Avx2) -> Self {
        Self(avx2)
    }
}

x86_kernel!(Avx2, "avx2,fma", f32, _mm256_setzero_ps, step_single, put, 1 2 3 4 5 6);
x86_kernel!(Avx2Bf16, "avx2,fma", Pair, _mm256_setzero_ps, step_paired, put, 1 2 3 4 5 6);

/// A rank-1 update.
///
/// # Safety
///
/// `a` points to `M` values and `b` to `NR`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step_single<const M: usize>(sum: &mut [[__m256; 2]; M], a: *const f32, b: *const f32) {
    // SAFETY: the caller's promise.
    let b = unsafe { [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(VECTOR))] };
    for (i, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `i < M`.
        let a = _mm256_set1_ps(unsafe { *a.add(i) });
        sum[0] = _mm256_fmadd_ps(a, b[0], sum[0]);
        sum[1] = _mm256_fmadd_ps(a, b[1], sum[1]);
    }
}

/// A rank-2 update: the first values of all pairs, then the second.
///
/// # Safety
///
/// `a` points to `M` pairs and `b` to `NR`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step_paired<const M: usize>(sum: &mut [[__m256; 2]; M], a: *const Pair, b: *const Pair) {
    // SAFETY: the caller's promise.
    let b = unsafe { [widened(b), widened(b.add(VECTOR))] };
    for (i, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `i < M`.
        let a = unsafe { *a.add(i) }.split();
        for (depth, a) in a.into_iter().enumerate() {
            let a = _mm256_set1_ps(a);
            sum[0] = _mm256_fmadd_ps(a, b[0][depth], sum[0]);
            sum[1] = _mm256_fmadd_ps(a, b[1][depth], sum[1]);
        }
    }
}

/// The first and the second values of eight pairs.
///
/// # Safety
///
/// `pairs` points to eight.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widened(pairs: *const Pair) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    let pairs = unsafe { _mm256_loadu_si256(pairs.cast()) };
    let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
    [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second)]
}

/// Stores or adds a register.
///
/// # Safety
///
/// `c` points to eight values that may be written.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn put(c: *mut f32, sum: __m256, add: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = if add { _mm256_add_ps(_mm256_loadu_ps(c), sum) } else { sum };
        _mm256_storeu_ps(c, sum);
    }
}
