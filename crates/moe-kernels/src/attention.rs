//! Self-attention of all heads, forward and backward, without scores in memory.
//!
//! ```text
//! s_ij = q_i . k_j / sqrt(c)      p_ij = exp(s_ij - l_i)      l_i = ln sum_j exp(s_ij)
//! y_i  = sum_j p_ij v_j           over all keys j, or those up to i
//! dp_ij = dy_i . v_j              ds_ij = p_ij (dp_ij - dy_i . y_i) / sqrt(c)
//! dq_i = sum_j ds_ij k_j          dk_j = sum_i ds_ij q_i      dv_j = sum_i p_ij dy_i
//! ```
//!
//! A head belongs to one thread, and its operands stay in that thread's second cache. Queries, keys and
//! values are read where one product of all three left them, and their gradients go to the same places,
//! so that nothing is permuted. The backward pass needs the logarithms `l_i` only, and computes the
//! scores again (FlashAttention, arXiv 2205.14135, algorithm 4); tiles of the scores in which no query sees a key are
//! skipped.
//!
//! Axis letters: `b` batch, `t` tokens, `m` heads, `c` width of a head, `i` queries, `j` keys, `k` depth
//! in lanes.

mod backward;
mod forward;

use std::ops::Range;

use crate::arch::{Isa, Kernel, Lane};
use crate::memory::Buffer;
use crate::pack::{stack, transpose};
use crate::score::Score;
use crate::{KernelError, gemm, threads};

pub use backward::{AttentionInput, attention_backward};
pub use forward::attention;

/// Sizes of a self-attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub width: usize,
    /// Whether a token sees itself and earlier ones only.
    pub causal: bool,
}

/// Queries, keys and values lie beside each other.
const MAPS: usize = 3;

impl Heads {
    /// Values from one token to the next.
    #[inline(always)]
    fn row(&self) -> usize {
        self.heads * self.width
    }

    /// Checks that an array has `parts` rows for every token.
    fn check(&self, what: &'static str, parts: usize, got: usize) -> Result<(), KernelError> {
        let axes = [self.batch, self.tokens, parts];
        let all = [self.tokens, self.heads, self.width, parts];
        let expected = all.iter().try_fold(self.batch, |all, &axis| all.checked_mul(axis));
        KernelError::check(what, expected.ok_or(KernelError::Overflow { what, axes })?, got)
    }

    fn check_logs(&self, what: &'static str, got: usize) -> Result<(), KernelError> {
        let axes = [self.batch, self.heads, self.tokens];
        let expected = axes.iter().try_fold(1_usize, |all, &axis| all.checked_mul(axis));
        KernelError::check(what, expected.ok_or(KernelError::Overflow { what, axes })?, got)
    }

    /// Whether there is nothing to do.
    fn is_empty(&self) -> bool {
        [self.batch, self.tokens, self.heads, self.width].contains(&0)
    }

    /// The factor of the scores.
    #[inline(always)]
    fn scale(&self) -> f32 {
        (self.width as f32).sqrt().recip()
    }

    /// Keys that the queries before `end` see.
    #[inline(always)]
    fn seen(&self, end: usize) -> usize {
        if self.causal { end.min(self.tokens) } else { self.tokens }
    }
}

/// The kernel of a type: AMX wants longer rows than a head has.
fn instructions(isa: Isa) -> Isa {
    isa.for_few_rows()
}

/// The place of a head in `[b, t, parts, m, c]`.
#[derive(Debug, Clone, Copy)]
struct Place {
    sequence: usize,
    head: usize,
}

impl Place {
    /// Where the head's first row begins, with `stride` values from token to token.
    fn first(self, heads: &Heads, part: usize, stride: usize) -> usize {
        self.sequence * heads.tokens * stride + part * heads.row() + self.head * heads.width
    }
}

/// Every head of every sequence, in the order of `[b, m]`.
fn places(heads: &Heads) -> impl Iterator<Item = Place> {
    let count = heads.heads;
    (0..heads.batch * count).map(move |i| Place { sequence: i / count, head: i % count })
}

/// A head's rows as `f32`, `[t, c]`, from part `part` of `[b, t, parts, m, c]`.
#[inline(always)]
fn widen<S: Score>(
    heads: &Heads,
    place: Place,
    [part, parts]: [usize; 2],
    from: &[S],
    to_tc: &mut [f32],
) {
    let stride = parts * heads.row();
    let first = place.first(heads, part, stride);
    let rows = from[first..].chunks(stride);
    for (to_c, from) in to_tc.chunks_exact_mut(heads.width).zip(rows) {
        for (to, from) in to_c.iter_mut().zip(from) {
            *to = from.wide();
        }
    }
}

