//! The microkernel in plain Rust, for every machine.

use std::marker::PhantomData;

use super::{Job, Kernel, Lane, Left, tile_depth};

const MR: usize = 4;
const NR: usize = 8;

/// Plain loops over small arrays, which compilers turn into whatever vectors the target has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable<L>(PhantomData<L>);

impl<L> Portable<L> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<L: Lane> Kernel for Portable<L> {
    type Lane = L;
    const MR: usize = MR;
    const NR: usize = NR;

    fn tile(self, rows: usize, a: Left<'_, L>, b: &[L], c: &mut [f32], ldc: usize, add: bool) {
        tile_depth::<Self>(rows, a, b, c, ldc);
        let mut sum = [[0.0_f32; NR]; MR];
        for (a, b) in a.lanes.chunks(a.stride).zip(b.chunks_exact(NR)) {
            // Arrays of known length keep the sums in registers.
            let mut full = [L::default(); MR];
            match a.first_chunk() {
                Some(a) => full = *a,
                None => full[..a.len()].copy_from_slice(a),
            }
            let b: &[L; NR] = b.first_chunk().expect("whole rows of a panel");
            step::<L>(&mut sum, full.map(L::split), b.map(L::split));
        }
        for (c, sum) in c.chunks_mut(ldc).zip(&sum[..rows]) {
            for (c, sum) in c.iter_mut().zip(sum) {
                *c = if add { *c + sum } else { *sum };
            }
        }
    }

    fn vectorized<J: Job>(self, job: J) {
        job.run();
    }

    fn prefetch<T>(self, _values: &[T]) {}
}

/// A rank-1 update, or with pairs a rank-2 update.
#[inline(always)]
fn step<L: Lane>(sum: &mut [[f32; NR]; MR], a: [[f32; 2]; MR], b: [[f32; 2]; NR]) {
    for (sum, a) in sum.iter_mut().zip(a) {
        for (sum, b) in sum.iter_mut().zip(b) {
            *sum += a[0] * b[0];
            if L::DEPTH == 2 {
                *sum += a[1] * b[1];
            }
        }
    }
}
