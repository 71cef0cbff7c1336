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
use crate::pack::join_rows;
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

/// Tasks of a worker, of both products together, that there should be: each packs its second operand.
const FEW: usize = 2;

/// Panels of the second operand that are packed at a time.
const GROUP: usize = 8;

/// Lanes of them.
pub(crate) fn panels_lanes<K: Kernel>() -> usize {
    GROUP * K::NR * DEPTH
}

/// Most strips of a kernel in a task.
fn most_strips<K: Kernel>() -> usize {
    STRIPS.min(ROWS / K::MR)
}

/// Lanes that a task's first operands take where they have to be packed.
pub(crate) fn operand_lanes<K: Kernel>() -> usize {
    if K::STEP == 1 { 0 } else { 2 * most_strips::<K>() * K::MR * DEPTH }
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
struct Piece<'a> {
    which: Which,
    expert: usize,
    /// The first row of the matrix.
    first: usize,
    to: &'a mut [f32],
    bias: Option<&'a mut [f32]>,
}

/// Pieces that share their second operand: those of the gate and of the up map.
struct Task<'a> {
    pieces: Vec<Piece<'a>>,
}

/// Adds the gradients of all experts' weights.
pub(crate) fn add<K: Kernel>(
    kernel: K,
    shape: &Shape,
    rows: Rows<'_, K::Lane>,
    grads: &mut WeightGrads<'_>,
    workers: &mut [Scratch],
) {
    let (d, h) = (shape.width, shape.hidden);
    let visited = (0..shape.experts).filter(|&e| !rows.input.plan.span(e).is_empty()).count();
    // Of each of an expert's two products, so that the queue makes an even load.
    let least = (FEW * workers.len()).div_ceil(2 * visited.max(1));
    let ups = cut::<K>(Which::Up, [h, d], grads.w1_ehd, grads.b1_eh.as_deref_mut(), least);
    let gates = grads.gate_ehd.as_deref_mut();
    let gates = gates.map(|gate_ehd| cut::<K>(Which::Gate, [h, d], gate_ehd, None, least));
    let mut gates = gates.into_iter().flatten();
    let downs = cut::<K>(Which::Down, [d, h], grads.w2_edh, grads.b2_ed.as_deref_mut(), least);
    let mut tasks: Vec<_> = ups
        .into_iter()
        .map(|up| Task { pieces: [Some(up), gates.next()].into_iter().flatten().collect() })
        .collect();
    tasks.extend(downs.into_iter().map(|down| Task { pieces: vec![down] }));
    let piece = |piece: &Piece<'_>| rows.input.plan.span(piece.expert).len() * piece.to.len();
    let work = |task: &Task<'_>| task.pieces.iter().map(piece).sum::<usize>();
    tasks.retain(|task| work(task) > 0);
    tasks.sort_by_key(|task| std::cmp::Reverse(work(task)));
    let cx = Context { kernel, shape, rows };
    tasks::run(tasks, workers, |task, worker| kernel.vectorized(Add { cx: &cx, task, worker }));
}

/// Cuts the matrices `[e, height, width]` into pieces of whole strips, `least` of each where it has as many.
fn cut<'a, K: Kernel>(
    which: Which,
    [height, width]: [usize; 2],
    to: &'a mut [f32],
    bias: Option<&'a mut [f32]>,
    least: usize,
) -> Vec<Piece<'a>> {
    let strips = height.div_ceil(K::MR);
    let rows = strips.div_ceil(strips.div_ceil(most_strips::<K>()).max(least)) * K::MR;
    let experts = to.len() / (height * width);
    let places =
        (0..experts).flat_map(|expert| (0..height).step_by(rows).map(move |at| (expert, at)));
    let lengths = places.clone().map(|(_, first)| rows.min(height - first));
    let mut biases = bias.map(|bias| tasks::pieces(bias, lengths.clone()).into_iter());
    let pieces = tasks::pieces(to, lengths.map(|rows| rows * width));
    let piece = |((expert, first), to)| {
        let bias = biases.as_mut().and_then(Iterator::next);
        Piece { which, expert, first, to, bias }
    };
    places.zip(pieces).map(piece).collect()
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
struct Part {
    rows: Range<usize>,
    lanes: Range<usize>,
}

