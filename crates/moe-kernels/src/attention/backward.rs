//! Gradients of all heads: the scores of a tile of queries are computed again, and what they say of keys
//! is gathered over a block of such tiles.

use std::ops::Range;

use super::{
    Heads, MAPS, Place, Turn, across, across_lanes, along, along_lanes, depth, instructions, lanes,
    padded, prefetch, runs, tile_lanes, tiles, tokens_depth, widen,
};
use crate::activation::exp;
use crate::arch::{Isa, Job, Kernel, Lane, Left, Work};
use crate::bands::{Band, bands};
use crate::memory::Buffer;
use crate::pack::join_rows;
use crate::score::{Score, dot, narrow};
use crate::{KernelError, left, tasks, threads};

/// What [`attention_backward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInput<'a, S> {
    /// What the forward pass read, `[b, t, 3, m, c]`.
    pub qkv: &'a [S],
    /// Its result, `[b, t, m, c]`.
    pub y: &'a [S],
    /// Its logarithms, `[b, m, t]`.
    pub log_bmt: &'a [f32],
    /// The gradient of its result, `[b, t, m, c]`.
    pub dy: &'a [S],
}

/// The gradient of queries, keys and values, `[b, t, 3, m, c]`, overwritten.
///
/// # Errors
///
/// If a slice has another length than its axes say, or memory is short.
pub fn attention_backward<S: Score>(
    isa: Isa,
    heads: &Heads,
    input: AttentionInput<'_, S>,
    dqkv: &mut [S],
) -> Result<(), KernelError> {
    heads.check("qkv", MAPS, input.qkv.len())?;
    heads.check("y", 1, input.y.len())?;
    heads.check("dy", 1, input.dy.len())?;
    heads.check("dqkv", MAPS, dqkv.len())?;
    heads.check_logs("log_bmt", input.log_bmt.len())?;
    if heads.is_empty() {
        return Ok(());
    }
    instructions(isa).run(S::DTYPE, Backward { heads, input, dqkv })
}

struct Backward<'a, S> {
    heads: &'a Heads,
    input: AttentionInput<'a, S>,
    dqkv: &'a mut [S],
}

impl<S: Score> Work for Backward<'_, S> {
    type Out = Result<(), KernelError>;

    fn run<K: Kernel>(self, kernel: K) -> Self::Out {
        let Self { heads, input, dqkv } = self;
        let workers = (0..threads::count()).map(|_| Scratch::<K>::new(heads));
        let mut workers = workers.collect::<Result<Vec<_>, _>>()?;
        let stride = MAPS * heads.row();
        let mut all = Vec::with_capacity(heads.batch * heads.heads);
        for dqkv in dqkv.chunks_exact_mut(heads.tokens * stride) {
            let mut bands: Vec<_> = bands(dqkv, stride, heads.width).collect();
            let (dv, dk) = (bands.split_off(2 * heads.heads), bands.split_off(heads.heads));
            all.extend(bands.into_iter().zip(dk).zip(dv).map(|((dq, dk), dv)| Grads {
                dq,
                dk,
                dv,
            }));
        }
        tasks::run(runs(heads, all.into_iter()), &mut workers, |run, scratch| {
            for Turn { place, next, of_head: grads } in run {
                kernel.vectorized(Head { kernel, heads, input, place, next, grads, scratch });
            }
        });
        Ok(())
    }
}

/// Where a head's gradients go.
struct Grads<'a, S> {
    dq: Band<'a, S>,
    dk: Band<'a, S>,
    dv: Band<'a, S>,
}

/// Tiles of queries in a block: its weights and gradients stay in the second cache.
const TILES: usize = 16;

