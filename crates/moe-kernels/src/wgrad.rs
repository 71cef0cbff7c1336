//! Gradients of the weights: one product of depth `n` for each expert's matrices, added in place.
//!
//! ```text
//! dW2[d, h] += sum_n dy[n, d] (w h)[n, h]        db2[d] += sum_n w_n dy[n, d]
//! dW1[h, d] += sum_n dup[n, h] x[n, d]           db1[h] += sum_n dup[n, h]       dG likewise
//! ```
//!
//! A task is some rows of one matrix. Sums over rows are cut at the same places whatever the number
//! of threads.
//!
//! Axis letters: `n` routed rows of an expert, `d` width, `h` hidden width, `k` depth in lanes.

use std::ops::Range;

use crate::arch::{Job, Kernel, Lane, Left};
use crate::backward::BackwardInput;
use crate::gemm;
use crate::hidden::{hidden_stride, pre_stride, up_column};
use crate::left;
use crate::pack::stack;
use crate::shape::{Shape, WeightGrads};
use crate::tasks;
use crate::workspace::{Operands, Scratch};

/// Most lanes of rows that are multiplied at a time: more than elsewhere, because each part reads
/// and writes the whole gradient.
pub(crate) const DEPTH: usize = 320;

/// Most strips of `MR` rows of a matrix in a task, and most rows: its operand stays in a second cache
/// of 1 MiB.
const STRIPS: usize = 40;
const ROWS: usize = 560;

/// Most strips of a kernel in a task.
fn most_strips<K: Kernel>() -> usize {
    STRIPS.min(ROWS / K::MR)
}

/// Rows that are packed at a time for all strips: whole steps of every kernel, and few enough to stay in the
/// first cache.
const PACKED: usize = 32;

/// Lanes that a task's first operand takes.
pub(crate) fn operand_lanes<K: Kernel>() -> usize {
    most_strips::<K>() * K::MR * DEPTH
}

/// What the first part of the backward pass leaves.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) input: BackwardInput<'a>,
    /// Gradients of what the activations saw.
    pub(crate) pre_np: &'a [f32],
    /// The weighted hidden layer.
    pub(crate) hidden_nh: &'a [f32],
}

/// Which matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Up,
    Gate,
    Down,
}

/// Some rows of an expert's matrix.
struct Task<'a> {
    which: Which,
    expert: usize,
    /// The first row of the matrix.
    first: usize,
    to: &'a mut [f32],
    bias: Option<&'a mut [f32]>,
}

/// Adds the gradients of all experts' weights.
pub(crate) fn add<K: Kernel>(
    kernel: K,
    shape: &Shape,
    rows: Rows<'_>,
    grads: &mut WeightGrads<'_>,
    workers: &mut [Scratch],
) {
    let mut tasks = Vec::new();
    let (d, h) = (shape.width, shape.hidden);
    tasks.extend(cut::<K>(Which::Up, [h, d], grads.w1_ehd, grads.b1_eh.as_deref_mut()));
    if let Some(gate_ehd) = grads.gate_ehd.as_deref_mut() {
        tasks.extend(cut::<K>(Which::Gate, [h, d], gate_ehd, None));
    }
    tasks.extend(cut::<K>(Which::Down, [d, h], grads.w2_edh, grads.b2_ed.as_deref_mut()));
    let work = |task: &Task<'_>| rows.input.plan.span(task.expert).len() * task.to.len();
    tasks.retain(|task| work(task) > 0);
    tasks.sort_by_key(|task| std::cmp::Reverse(work(task)));
    let cx = Context { kernel, shape, rows };
    tasks::run(tasks, workers, |task, worker| kernel.vectorized(Add { cx: &cx, task, worker }));
}

/// Cuts the matrices `[e, height, width]` into tasks of whole strips.
fn cut<'a, K: Kernel>(
    which: Which,
    [height, width]: [usize; 2],
    to: &'a mut [f32],
    bias: Option<&'a mut [f32]>,
) -> Vec<Task<'a>> {
    let strips = height.div_ceil(K::MR);
    let rows = strips.div_ceil(strips.div_ceil(most_strips::<K>())) * K::MR;
    let experts = to.len() / (height * width);
    let places =
        (0..experts).flat_map(|expert| (0..height).step_by(rows).map(move |at| (expert, at)));
    let lengths = places.clone().map(|(_, first)| rows.min(height - first));
    let mut biases = bias.map(|bias| tasks::pieces(bias, lengths.clone()).into_iter());
    let pieces = tasks::pieces(to, lengths.map(|rows| rows * width));
    let task = |((expert, first), to)| {
        let bias = biases.as_mut().and_then(Iterator::next);
        Task { which, expert, first, to, bias }
    };
    places.zip(pieces).map(task).collect()
}

struct Context<'a, K> {
    kernel: K,
    shape: &'a Shape,
    rows: Rows<'a>,
}

/// A task on a worker.
struct Add<'a, K> {
    cx: &'a Context<'a, K>,
    task: Task<'a>,
    worker: &'a mut Scratch,
}

impl<K: Kernel> Job for Add<'_, K> {
    #[inline(always)]
    fn run(self) {
        self.cx.add(self.task, self.worker);
    }
}

