//! The `f32` microkernel for AVX-512: 14 rows of two registers.
//!
//! 28 sums, two columns' registers of `b` and one of `a` are 31 of the 32 registers. A step of
//! depth is 28 multiply-adds for 16 loads, so the two multiply-add ports are the limit.

#![expect(unsafe_code, reason = "intrinsics that read and write through pointers")]

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_unpackhi_ps,
    _mm512_unpacklo_ps,
};
use std::array;

const MR: usize = 14;
const NR: usize = 32;
const VECTOR: usize = 16;

/// The proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if it is true.
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        has.then_some(Self(()))
    }
}

x86_kernel!(
    Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", f32, _mm512_setzero_ps, step, put,
    1 2 3 4 5 6 7 8 9 10 11 12 13 14, transpose: transpose
);

/// A rank-1 update.
///
/// # Safety
///
/// `a` points to `M` values and `b` to `NR`.
#[inline]
#[target_feature(enable = "avx512f,fma")]
unsafe fn step<const M: usize>(sum: &mut [[__m512; 2]; M], a: *const f32, b: *const f32) {
    // SAFETY: the caller's promise.
    let b = unsafe { [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(VECTOR))] };
    for (i, sum) in sum.iter_mut().enumerate() {
        // SAFETY: `i < M`.
        let a = _mm512_set1_ps(unsafe { *a.add(i) });
        sum[0] = _mm512_fmadd_ps(a, b[0], sum[0]);
        sum[1] = _mm512_fmadd_ps(a, b[1], sum[1]);
    }
}

/// Stores or adds a register.
///
/// # Safety
///
/// `c` points to 16 values that may be written.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn put(c: *mut f32, sum: __m512, add: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = if add { _mm512_add_ps(_mm512_loadu_ps(c), sum) } else { sum };
        _mm512_storeu_ps(c, sum);
    }
}

/// A square of lanes of 32 bits, transposed in four rounds that exchange ever larger blocks.
///
/// # Safety
///
/// AVX-512 F; `from` and `to` point to 16 rows of 16 lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(from: *const f32, to: *mut f32) {
    // SAFETY: the caller's promise.
    let rows: [__m512; VECTOR] =
        array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * VECTOR)) });
    // Each round pairs neighbours of the round before.
    let pairs: [__m512; VECTOR] = array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_ps(rows[i], rows[i + 1]),
        _ => _mm512_unpackhi_ps(rows[i - 1], rows[i]),
    });
    // Of rows 4q..4q+4, in each 128 bits: column i % 4.
    let quads: [__m512; VECTOR] = array::from_fn(|i| {
        let first = i / 4 * 4 + i % 4 / 2;
        match i % 2 {
            0 => _mm512_shuffle_ps::<0x44>(pairs[first], pairs[first + 2]),
            _ => _mm512_shuffle_ps::<0xee>(pairs[first], pairs[first + 2]),
        }
    });
    // Of rows 8q..8q+8: the even or the odd 128 bits.
    let eights: [__m512; VECTOR] = array::from_fn(|i| {
        let (quad, column, odd) = (i / 8 * 8, i % 4, i % 8 / 4);
        match odd {
            0 => _mm512_shuffle_f32x4::<0x88>(quads[quad + column], quads[quad + 4 + column]),
            _ => _mm512_shuffle_f32x4::<0xdd>(quads[quad + column], quads[quad + 4 + column]),
        }
    });
    for i in 0..VECTOR {
        // Column 4g + c lies in the 128 bits number g of the quads' register c.
        let (column, group) = (i % 4, i / 4);
        let (low, high) = (eights[group % 2 * 4 + column], eights[8 + group % 2 * 4 + column]);
        let row = match group / 2 {
            0 => _mm512_shuffle_f32x4::<0x88>(low, high),
            _ => _mm512_shuffle_f32x4::<0xdd>(low, high),
        };
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to.add(i * VECTOR), row) };
    }
}
