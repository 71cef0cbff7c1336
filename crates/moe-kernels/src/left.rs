//! The first operand of a product in the order in which microkernels read it: `[k / STEP, MR, STEP]`.
//!
//! Axis letters: `k` depth in lanes.

use crate::arch::{Kernel, Lane, SIDE};
use crate::pack::transpose;

/// Writes rows whose depth runs along them, from lane `first` of depth on. What is left of the step in
/// which they end becomes zero, so whatever comes there is to be written later.
#[inline(always)]
pub(crate) fn along<'a, K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    first: usize,
    rows: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
) {
    if K::STEP == 1 {
        return transpose(kernel, &mut to[first * K::MR..], K::MR, rows);
    }
    for (i, mut row) in rows.enumerate() {
        let mut lane = first;
        while !row.is_empty() {
            let inside = lane % K::STEP;
            let (values, rest) = row.split_at(row.len().min((K::STEP - inside) * K::Lane::DEPTH));
            let step = &mut to[(lane / K::STEP * K::MR + i) * K::STEP..][..K::STEP];
            fill(&mut step[inside..], values);
            (row, lane) = (rest, lane + K::STEP - inside);
        }
    }
}

/// Joins values to lanes; the other lanes become zero.
#[inline(always)]
fn fill<L: Lane>(to: &mut [L], values: &[f32]) {
    let pairs = values.chunks_exact(L::DEPTH);
    let (joined, rest) = to.split_at_mut(pairs.len());
    rest.fill(L::default());
    if let (Some(to), Some(&last)) = (rest.first_mut(), pairs.remainder().first()) {
        *to = L::join(last, 0.0);
    }
    for (to, pair) in joined.iter_mut().zip(pairs) {
        *to = L::join(pair[0], pair[L::DEPTH - 1]);
    }
}

/// Writes the first `count` columns of rows of lanes over which depth runs, `stride` apart, for kernels that
/// want [`SIDE`] lanes of depth beside each other.
#[inline(always)]
pub(crate) fn across<K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    count: usize,
    rows: &[K::Lane],
    stride: usize,
) {
    const { assert!(K::STEP == 1 || K::STEP == SIDE) };
    for (to, rows) in to.chunks_exact_mut(K::MR * SIDE).zip(rows.chunks(SIDE * stride)) {
        for (to, first) in to.chunks_exact_mut(SIDE * SIDE).zip((0..count).step_by(SIDE)) {
            let columns = first..count.min(first + SIDE);
            let mut square = [[K::Lane::default(); SIDE]; SIDE];
            for (to, row) in square.iter_mut().zip(rows.chunks(stride)) {
                to[..columns.len()].copy_from_slice(&row[columns.clone()]);
            }
            to.copy_from_slice(kernel.transposed(&square).as_flattened());
        }
    }
}