/// Buffers of a thread.
struct Scratch<K: Kernel> {
    rows_tc: Buffer<f32>,
    y_tc: Buffer<f32>,
    /// `dy_i . y_i`.
    mean_t: Buffer<f32>,
    queries: Buffer<K::Lane>,
    queries_across: Buffer<K::Lane>,
    dy: Buffer<K::Lane>,
    dy_across: Buffer<K::Lane>,
    keys: Buffer<K::Lane>,
    keys_across: Buffer<K::Lane>,
    values: Buffer<K::Lane>,
    /// Weights and gradients of the scores of one tile, `[MR, j]`.
    tile: [Buffer<f32>; 2],
    /// The same of a block, `[k, j]`.
    block: [Buffer<K::Lane>; 2],
    /// Gradients of a tile's scores as a first operand.
    left: Buffer<K::Lane>,
    /// Gradients of a tile's queries, `[MR, NR]`.
    product: Buffer<f32>,
    /// Gradients of values and keys, `[t, c]`.
    sums: [Buffer<f32>; 2],
}

/// Values from one row of a tile's or a block's scores to the next, with a cache line between.
fn stride<K: Kernel>(heads: &Heads) -> usize {
    padded::<K>(heads.tokens) + 16
}

impl<K: Kernel> Scratch<K> {
    fn new(heads: &Heads) -> Result<Self, KernelError> {
        let rows = heads.tokens * heads.width;
        let stride = stride::<K>(heads);
        let block_rows = (TILES * K::MR).min(heads.tokens.next_multiple_of(K::MR));
        let tile = || lanes(K::MR * stride);
        let block = || lanes(block_rows.div_ceil(K::Lane::DEPTH) * stride);
        let sums = || lanes(heads.tokens * padded::<K>(heads.width));
        Ok(Self {
            rows_tc: lanes(rows)?,
            y_tc: lanes(rows)?,
            mean_t: lanes(heads.tokens)?,
            queries: lanes(tile_lanes::<K>(heads))?,
            queries_across: lanes(across_lanes::<K>(heads))?,
            dy: lanes(tile_lanes::<K>(heads))?,
            dy_across: lanes(across_lanes::<K>(heads))?,
            keys: lanes(along_lanes::<K>(heads))?,
            keys_across: lanes(across_lanes::<K>(heads))?,
            values: lanes(along_lanes::<K>(heads))?,
            tile: [tile()?, tile()?],
            block: [block()?, block()?],
            left: lanes(tokens_depth::<K>(heads) * K::MR)?,
            product: lanes(K::MR * K::NR)?,
            sums: [sums()?, sums()?],
        })
    }
}

/// A head on a thread.
struct Head<'a, S, K: Kernel> {
    kernel: K,
    heads: &'a Heads,
    input: AttentionInput<'a, S>,
    place: Place,
    next: Option<Place>,
    grads: Grads<'a, S>,
    scratch: &'a mut Scratch<K>,
}

impl<S: Score, K: Kernel> Job for Head<'_, S, K> {
    #[inline(always)]
    fn run(mut self) {
        // Tiles begin at whole pairs of queries, and one kernel takes its rows one by one.
        const { assert!(K::MR.is_multiple_of(K::Lane::DEPTH)) };
        self.read();
        let tokens = self.heads.tokens;
        for start in (0..tokens).step_by(TILES * K::MR) {
            let block = start..tokens.min(start + TILES * K::MR);
            for first in block.clone().step_by(K::MR) {
                let queries = first..block.end.min(first + K::MR);
                self.fetch_next(&queries);
                self.scores(&queries);
                self.keep(&queries, start);
                self.queries(&queries);
            }
            self.keys(&block);
        }
        self.write();
    }
}

