//! Gradients of the weights: one product of depth `n` for each expert's matrices, added in place.
//!
//! ```text
//! dW2[d, h] += sum_n dy[n, d] (w h)[n, h]        db2[d] += sum_n w_n dy[n, d]
//! dW1[h, d] += sum_n dup[n, h] x[n, d]           db1[h] += sum_n dup[n, h]       dG likewise
//! ```
//!
//! A task is some rows of one matrix. Sums over rows are cut at the same places whatever the number
//! of threads. What the first part of the backward pass left is in lanes already, and the microkernel
//! reads its first operand from there, `k` rows apart.
//!
//! Axis letters: `n` routed rows of an expert, `d` width, `h` hidden width, `k` depth in lanes.

use std::ops::Range;

use crate::arch::{Job, Kernel, Lane, Left};
use crate::backward::BackwardInput;
use crate::gemm;
use crate::hidden::{hidden_stride, pre_stride, up_column};
use crate::left;
use crate::pack::{join_rows, stack};
use crate::shape::{Shape, WeightGrads};
use crate::tasks;
use crate::workspace::{LaneRows, Operands, Scratch};

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

/// Lanes that a task's first operand takes where it has to be packed.
pub(crate) fn operand_lanes<K: Kernel>() -> usize {
    if K::STEP == 1 { 0 } else { most_strips::<K>() * K::MR * DEPTH }
}

/// Lanes of rows that are joined for a task.
pub(crate) fn joined_lanes<K: Kernel>() -> usize {
    joined_stride(most_strips::<K>() * K::MR) * DEPTH
}

/// From one of them to the next, with a cache line between.
fn joined_stride(columns: usize) -> usize {
    columns.next_multiple_of(16) + 16
}

/// What the first part of the backward pass leaves.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, L> {
    pub(crate) input: BackwardInput<'a>,
    /// Gradients of what the activations saw.
    pub(crate) pre: &'a [L],
    /// The weighted hidden layer.
    pub(crate) hidden: &'a [L],
    pub(crate) lane_rows: &'a LaneRows,
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
    rows: Rows<'_, K::Lane>,
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

struct Context<'a, K: Kernel> {
    kernel: K,
    shape: &'a Shape,
    rows: Rows<'a, K::Lane>,
}

/// A task on a worker.
struct Add<'a, K: Kernel> {
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

/// Some rows of an expert, and where their lanes lie among all.
#[derive(Clone)]
struct Part {
    rows: Range<usize>,
    lanes: Range<usize>,
}

