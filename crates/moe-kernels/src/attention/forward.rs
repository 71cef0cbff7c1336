//! Results of all heads: the scores of some queries stand as columns, so that maxima and sums over keys
//! are those of registers, and weights come out as the next product's first operand.

use std::ops::Range;

use super::{
    Heads, MAPS, Place, Turn, across, across_lanes, along, along_lanes, depth, instructions, lanes,
    prefetch, runs, tile_lanes, tiles, tokens_depth, widen,
};
use crate::activation::exp;
use crate::arch::{Isa, Job, Kernel, Lane, Left, Work};
use crate::bands::{Band, bands};
use crate::gemm::{self, Operand, Sums};
use crate::memory::Buffer;
use crate::score::{Score, narrow};
use crate::{KernelError, tasks, threads};

/// Self-attention: `y`, `[b, t, m, c]`, of queries, keys and values `[b, t, 3, m, c]`, and the logarithms
/// of the sums of exponentials, `[b, m, t]`, for [`super::attention_backward`].
///
/// Products are carried out in the type of the values, their sums and the softmax in `f32`.
///
/// # Errors
///
/// If a slice has another length than its axes say, or memory is short.
pub fn attention<S: Score>(
    isa: Isa,
    heads: &Heads,
    qkv: &[S],
    y: &mut [S],
    log_bmt: &mut [f32],
) -> Result<(), KernelError> {
    heads.check("qkv", MAPS, qkv.len())?;
    heads.check("y", 1, y.len())?;
    heads.check_logs("log_bmt", log_bmt.len())?;
    if heads.is_empty() {
        return Ok(());
    }
    instructions(isa).run(S::DTYPE, Forward { heads, qkv, y, log_bmt })
}

struct Forward<'a, S> {
    heads: &'a Heads,
    qkv: &'a [S],
    y: &'a mut [S],
    log_bmt: &'a mut [f32],
}

impl<S: Score> Work for Forward<'_, S> {
    type Out = Result<(), KernelError>;

    fn run<K: Kernel>(self, kernel: K) -> Self::Out {
        let Self { heads, qkv, y, log_bmt } = self;
        let workers = (0..threads::count()).map(|_| Scratch::<K>::new(heads));
        let mut workers = workers.collect::<Result<Vec<_>, _>>()?;
        let sequences = y.chunks_exact_mut(heads.tokens * heads.row());
        let y = sequences.flat_map(|y| bands(y, heads.row(), heads.width));
        let logs = log_bmt.chunks_exact_mut(heads.tokens);
        tasks::run(runs(heads, y.zip(logs)), &mut workers, |run, scratch| {
            for Turn { place, next, of_head: (y, log_t) } in run {
                kernel.vectorized(Head { kernel, heads, qkv, place, next, y, log_t, scratch });
            }
        });
        Ok(())
    }
}

/// Buffers of a thread.
struct Scratch<K: Kernel> {
    rows_tc: Buffer<f32>,
    queries: Buffer<K::Lane>,
    keys: Buffer<K::Lane>,
    values: Buffer<K::Lane>,
    /// Scores of a panel of queries, `[j, NR]`.
    score: Buffer<f32>,
    /// Their weights, `[k, NR]`.
    weight: Buffer<K::Lane>,
    sums: Buffer<f32>,
}

impl<K: Kernel> Scratch<K> {
    fn new(heads: &Heads) -> Result<Self, KernelError> {
        let keys = tokens_depth::<K>(heads);
        Ok(Self {
            rows_tc: lanes(heads.tokens * heads.width)?,
            queries: lanes(along_lanes::<K>(heads))?,
            keys: lanes(tile_lanes::<K>(heads))?,
            values: lanes(across_lanes::<K>(heads))?,
            score: lanes(keys * K::Lane::DEPTH * K::NR)?,
            weight: lanes(keys * K::NR)?,
            sums: lanes(K::MR * K::NR)?,
        })
    }
}

/// A head on a thread.
struct Head<'a, S, K: Kernel> {
    kernel: K,
    heads: &'a Heads,
    qkv: &'a [S],
    place: Place,
    next: Option<Place>,
    y: Band<'a, S>,
    log_t: &'a mut [f32],
    scratch: &'a mut Scratch<K>,
}

impl<S: Score, K: Kernel> Job for Head<'_, S, K> {
    #[inline(always)]
    fn run(mut self) {
        let Self { kernel, heads, qkv, place, ref mut scratch, .. } = self;
        widen(heads, place, [0, MAPS], qkv, &mut scratch.rows_tc);
        along(kernel, heads, &scratch.rows_tc, &mut scratch.queries);
        widen(heads, place, [1, MAPS], qkv, &mut scratch.rows_tc);
        tiles(kernel, heads, &scratch.rows_tc, &mut scratch.keys);
        widen(heads, place, [2, MAPS], qkv, &mut scratch.rows_tc);
        across(kernel, heads, &scratch.rows_tc, &mut scratch.values);
        for first in (0..heads.tokens).step_by(K::NR) {
            let queries = first..heads.tokens.min(first + K::NR);
            if let Some(next) = self.next {
                for part in 0..MAPS {
                    prefetch(kernel, heads, next, [part, MAPS], qkv, queries.clone());
                }
            }
            let keys = heads.seen(queries.end);
            self.score(&queries, keys);
            let inverse = self.weigh(&queries, keys);
            self.mix(&queries, keys, &inverse);
        }
    }
}

/// Most columns of a panel.
const MOST: usize = 32;

