//! The product of a block of rows with a panel of columns.
//!
//! Axis letters: `n` rows of the block, `k` depth in lanes.

use std::ops::Range;

use crate::arch::{Kernel, Left};
use crate::left;

/// Most lanes of depth that are multiplied at a time: a part of a panel this deep stays in the first
/// cache, with room for the rows that pass by.
pub(crate) const DEPTH: usize = 192;

/// A block of rows as tiles of `MR`: `[tiles, k / STEP, MR, STEP]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a, L> {
    pub(crate) lanes: &'a [L],
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Lanes that a block of so many rows takes.
pub(crate) fn block_lanes<K: Kernel>(rows: usize, depth: usize) -> usize {
    rows.next_multiple_of(K::MR) * whole_steps::<K>(depth)
}

/// A depth in lanes, rounded up to whole steps of the first operand.
pub(crate) fn whole_steps<K: Kernel>(depth: usize) -> usize {
    depth.next_multiple_of(K::STEP)
}

/// Values from one row of a block's sums of all columns to the next, with a cache line between.
pub(crate) fn sums_stride<K: Kernel>(columns: usize) -> usize {
    columns.next_multiple_of(K::NR) + 16
}

/// Cuts a depth into parts of like size and whole steps, none above `most`.
pub(crate) fn parts<K: Kernel>(
    depth: usize,
    most: usize,
) -> impl Iterator<Item = Range<usize>> + Clone {
    let (count, steps) = (depth.div_ceil(most), depth.div_ceil(K::STEP));
    let edge = move |part: usize| depth.min(steps * part / count * K::STEP);
    (0..count).map(move |part| edge(part)..edge(part + 1))
}

/// `sums[n, NR] = operand x panel` for a whole panel `[k, NR]`, while the lines of `ahead` are
/// fetched. `before_each` runs before each tile of the first part of the depth, with its number.
#[inline(always)]
pub(crate) fn product<K: Kernel>(
    kernel: K,
    operand: Operand<'_, K::Lane>,
    panel: &[K::Lane],
    ahead: &[K::Lane],
    sums: &mut [f32],
    mut before_each: impl FnMut(usize),
) {
    let tiles = operand.rows.div_ceil(K::MR);
    let share = ahead.len().div_ceil(tiles * operand.depth.div_ceil(DEPTH));
    let mut at = 0;
    for part in parts::<K>(operand.depth, DEPTH) {
        let lanes = &panel[part.start * K::NR..part.end * K::NR];
        let start = part.start == 0;
        partial(kernel, operand, part, lanes, Sums { to: sums, stride: K::NR }, |tile| {
            let end = ahead.len().min(at + share);
            kernel.prefetch(&ahead[at..end]);
            at = end;
            if start {
                before_each(tile);
            }
        });
    }
}

/// Where a product's sums go.
pub(crate) struct Sums<'a> {
    pub(crate) to: &'a mut [f32],
    /// From one row to the next.
    pub(crate) stride: usize,
}

/// `sums[n, NR] (+)= operand x panel` for a part of the depth; added to what is there unless the
/// part is the first. `before_each` runs before each tile, with its number.
#[inline(always)]
pub(crate) fn partial<K: Kernel>(
    kernel: K,
    operand: Operand<'_, K::Lane>,
    part: Range<usize>,
    panel: &[K::Lane],
    sums: Sums<'_>,
    mut before_each: impl FnMut(usize),
) {
    let depth = whole_steps::<K>(operand.depth);
    // A number: iterators of iterators are not inlined here.
    for tile in 0..operand.rows.div_ceil(K::MR) {
        before_each(tile);
        let from = (tile * depth + part.start) * K::MR;
        let lanes = whole_steps::<K>(part.end) - part.start;
        let lanes = &operand.lanes[from..from + lanes * K::MR];
        let rows = K::MR.min(operand.rows - tile * K::MR);
        let to = &mut sums.to[tile * K::MR * sums.stride..];
        let left = Left { lanes, stride: K::MR };
        kernel.tile(rows, left, panel, to, sums.stride, part.start > 0);
    }
}

/// Fills the tiles of a block with rows whose depth runs along them.
#[inline(always)]
pub(crate) fn gather<'a, K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    depth: usize,
    rows: usize,
    row: impl Fn(usize) -> &'a [f32],
) {
    for (tile, to) in to.chunks_exact_mut(whole_steps::<K>(depth) * K::MR).enumerate() {
        let rows = tile * K::MR..rows.min((tile + 1) * K::MR);
        left::along(kernel, to, 0, rows.map(&row));
    }
}