impl<K: Kernel> Context<'_, K> {
    #[inline(always)]
    fn add(&self, mut task: Task<'_>, worker: &mut Scratch) {
        let Operands { block, second, panel } = K::Lane::operands(&mut worker.operands);
        let Piece { which, expert, .. } = task.pieces[0];
        let lanes = self.rows.lane_rows.span(expert);
        for part in gemm::parts::<K>(lanes.len(), DEPTH) {
            let part = self.part(expert, part);
            let depth = part.lanes.len();
            let mut lefts = [Left { lanes: &[], stride: 0 }; 2];
            let (mut block, mut second) = (&mut block[..], &mut second[..]);
            for (piece, to) in task.pieces.iter_mut().zip(&mut lefts) {
                let (left, rest) = self.left(piece, &part, second);
                self.add_bias(piece, &part, left);
                second = rest;
                (*to, block) = self.packed(piece, left, block);
            }
            let width = self.width(which);
            for first in (0..width).step_by(GROUP * K::NR) {
                let columns = first..width.min(first + GROUP * K::NR);
                self.right(which, &part, columns.clone(), panel);
                for (piece, left) in task.pieces.iter_mut().zip(lefts) {
                    let panels = panel.chunks_exact(depth * K::NR);
                    for (panel, first) in panels.zip(columns.clone().step_by(K::NR)) {
                        let columns = first..width.min(first + K::NR);
                        self.add_columns(piece.to, width, left, panel, columns, &mut worker.sums);
                    }
                }
            }
        }
    }

    /// Some lanes of an expert.
    fn part(&self, expert: usize, part: Range<usize>) -> Part {
        let of_expert = self.rows.input.plan.span(expert);
        let row = |lane: usize| of_expert.end.min(of_expert.start + lane * K::Lane::DEPTH);
        let first = self.rows.lane_rows.span(expert).start;
        Part { rows: row(part.start)..row(part.end), lanes: first + part.start..first + part.end }
    }

    /// Columns of a matrix.
    fn width(&self, which: Which) -> usize {
        if which == Which::Down { self.shape.hidden } else { self.shape.width }
    }

    /// The rows of lanes whose columns are the piece's rows of the matrix, and what is left of `joined`.
    #[inline(always)]
    fn left<'b>(
        &'b self,
        piece: &Piece<'_>,
        part: &Part,
        joined: &'b mut [K::Lane],
    ) -> (Left<'b, K::Lane>, &'b mut [K::Lane]) {
        if piece.which == Which::Down {
            return self.join_gradients(piece, part, joined);
        }
        let stride = pre_stride::<K>(self.shape);
        let column = if piece.which == Which::Up { up_column::<K>(self.shape) } else { 0 };
        let pre = &self.rows.pre[part.lanes.start * stride..part.lanes.end * stride];
        (Left { lanes: &pre[column + piece.first..], stride }, joined)
    }

    /// The gradients of the outputs of a part's rows as rows of lanes.
    #[inline(always)]
    fn join_gradients<'b>(
        &self,
        piece: &Piece<'_>,
        part: &Part,
        to: &'b mut [K::Lane],
    ) -> (Left<'b, K::Lane>, &'b mut [K::Lane]) {
        let count = piece.to.len() / self.width(piece.which);
        let stride = joined_stride(count);
        let dy = |row| &self.token(self.rows.input.dy_td, row)[piece.first..][..count];
        let (to, rest) = to.split_at_mut(part.lanes.len() * stride);
        for (to, row) in to.chunks_exact_mut(stride).zip(part.rows.clone().step_by(K::Lane::DEPTH))
        {
            let second = (row + 1 < part.rows.end).then(|| dy(row + 1));
            join_rows(self.kernel, &mut to[..count], dy(row), second);
        }
        (Left { lanes: to, stride }, rest)
    }

    /// The first operand as the kernel wants it, which for most it is already, and what is left of `to`.
    #[inline(always)]
    fn packed<'b>(
        &self,
        piece: &Piece<'_>,
        left: Left<'b, K::Lane>,
        to: &'b mut [K::Lane],
    ) -> (Left<'b, K::Lane>, &'b mut [K::Lane]) {
        if K::STEP == 1 {
            return (left, to);
        }
        let count = piece.to.len() / self.width(piece.which);
        let depth = left.lanes.len().div_ceil(left.stride);
        let strip = gemm::whole_steps::<K>(depth) * K::MR;
        let (to, rest) = to.split_at_mut(count.div_ceil(K::MR) * strip);
        for (to, first) in to.chunks_exact_mut(strip).zip((0..count).step_by(K::MR)) {
            let columns = K::MR.min(count - first);
            left::across(self.kernel, to, columns, &left.lanes[first..], left.stride);
        }
        (Left { lanes: to, stride: K::MR }, rest)
    }

    /// Columns of the second operand as panels. A row is read in one go.
    #[inline(always)]
    fn right(&self, which: Which, part: &Part, columns: Range<usize>, to: &mut [K::Lane]) {
        let depth = part.lanes.len();
        if which == Which::Down {
            let stride = hidden_stride::<K>(self.shape);
            let rows = self.rows.hidden[part.lanes.start * stride..].chunks(stride);
            for (lane, row) in rows.take(depth).enumerate() {
                // Whole panels: rows are padded to them.
                let panels = to.chunks_exact_mut(depth * K::NR);
                let row = row[columns.start..].chunks_exact(K::NR);
                for (to, row) in panels.zip(row).take(columns.len().div_ceil(K::NR)) {
                    to[lane * K::NR..][..K::NR].copy_from_slice(row);
                }
            }
            return;
        }
        let x = |row| &self.token(self.rows.input.x_td, row)[columns.clone()];
        for (lane, row) in part.rows.clone().step_by(K::Lane::DEPTH).enumerate() {
            let (first, second) = (x(row), (row + 1 < part.rows.end).then(|| x(row + 1)));
            let panels = to.chunks_exact_mut(depth * K::NR);
            for (to, at) in panels.zip((0..columns.len()).step_by(K::NR)) {
                let to = &mut to[lane * K::NR..][..K::NR.min(columns.len() - at)];
                join_rows(self.kernel, to, &first[at..], second.map(|row| &row[at..]));
            }
        }
    }

    #[inline(always)]
    fn token<'b>(&self, values_td: &'b [f32], row: usize) -> &'b [f32] {
        let token = self.rows.input.plan.token_n()[row] as usize;
        &values_td[token * self.shape.width..][..self.shape.width]
    }

    #[inline(always)]
    fn add_bias(&self, piece: &mut Piece<'_>, part: &Part, left: Left<'_, K::Lane>) {
        let Some(bias) = piece.bias.as_deref_mut() else { return };
        if piece.which == Which::Down {
            let columns = piece.first..piece.first + bias.len();
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

    /// Adds the product of all strips with one panel.
    #[inline(always)]
    fn add_columns(
        &self,
        to: &mut [f32],
        width: usize,
        left: Left<'_, K::Lane>,
        panel: &[K::Lane],
        columns: Range<usize>,
        sums: &mut [f32],
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