impl<S: Score, K: Kernel> Head<'_, S, K> {
    /// Scores of the queries' keys, minus infinity where a query does not see a key.
    #[inline(always)]
    fn score(&mut self, queries: &Range<usize>, keys: usize) {
        let Scratch { keys: lanes, queries: panels, score, .. } = &mut *self.scratch;
        let depth = depth::<K>(self.heads);
        let operand = Operand { lanes, rows: keys, depth };
        let panel = &panels[queries.start * depth..][..K::NR * depth];
        let sums = Sums { to: score, stride: K::NR };
        gemm::partial(self.kernel, operand, 0..depth, panel, sums, |_| {});
        if self.heads.causal {
            for (key, score_i) in
                score.chunks_exact_mut(K::NR).take(keys).enumerate().skip(queries.start)
            {
                score_i[..key - queries.start].fill(f32::NEG_INFINITY);
            }
        }
        // The second value of the last pair.
        score[keys * K::NR..].iter_mut().take(K::NR).for_each(|score| *score = f32::NEG_INFINITY);
    }

    /// Exponentials of the scores, and the inverse of their sums.
    #[inline(always)]
    fn weigh(&mut self, queries: &Range<usize>, keys: usize) -> [f32; MOST] {
        const { assert!(K::NR <= MOST && K::NR.is_multiple_of(8)) };
        let mut inverse = [0.0; MOST];
        let log_i = &mut self.log_t[queries.clone()];
        let (kernel, scale) = (self.kernel, self.heads.scale());
        let Scratch { score, weight, .. } = &mut *self.scratch;
        let mut columns = |first: usize, most: &[f32], sum: &[f32]| {
            for (i, (most, sum)) in most.iter().zip(sum).enumerate() {
                inverse[first + i] = sum.recip();
                if let Some(log) = log_i.get_mut(first + i) {
                    *log = scale * most + sum.ln();
                }
            }
        };
        if K::NR.is_multiple_of(16) {
            for first in (0..K::NR).step_by(16) {
                let (most, sum) = exponentials::<K, 16>(kernel, score, keys, scale, first, weight);
                columns(first, &most, &sum);
            }
        } else {
            for first in (0..K::NR).step_by(8) {
                let (most, sum) = exponentials::<K, 8>(kernel, score, keys, scale, first, weight);
                columns(first, &most, &sum);
            }
        }
        inverse
    }

    /// `y_i = sum_j p_ij v_j`.
    #[inline(always)]
    fn mix(&mut self, queries: &Range<usize>, keys: usize, inverse: &[f32; MOST]) {
        let Scratch { weight, values, sums, .. } = &mut *self.scratch;
        let lanes = keys.div_ceil(K::Lane::DEPTH) * K::NR;
        let panel_lanes = tokens_depth::<K>(self.heads) * K::NR;
        let width = self.heads.width;
        // Tiles of like height: that of a whole one and a small rest has more loads.
        let rows = K::NR.div_ceil(K::NR.div_ceil(K::MR));
        for first in (0..queries.len()).step_by(rows) {
            let left = Left { lanes: &weight[first..lanes], stride: K::NR };
            let rows = rows.min(queries.len() - first);
            for (panel, column) in values.chunks_exact(panel_lanes).zip((0..width).step_by(K::NR)) {
                self.kernel.tile(rows, left, &panel[..lanes], sums, K::NR, false);
                let columns = column..width.min(column + K::NR);
                for (i, sums) in sums.chunks_exact(K::NR).take(rows).enumerate() {
                    let to = &mut self.y.row(queries.start + first + i)[columns.clone()];
                    narrow(self.kernel, to, sums, inverse[first + i]);
                }
            }
        }
    }
}

/// Of `W` columns from `first` on: lanes of `exp(scale (s - most))`, the largest scores, and the sums.
#[inline(always)]
fn exponentials<K: Kernel, const W: usize>(
    kernel: K,
    score: &[f32],
    keys: usize,
    scale: f32,
    first: usize,
    to: &mut [K::Lane],
) -> ([f32; W], [f32; W]) {
    let mut most = [f32::NEG_INFINITY; W];
    for score in score.chunks_exact(K::NR).take(keys) {
        let score: &[f32; W] = score[first..].first_chunk().expect("a panel's columns");
        for i in 0..W {
            most[i] = if score[i] > most[i] { score[i] } else { most[i] };
        }
    }
    let mut sum = [0.0; W];
    let depth = K::Lane::DEPTH;
    let pairs = score.chunks_exact(K::NR * depth).take(keys.div_ceil(depth));
    for (score, to) in pairs.zip(to.chunks_exact_mut(K::NR)) {
        let to: &mut [K::Lane; W] = to[first..].first_chunk_mut().expect("a panel's columns");
        let one: &[f32; W] = score[first..].first_chunk().expect("a panel's columns");
        let last = (depth - 1) * K::NR + first;
        let other: &[f32; W] = score[last..].first_chunk().expect("a panel's columns");
        let (mut ones, mut others) = ([0.0; W], [0.0; W]);
        for i in 0..W {
            ones[i] = exponential::<K>(one[i], most[i], scale);
            if depth > 1 {
                others[i] = exponential::<K>(other[i], most[i], scale);
            }
            sum[i] += ones[i] + others[i];
        }
        if let (Some(to), Some(ones), Some(others)) =
            (to.first_chunk_mut(), ones.first_chunk(), others.first_chunk())
        {
            *to = kernel.joined_across(ones, others);
        } else {
            for i in 0..W {
                to[i] = K::Lane::join(ones[i], others[i]);
            }
        }
    }
    (most, sum)
}

#[inline(always)]
fn exponential<K: Kernel>(score: f32, most: f32, scale: f32) -> f32 {
    // `exp` is clamped, so never zero.
    if score == f32::NEG_INFINITY { 0.0 } else { exp::<K>(scale * (score - most)) }
}