impl<S: Score, K: Kernel> Head<'_, S, K> {
    /// All operands of the head.
    #[inline(always)]
    fn read(&mut self) {
        let Self { kernel, heads, input, place, .. } = *self;
        let Scratch {
            rows_tc,
            y_tc,
            mean_t,
            queries,
            queries_across,
            dy,
            dy_across,
            keys,
            keys_across,
            values,
            ..
        } = &mut *self.scratch;
        widen(heads, place, [0, MAPS], input.qkv, rows_tc);
        tiles(kernel, heads, rows_tc, queries);
        across(kernel, heads, rows_tc, queries_across);
        widen(heads, place, [1, MAPS], input.qkv, rows_tc);
        along(kernel, heads, rows_tc, keys);
        across(kernel, heads, rows_tc, keys_across);
        widen(heads, place, [2, MAPS], input.qkv, rows_tc);
        along(kernel, heads, rows_tc, values);
        widen(heads, place, [0, 1], input.y, y_tc);
        widen(heads, place, [0, 1], input.dy, rows_tc);
        tiles(kernel, heads, rows_tc, dy);
        across(kernel, heads, rows_tc, dy_across);
        let rows = rows_tc.chunks_exact(heads.width).zip(y_tc.chunks_exact(heads.width));
        for (mean, (dy_c, y_c)) in mean_t.iter_mut().zip(rows) {
            *mean = dot(dy_c, y_c);
        }
    }

    /// Asks for the next head's rows of these tokens.
    #[inline(always)]
    fn fetch_next(&self, tokens: &Range<usize>) {
        let Self { kernel, heads, input, next, .. } = *self;
        let Some(next) = next else { return };
        for part in 0..MAPS {
            prefetch(kernel, heads, next, [part, MAPS], input.qkv, tokens.clone());
        }
        prefetch(kernel, heads, next, [0, 1], input.y, tokens.clone());
        prefetch(kernel, heads, next, [0, 1], input.dy, tokens.clone());
    }

    /// Weights of a tile of queries, and the gradients of their scores.
    #[inline(always)]
    fn scores(&mut self, queries: &Range<usize>) {
        let Scratch { queries: of_queries, dy, tile: [weight, grad], keys, values, mean_t, .. } =
            &mut *self.scratch;
        let (heads, depth, stride) = (self.heads, depth::<K>(self.heads), stride::<K>(self.heads));
        let scale = heads.scale();
        let lanes = queries.start * depth..(queries.start + K::MR) * depth;
        let [query, dy] =
            [of_queries, dy].map(|all| Left { lanes: &all[lanes.clone()], stride: K::MR });
        let log_t = &self.input.log_bmt
            [(self.place.sequence * heads.heads + self.place.head) * heads.tokens..]
            [..heads.tokens];
        for first in (0..heads.seen(queries.end)).step_by(K::NR) {
            let panel = first * depth..(first + K::NR) * depth;
            let (rows, kernel) = (queries.len(), self.kernel);
            kernel.tile(rows, query, &keys[panel.clone()], &mut weight[first..], stride, false);
            kernel.tile(rows, dy, &values[panel], &mut grad[first..], stride, false);
            for (i, query) in queries.clone().enumerate() {
                let weight = &mut weight[i * stride + first..][..K::NR];
                let grad = &mut grad[i * stride + first..][..K::NR];
                weigh::<K>(weight, grad, scale, log_t[query], mean_t[query]);
                let seen = heads.seen(query + 1).saturating_sub(first).min(K::NR);
                weight[seen..].fill(0.0);
                grad[seen..].fill(0.0);
            }
        }
    }

    /// Joins a tile's rows for the products over queries.
    #[inline(always)]
    fn keep(&mut self, queries: &Range<usize>, start: usize) {
        let stride = stride::<K>(self.heads);
        let columns = padded::<K>(self.heads.seen(queries.end));
        let before = (queries.start - start) / K::Lane::DEPTH;
        let Scratch { tile, block, .. } = &mut *self.scratch;
        for (tile, block) in tile.iter().zip(block) {
            let row = |i: usize| &tile[i * stride..][..columns];
            let rows = block.chunks_exact_mut(stride).skip(before);
            for (to, i) in rows.zip((0..queries.len()).step_by(K::Lane::DEPTH)) {
                let other = (i + 1 < queries.len()).then(|| row(i + 1));
                join_rows(self.kernel, &mut to[..columns], row(i), other);
            }
        }
    }

    /// `dq_i = sum_j ds_ij k_j`.
    #[inline(always)]
    fn queries(&mut self, queries: &Range<usize>) {
        let Scratch { tile: [_, grad], keys_across, left, product: sums, .. } = &mut *self.scratch;
        let (heads, stride) = (self.heads, stride::<K>(self.heads));
        let seen = heads.seen(queries.end);
        let rows = grad.chunks_exact(stride).take(queries.len()).map(|row| &row[..seen]);
        left::along(self.kernel, left, 0, rows);
        let lanes = seen.div_ceil(K::Lane::DEPTH);
        let left = Left { lanes: &left[..lanes * K::MR], stride: K::MR };
        let panels = keys_across.chunks_exact(tokens_depth::<K>(heads) * K::NR);
        for (panel, first) in panels.zip((0..heads.width).step_by(K::NR)) {
            self.kernel.tile(queries.len(), left, &panel[..lanes * K::NR], sums, K::NR, false);
            let columns = first..heads.width.min(first + K::NR);
            for (query, sums) in queries.clone().zip(sums.chunks_exact(K::NR)) {
                narrow(self.kernel, &mut self.grads.dq.row(query)[columns.clone()], sums, 1.0);
            }
        }
    }

    /// `dv_j += sum_i p_ij dy_i` and `dk_j += sum_i ds_ij q_i` over a block of queries.
    #[inline(always)]
    fn keys(&mut self, block: &Range<usize>) {
        let Scratch { block: lanes, dy_across, queries_across, sums, .. } = &mut *self.scratch;
        let (heads, stride) = (self.heads, stride::<K>(self.heads));
        let (panel_lanes, columns) = (tokens_depth::<K>(heads) * K::NR, padded::<K>(heads.width));
        let products = lanes.iter().zip([&*dy_across, &*queries_across]).zip(sums);
        for ((lanes, right), sums) in products {
            for first in (0..heads.seen(block.end)).step_by(K::MR) {
                // The first query that sees one of these keys; tiles of both begin at the same places.
                let start = if heads.causal { first.max(block.start) } else { block.start };
                let before = (start - block.start) / K::Lane::DEPTH * stride + first;
                let left = Left { lanes: &lanes[before..], stride };
                let depth = start / K::Lane::DEPTH..block.end.div_ceil(K::Lane::DEPTH);
                let rows = K::MR.min(heads.tokens - first);
                let add = block.start > if heads.causal { first } else { 0 };
                for (panel, column) in
                    right.chunks_exact(panel_lanes).zip((0..columns).step_by(K::NR))
                {
                    let panel = &panel[depth.start * K::NR..depth.end * K::NR];
                    let to = &mut sums[first * columns + column..];
                    self.kernel.tile(rows, left, panel, to, columns, add);
                }
            }
        }
    }

    #[inline(always)]
    fn write(&mut self) {
        let [dv_tc, dk_tc] = &self.scratch.sums;
        let columns = padded::<K>(self.heads.width);
        for (to, sums) in [(&mut self.grads.dv, dv_tc), (&mut self.grads.dk, dk_tc)] {
            for (row, sums) in sums.chunks_exact(columns).take(self.heads.tokens).enumerate() {
                narrow(self.kernel, to.row(row), sums, 1.0);
            }
        }
    }
}

/// Scores to weights, `exp(scale s - log)`, and the weights' gradients to those of the scores.
#[inline(always)]
fn weigh<K: Kernel>(weight_j: &mut [f32], grad_j: &mut [f32], scale: f32, log: f32, mean: f32) {
    for (weight, grad) in weight_j.iter_mut().zip(grad_j) {
        *weight = exp::<K>(scale * *weight - log);
        *grad = scale * *weight * (*grad - mean);
    }
}