impl<K: Kernel> Context<'_, K> {
    #[inline(always)]
    fn add(&self, mut task: Task<'_>, worker: &mut Scratch) {
        let Operands { block, second, panel } = K::Lane::operands(&mut worker.operands);
        let (of_expert, lanes) = {
            let Rows { input, lane_rows, .. } = &self.rows;
            (input.plan.span(task.expert), lane_rows.span(task.expert))
        };
        let width = self.width(task.which);
        for part in gemm::parts::<K>(lanes.len(), DEPTH) {
            let row = |lane: usize| of_expert.end.min(of_expert.start + lane * K::Lane::DEPTH);
            let rows = row(part.start)..row(part.end);
            let part = Part { rows, lanes: lanes.start + part.start..lanes.start + part.end };
            let left = self.left(&task, &part, second);
            self.add_bias(&mut task, &part, left);
            let left = self.packed(&task, left, block);
            let panel = &mut panel[..part.lanes.len() * K::NR];
            for first in (0..width).step_by(K::NR) {
                let columns = |first: usize| first..width.min(first + K::NR);
                self.right(task.which, &part, columns(first), panel);
                let next = columns(first + K::NR);
                let mut ahead = part.clone();
                let strips = (task.to.len() / width).div_ceil(K::MR);
                let share = part.lanes.len().div_ceil(strips);
                let to = &mut *task.to;
                self.add_columns(to, width, left, panel, columns(first), &mut worker.sums, || {
                    self.prefetch_right(task.which, &mut ahead, next.clone(), share);
                });
            }
        }
    }

    /// Columns of a matrix.
    fn width(&self, which: Which) -> usize {
        if which == Which::Down { self.shape.hidden } else { self.shape.width }
    }

    /// The rows of lanes whose columns are the task's rows of the matrix.
    #[inline(always)]
    fn left<'b>(
        &'b self,
        task: &Task<'_>,
        part: &Part,
        joined: &'b mut [K::Lane],
    ) -> Left<'b, K::Lane> {
        if task.which == Which::Down {
            return self.join_gradients(task, part, joined);
        }
        let stride = pre_stride::<K>(self.shape);
        let column = if task.which == Which::Up { up_column::<K>(self.shape) } else { 0 };
        let pre = &self.rows.pre[part.lanes.start * stride..part.lanes.end * stride];
        Left { lanes: &pre[column + task.first..], stride }
    }

    /// The gradients of the outputs of a part's rows as rows of lanes.
    #[inline(always)]
    fn join_gradients<'b>(
        &self,
        task: &Task<'_>,
        part: &Part,
        to: &'b mut [K::Lane],
    ) -> Left<'b, K::Lane> {
        let count = task.to.len() / self.width(task.which);
        let stride = joined_stride(count);
        let dy = |row| &self.token(self.rows.input.dy_td, row)[task.first..][..count];
        for (to, row) in to.chunks_exact_mut(stride).zip(part.rows.clone().step_by(K::Lane::DEPTH))
        {
            let second = (row + 1 < part.rows.end).then(|| dy(row + 1));
            join_rows(self.kernel, &mut to[..count], dy(row), second);
        }
        Left { lanes: &to[..part.lanes.len() * stride], stride }
    }

    /// The first operand as the kernel wants it: for most it is already.
    #[inline(always)]
    fn packed<'b>(
        &self,
        task: &Task<'_>,
        left: Left<'b, K::Lane>,
        to: &'b mut [K::Lane],
    ) -> Left<'b, K::Lane> {
        if K::STEP == 1 {
            return left;
        }
        let count = task.to.len() / self.width(task.which);
        let depth = left.lanes.len().div_ceil(left.stride);
        let strip = gemm::whole_steps::<K>(depth) * K::MR;
        for (to, first) in to.chunks_exact_mut(strip).zip((0..count).step_by(K::MR)) {
            let columns = K::MR.min(count - first);
            left::across(self.kernel, to, columns, &left.lanes[first..], left.stride);
        }
        Left { lanes: &to[..count.div_ceil(K::MR) * strip], stride: K::MR }
    }

    /// Columns of the second operand as a panel.
    #[inline(always)]
    fn right(&self, which: Which, part: &Part, columns: Range<usize>, panel: &mut [K::Lane]) {
        if which == Which::Down {
            let stride = hidden_stride::<K>(self.shape);
            let rows = self.rows.hidden[part.lanes.start * stride..].chunks(stride);
            for (to, row) in panel.chunks_exact_mut(K::NR).zip(rows) {
                // Whole registers: rows are padded to whole panels.
                to.copy_from_slice(&row[columns.start..][..K::NR]);
            }
            return;
        }
        let row = |row| &self.token(self.rows.input.x_td, row)[columns.start..];
        stack(self.kernel, panel, K::NR, columns.len(), part.rows.clone().map(row));
    }

    /// Asks for `share` lanes of what [`Self::right`] will read next, and takes them from `ahead`.
    #[inline(always)]
    fn prefetch_right(&self, which: Which, ahead: &mut Part, columns: Range<usize>, share: usize) {
        if columns.is_empty() {
            return;
        }
        if which == Which::Down {
            let stride = hidden_stride::<K>(self.shape);
            for lane in ahead.lanes.by_ref().take(share) {
                self.kernel.prefetch(&self.rows.hidden[lane * stride..][columns.clone()]);
            }
        } else {
            for row in ahead.rows.by_ref().take(share * K::Lane::DEPTH) {
                let x_d = self.token(self.rows.input.x_td, row);
                self.kernel.prefetch(&x_d[columns.clone()]);
            }
        }
    }

    #[inline(always)]
    fn token<'b>(&self, values_td: &'b [f32], row: usize) -> &'b [f32] {
        let token = self.rows.input.plan.token_n()[row] as usize;
        &values_td[token * self.shape.width..][..self.shape.width]
    }

    #[inline(always)]
    fn add_bias(&self, task: &mut Task<'_>, part: &Part, left: Left<'_, K::Lane>) {
        let Some(bias) = task.bias.as_deref_mut() else { return };
        if task.which == Which::Down {
            let columns = task.first..task.first + bias.len();
            for row in part.rows.clone() {
                // The other gradients are of what the activation saw, weights included.
                let weight = self.rows.input.plan.weight_n()[row];
                let dy = &self.token(self.rows.input.dy_td, row)[columns.clone()];
                bias.iter_mut().zip(dy).for_each(|(bias, dy)| *bias += weight * dy);
            }
            return;
        }
        for lanes in left.lanes.chunks(left.stride) {
            for (bias, lane) in bias.iter_mut().zip(lanes) {
                let [first, second] = lane.split();
                *bias += first + second;
            }
        }
    }

    /// Adds the product of all strips with one panel; `ahead` runs before each.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a product's operands and their places")]
    fn add_columns(
        &self,
        to: &mut [f32],
        width: usize,
        left: Left<'_, K::Lane>,
        panel: &[K::Lane],
        columns: Range<usize>,
        sums: &mut [f32],
        mut ahead: impl FnMut(),
    ) {
        let packed = gemm::whole_steps::<K>(panel.len() / K::NR) * K::MR;
        for (number, first) in (0..to.len()).step_by(K::MR * width).enumerate() {
            let strip = number * if K::STEP == 1 { K::MR } else { packed };
            let strip = Left { lanes: &left.lanes[strip..], stride: left.stride };
            let (to, next) = to.split_at_mut(to.len().min(first + K::MR * width));
            let to = &mut to[first..];
            for row in next.chunks_exact(width).take(K::MR) {
                self.kernel.prefetch(&row[columns.clone()]);
            }
            ahead();
            let rows = to.len() / width;
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