impl<K: Kernel> Context<'_, K> {
    #[inline(always)]
    fn add(&self, mut task: Task<'_>, worker: &mut Scratch) {
        let Operands { block, panel, .. } = K::Lane::operands(&mut worker.operands);
        let rows = self.rows.input.plan.span(task.expert);
        let width = self.width(task.which);
        let lanes = rows.len().div_ceil(K::Lane::DEPTH);
        for part in gemm::parts::<K>(lanes, DEPTH) {
            let depth = part.len();
            let row = |lane: usize| rows.end.min(rows.start + lane * K::Lane::DEPTH);
            let rows = row(part.start)..row(part.end);
            self.add_bias(&mut task, rows.clone());
            self.pack_strips(&task, rows.clone(), depth, block);
            let strips = (task.to.len() / width).div_ceil(K::MR);
            for first in (0..width).step_by(K::NR) {
                let columns = |first: usize| first..width.min(first + K::NR);
                let panel = &mut panel[..depth * K::NR];
                let row = |row| &self.right(task.which, row)[first..];
                stack(panel, K::NR, columns(first).len(), rows.clone().map(row));
                let mut next = rows.clone().filter(|_| first + K::NR < width);
                let ahead = || {
                    let share = next.by_ref().take(rows.len().div_ceil(strips));
                    for row in share {
                        self.kernel.prefetch(&self.right(task.which, row)[columns(first + K::NR)]);
                    }
                };
                let to = &mut *task.to;
                self.add_columns(to, width, block, panel, columns(first), &mut worker.sums, ahead);
            }
        }
    }

    /// Columns of a matrix.
    fn width(&self, which: Which) -> usize {
        if which == Which::Down { self.shape.hidden } else { self.shape.width }
    }

    /// The row of the first operand, whose columns are the matrix's rows.
    #[inline(always)]
    fn left(&self, which: Which, row: usize) -> &[f32] {
        let pre = || &self.rows.pre_np[row * pre_stride::<K>(self.shape)..];
        match which {
            Which::Up => &pre()[up_column::<K>(self.shape)..][..self.shape.hidden],
            Which::Gate => &pre()[..self.shape.hidden],
            Which::Down => self.token(self.rows.input.dy_td, row),
        }
    }

    /// The row of the second operand.
    #[inline(always)]
    fn right(&self, which: Which, row: usize) -> &[f32] {
        match which {
            Which::Up | Which::Gate => self.token(self.rows.input.x_td, row),
            Which::Down => {
                let start = row * hidden_stride::<K>(self.shape);
                &self.rows.hidden_nh[start..][..self.shape.hidden]
            }
        }
    }

    #[inline(always)]
    fn token<'b>(&self, values_td: &'b [f32], row: usize) -> &'b [f32] {
        let token = self.rows.input.plan.token_n()[row] as usize;
        &values_td[token * self.shape.width..][..self.shape.width]
    }

    #[inline(always)]
    fn pack_strips(&self, task: &Task<'_>, rows: Range<usize>, depth: usize, to: &mut [K::Lane]) {
        let end = task.first + task.to.len() / self.width(task.which);
        let strip = gemm::whole_steps::<K>(depth) * K::MR;
        // Some rows for all strips, not all rows for each strip: a row is read in one go.
        for start in rows.clone().step_by(PACKED) {
            let some = start..rows.end.min(start + PACKED);
            let lanes = gemm::whole_steps::<K>(some.len().div_ceil(K::Lane::DEPTH)) * K::MR;
            let before = (start - rows.start) / K::Lane::DEPTH * K::MR;
            let strips = to.chunks_exact_mut(strip).zip((task.first..end).step_by(K::MR));
            for (to, first) in strips {
                let row = |row| &self.left(task.which, row)[first..];
                let to = &mut to[before..][..lanes];
                left::across(self.kernel, to, K::MR.min(end - first), some.clone().map(row));
            }
        }
    }

    #[inline(always)]
    fn add_bias(&self, task: &mut Task<'_>, rows: Range<usize>) {
        let Some(bias) = task.bias.as_deref_mut() else { return };
        let columns = task.first..task.first + bias.len();
        for row in rows {
            // The other gradients are of what the activation saw, weights included.
            let down = task.which == Which::Down;
            let weight = if down { self.rows.input.plan.weight_n()[row] } else { 1.0 };
            let left = &self.left(task.which, row)[columns.clone()];
            bias.iter_mut().zip(left).for_each(|(bias, left)| *bias += weight * left);
        }
    }

    /// Adds the product of all strips with one panel; `ahead` runs before each.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a product's operands and their places")]
    fn add_columns(
        &self,
        to: &mut [f32],
        width: usize,
        block: &[K::Lane],
        panel: &[K::Lane],
        columns: Range<usize>,
        sums: &mut [f32],
        mut ahead: impl FnMut(),
    ) {
        let depth = gemm::whole_steps::<K>(panel.len() / K::NR);
        let strips = block.chunks_exact(depth * K::MR);
        for (number, strip) in strips.enumerate() {
            let first = number * K::MR * width;
            if first >= to.len() {
                break;
            }
            let (to, next) = to.split_at_mut(to.len().min(first + K::MR * width));
            let to = &mut to[first..];
            for row in next.chunks_exact(width).take(K::MR) {
                self.kernel.prefetch(&row[columns.clone()]);
            }
            ahead();
            let rows = to.len() / width;
            let strip = Left { lanes: strip, stride: K::MR };
            if columns.len() == K::NR {
                self.kernel.tile(rows, strip, panel, &mut to[columns.start..], width, true);
                continue;
            }
            self.kernel.tile(rows, strip, panel, sums, K::NR, false);
            for (to, sums) in to.chunks_exact_mut(width).zip(sums.chunks_exact(K::NR)) {
                to[columns.clone()].iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
            }
        }
    }
}
