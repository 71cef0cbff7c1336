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
            for (sum, a) in sum.iter_mut().zip(a) {
                let a = a.split();
                for (sum, b) in sum.iter_mut().zip(b) {
                    let b = b.split();
                    *sum += a[0] * b[0];
                    if L::DEPTH == 2 {
                        *sum += a[1] * b[1];
                    }
                }
            }
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
