//! The `bf16` microkernels for AVX-512: 14 rows of two registers of pairs.
//!
//! `vdpbf16ps` multiplies both values of a pair and adds both products to an `f32` sum. Machines
//! with AVX-512 and without it widen the pairs in registers. `vcvtne2ps2bf16` rounds as [`Pair`]'s `join` does,
//! but takes numbers below the normal ones for zeros.

#![expect(unsafe_code, reason = "intrinsics that read and write through pointers")]

use std::arch::x86_64::{
    __m256bh, __m512, __m512bh, __m512i, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_slli_epi32,
};
use std::mem::transmute;

use super::Pair;
use super::avx512::{Avx512, put, transpose};

const MR: usize = 14;
const NR: usize = 32;
const VECTOR: usize = 16;

/// The proof that the processor has AVX-512 BF16 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    /// The proof, if it is true.
    pub(super) fn detect() -> Option<Self> {
        let avx512 = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(avx512))
    }
}

/// Pairs widened in registers, for AVX-512 without BF16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widened(Avx512);

impl From<Avx512> for Widened {
    fn from(avx512: Avx512) -> Self {
        Self(avx512)
    }
}

x86_kernel!(
    Avx512Bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", Pair, _mm512_setzero_ps,
    step, put, 1 2 3 4 5 6 7 8 9 10 11 12 13 14, transpose: transpose,
    join: [joined_along, joined_across, rounded]
);
x86_kernel!(
    Widened, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", Pair, _mm512_setzero_ps,
    step_widened, put, 1 2 3 4 5 6 7 8 9 10 11 12 13 14, transpose: transpose
);

/// A rank-2 update.
///
/// # Safety
///
/// `a` points to `M` pairs and `b` to `NR`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn step<const M: usize>(sum: &mut [[__m512; 2]; M], a: *const Pair, b: *const Pair) {
    // SAFETY: the caller's promise.
    let b = unsafe { [pairs(b), pairs(b.add(VECTOR))] };
    for (i, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `i < M`.
        let a = as_bf16(_mm512_set1_epi32(unsafe { *a.add(i) }.cast_signed()));
        sum[0] = _mm512_dpbf16_ps(sum[0], a, as_bf16(b[0]));
        sum[1] = _mm512_dpbf16_ps(sum[1], a, as_bf16(b[1]));
    }
}

/// A rank-2 update: the first values of all pairs, then the second.
///
/// # Safety
///
/// `a` points to `M` pairs and `b` to `NR`.
#[inline]
#[target_feature(enable = "avx512f,fma")]
unsafe fn step_widened<const M: usize>(sum: &mut [[__m512; 2]; M], a: *const Pair, b: *const Pair) {
    // SAFETY: the caller's promise.
    let b = unsafe { [widened(pairs(b)), widened(pairs(b.add(VECTOR)))] };
    for (i, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `i < M`.
        let a = widened(_mm512_set1_epi32(unsafe { *a.add(i) }.cast_signed()));
        for (depth, a) in a.into_iter().enumerate() {
            sum[0] = _mm512_fmadd_ps(a, b[0][depth], sum[0]);
            sum[1] = _mm512_fmadd_ps(a, b[1][depth], sum[1]);
        }
    }
}

/// Consecutive values as pairs.
///
/// # Safety
///
/// AVX-512 BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn joined_along(values: &[f32; 2 * VECTOR]) -> [Pair; VECTOR] {
    let start = values.as_ptr();
    // SAFETY: 32 values.
    let (low, high) = unsafe { (_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(VECTOR))) };
    as_pairs(_mm512_cvtne2ps_pbh(high, low))
}

/// The values of two rows as pairs.
///
/// # Safety
///
/// AVX-512 BW and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn joined_across(first: &[f32; VECTOR], second: &[f32; VECTOR]) -> [Pair; VECTOR] {
    /// The first row's values lie in the lower half, the second's in the upper.
    const ALTERNATELY: [u32; VECTOR] = {
        let mut pairs = [0; VECTOR];
        let mut i = 0;
        while i < VECTOR {
            pairs[i] = i as u32 | ((i + VECTOR) as u32) << 16;
            i += 1;
        }
        pairs
    };
    // SAFETY: 16 values each.
    let (low, high) =
        unsafe { (_mm512_loadu_ps(first.as_ptr()), _mm512_loadu_ps(second.as_ptr())) };
    let rows = as_pairs(_mm512_cvtne2ps_pbh(high, low));
    // SAFETY: 16 pairs each.
    let joined =
        unsafe { _mm512_permutexvar_epi16(pairs(ALTERNATELY.as_ptr()), pairs(rows.as_ptr())) };
    // SAFETY: both are 64 bytes in which every bit pattern is a value.
    unsafe { transmute::<__m512i, [Pair; VECTOR]>(joined) }
}

/// Values rounded.
///
/// # Safety
///
/// AVX-512 BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded(values: &[f32; VECTOR]) -> [u16; VECTOR] {
    // SAFETY: 16 values.
    let rounded = _mm512_cvtneps_pbh(unsafe { _mm512_loadu_ps(values.as_ptr()) });
    // SAFETY: both are 32 bytes in which every bit pattern is a value.
    unsafe { transmute::<__m256bh, [u16; VECTOR]>(rounded) }
}

/// The same bits as whole numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn as_pairs(values: __m512bh) -> [Pair; VECTOR] {
    // SAFETY: both are 64 bytes in which every bit pattern is a value.
    unsafe { transmute::<__m512bh, [Pair; VECTOR]>(values) }
}

/// A register of pairs.
///
/// # Safety
///
/// `at` points to 16 pairs.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pairs(at: *const Pair) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

/// The first and the second values of 16 pairs.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(pairs: __m512i) -> [__m512; 2] {
    let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
    [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
}

/// The same bits as pairs of `bf16`.
#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes in which every bit pattern is a value.
    unsafe { transmute::<__m512i, __m512bh>(pairs) }
}
