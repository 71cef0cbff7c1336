//! Values as they are stored, `f32` or `bf16`, and loops over them that become registers.

use crate::arch::{Kernel, to_bf16};
use crate::shape::Dtype;

/// Partial sums of a loop, so that it becomes a register's worth of independent ones, and values that are
/// taken at a time: one register of the widest instruction set.
pub(crate) const PARTS: usize = 16;

/// The upper 16 bits of an `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// What scores are stored in.
pub trait Score: Copy + Send + Sync {
    /// What products of such values are carried out in.
    const DTYPE: Dtype;

    /// As `f32`.
    fn wide(self) -> f32;

    /// The nearest value, ties to even.
    fn narrow(x: f32) -> Self;

    /// The same of a number whose nearest `bf16` is known, as its upper 16 bits.
    fn nearest(x: f32, bf16: u16) -> Self;
}

impl Score for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn nearest(x: f32, _bf16: u16) -> Self {
        x
    }
}

impl Score for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self(to_bf16(x) as u16)
    }

    #[inline(always)]
    fn nearest(_x: f32, bf16: u16) -> Self {
        Self(bf16)
    }
}

/// A dot product, in an order that suits registers.
#[inline(always)]
pub(crate) fn dot<S: Score>(a: &[S], b: &[S]) -> f32 {
    let mut sums = [0.0; PARTS];
    let (a_blocks, a_rest) = a.as_chunks::<PARTS>();
    let (b_blocks, b_rest) = b.as_chunks::<PARTS>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..PARTS {
            sums[i] += a[i].wide() * b[i].wide();
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += a.wide() * b.wide();
    }
    by_halves(&mut sums)
}

/// The sum by halves: one after the other, each would wait for the one before.
#[inline(always)]
pub(crate) fn by_halves(sums: &mut [f32; PARTS]) -> f32 {
    let mut half = PARTS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// `to = scale from` in the type of the scores.
#[inline(always)]
pub(crate) fn narrow<K: Kernel, S: Score>(kernel: K, to: &mut [S], from: &[f32], scale: f32) {
    let (blocks, rest) = to.as_chunks_mut::<PARTS>();
    let (from_blocks, from_rest) = from[..blocks.len() * PARTS + rest.len()].as_chunks::<PARTS>();
    for (to, from) in blocks.iter_mut().zip(from_blocks) {
        let mut scaled = *from;
        for x in &mut scaled {
            *x *= scale;
        }
        let rounded = kernel.rounded(&scaled);
        for i in 0..PARTS {
            to[i] = S::nearest(scaled[i], rounded[i]);
        }
    }
    for (to, from) in rest.iter_mut().zip(from_rest) {
        *to = S::narrow(scale * from);
    }
}