/// Asks for rows of a head that comes later: they lie a token apart, which no processor foresees.
#[inline(always)]
fn prefetch<K: Kernel, S: Score>(
    kernel: K,
    heads: &Heads,
    place: Place,
    [part, parts]: [usize; 2],
    from: &[S],
    rows: Range<usize>,
) {
    let stride = parts * heads.row();
    let first = place.first(heads, part, stride);
    for row in rows {
        kernel.prefetch(&from[first + row * stride..][..heads.width]);
    }
}

/// A head of a run, and the one after it.
struct Turn<T> {
    place: Place,
    next: Option<Place>,
    of_head: T,
}

/// Heads in runs: a thread that takes the next head too can ask for it while it computes this one.
fn runs<T>(heads: &Heads, of_heads: impl Iterator<Item = T>) -> Vec<Vec<Turn<T>>> {
    let length = (heads.batch * heads.heads).div_ceil(threads::count() * RUNS).max(1);
    let mut runs: Vec<Vec<Turn<T>>> = Vec::new();
    for (i, (place, of_head)) in places(heads).zip(of_heads).enumerate() {
        if i % length == 0 {
            runs.push(Vec::with_capacity(length));
        }
        let run = runs.last_mut().expect("a run");
        if let Some(before) = run.last_mut() {
            before.next = Some(place);
        }
        run.push(Turn { place, next: None, of_head });
    }
    runs
}

/// Runs of a thread: enough for an even load.
const RUNS: usize = 8;

/// Lanes of a row of a head.
fn depth<K: Kernel>(heads: &Heads) -> usize {
    heads.width.div_ceil(K::Lane::DEPTH)
}

/// Lanes over all tokens.
fn tokens_depth<K: Kernel>(heads: &Heads) -> usize {
    heads.tokens.div_ceil(K::Lane::DEPTH)
}

/// Values of a head's row in whole panels.
fn padded<K: Kernel>(width: usize) -> usize {
    width.next_multiple_of(K::NR)
}

/// Lanes of [`along`].
fn along_lanes<K: Kernel>(heads: &Heads) -> usize {
    padded::<K>(heads.tokens) * depth::<K>(heads)
}

/// Rows as columns of panels, their values as depth: `[t / NR, k, NR]`. What the last panel has beyond the
/// tokens stays as it is.
#[inline(always)]
fn along<K: Kernel>(kernel: K, heads: &Heads, from_tc: &[f32], to: &mut [K::Lane]) {
    let panels = to.chunks_exact_mut(depth::<K>(heads) * K::NR);
    for (to, rows) in panels.zip(from_tc.chunks(K::NR * heads.width)) {
        transpose(kernel, to, K::NR, rows.chunks_exact(heads.width));
    }
}

/// Lanes of [`across`].
fn across_lanes<K: Kernel>(heads: &Heads) -> usize {
    padded::<K>(heads.width) * tokens_depth::<K>(heads)
}

/// Rows as depth, their values as columns of panels: `[c / NR, k, NR]`.
#[inline(always)]
fn across<K: Kernel>(kernel: K, heads: &Heads, from_tc: &[f32], to: &mut [K::Lane]) {
    let panels = to.chunks_exact_mut(tokens_depth::<K>(heads) * K::NR);
    for (to, first) in panels.zip((0..heads.width).step_by(K::NR)) {
        let count = K::NR.min(heads.width - first);
        let rows = from_tc.chunks_exact(heads.width);
        stack(kernel, to, K::NR, count, rows.map(|row| &row[first..]));
    }
}

/// Lanes of [`tiles`].
fn tile_lanes<K: Kernel>(heads: &Heads) -> usize {
    gemm::block_lanes::<K>(heads.tokens, depth::<K>(heads))
}

/// Rows as rows of tiles: `[t / MR, k, MR]`.
#[inline(always)]
fn tiles<K: Kernel>(kernel: K, heads: &Heads, from_tc: &[f32], to: &mut [K::Lane]) {
    let row = |row: usize| &from_tc[row * heads.width..][..heads.width];
    gemm::gather(kernel, to, depth::<K>(heads), heads.tokens, row);
}

/// Zeroed lanes.
fn lanes<L: Lane>(count: usize) -> Result<Buffer<L>, KernelError> {
    Buffer::zeroed("an attention head", count)
}
