//! The product of a block of rows with a panel of columns.
//!
//! Axis letters: `n` rows of the block, `k` depth in lanes.

use std::ops::Range;

use crate::arch::Kernel;

/// Lanes of depth that are multiplied at a time: a part of a panel this deep stays in the first
/// cache while all rows of the block pass by.
pub(crate) static DEPTH_: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {
    std::env::var("KD").ok().and_then(|v| v.parse().ok()).unwrap_or(256)
});

/// A block of rows as tiles of `MR`: `[tiles, k, MR]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a, L> {
    pub(crate) lanes: &'a [L],
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Lanes that a block of so many rows takes.
pub(crate) fn block_lanes<K: Kernel>(rows: usize, depth: usize) -> usize {
    rows.next_multiple_of(K::MR) * depth
}

/// Values that the sums of a block take.
pub(crate) fn block_sums<K: Kernel>(rows: usize) -> usize {
    rows.next_multiple_of(K::MR) * K::NR
}

/// The parts of a depth.
pub(crate) fn parts(depth: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth).step_by((*DEPTH_)).map(move |start| start..depth.min(start + (*DEPTH_)))
}

/// `sums[n, NR] = block x panel` for a whole panel `[k, NR]`, while the lines of `ahead` are
/// fetched.
#[inline(always)]
pub(crate) fn product<K: Kernel>(
    kernel: K,
    block: Operand<'_, K::Lane>,
    panel: &[K::Lane],
    ahead: &[K::Lane],
    sums: &mut [f32],
) {
    let calls = block.rows.div_ceil(K::MR) * block.depth.div_ceil((*DEPTH_));
    let mut ahead = ahead.chunks(ahead.len().div_ceil(calls).max(1));
    for part in parts(block.depth) {
        let lanes = &panel[part.start * K::NR..part.end * K::NR];
        partial(kernel, block, part, lanes, sums, |_| {
            kernel.prefetch(ahead.next().unwrap_or_default());
        });
    }
}

/// `sums[n, NR] (+)= block x panel` for a part of the depth; added to what is there unless the part
/// is the first. `before_each` runs before each tile, with its number.
#[inline(always)]
pub(crate) fn partial<K: Kernel>(
    kernel: K,
    block: Operand<'_, K::Lane>,
    part: Range<usize>,
    panel: &[K::Lane],
    sums: &mut [f32],
    mut before_each: impl FnMut(usize),
) {
    let tiles = block.lanes.chunks_exact(block.depth * K::MR);
    for (tile, (lanes, sums)) in tiles.zip(sums.chunks_exact_mut(K::MR * K::NR)).enumerate() {
        let Some(rows) = block.rows.checked_sub(tile * K::MR).filter(|&rows| rows > 0) else {
            break;
        };
        before_each(tile);
        let lanes = &lanes[part.start * K::MR..part.end * K::MR];
        kernel.tile(rows.min(K::MR), lanes, panel, sums, K::NR, part.start > 0);
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
    for (tile, to) in to.chunks_exact_mut(depth * K::MR).enumerate() {
        let rows = tile * K::MR..rows.min((tile + 1) * K::MR);
        crate::pack::transpose(kernel, to, K::MR, rows.map(&row));
    }
}
