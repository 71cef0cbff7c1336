//! The forward pass of all experts.
//!
//! A task is a block of an expert's rows. It gathers them from `x_td` while packing, multiplies with
//! the up panels, applies the activation to each tile of sums, and keeps the hidden layer, already
//! packed, in its cache for the second product. Weighted results go to `[n, d]`, which one
//! gather-sum combines.
//!
//! Axis letters: `t` tokens, `n` routed rows, `d` width, `h` hidden width, `k` depth in lanes.

use std::ops::Range;

use crate::arch::{Job, Kernel, Lane, Work};
use crate::combine::combine;
use crate::gemm::{self, Operand, Sums};
use crate::hidden::{Hidden, pre_stride};
use crate::pack::{Packed, Panelled};
use crate::plan::Plan;
use crate::shape::Shape;
use crate::workspace::{LaneRows, Need, Operands, Saved, Scratch, Workspace};
use crate::{KernelError, tasks};

/// Most rows of a task.
const MOST_ROWS: usize = 504;

/// Blocks of a worker below which one more or less would be felt.
const FEW: usize = 8;

/// Lanes that a block of gathered rows may take: a second cache of 1 MiB.
const BLOCK: usize = 1 << 18;

/// Most rows of a task on rows of this many lanes: all of a block's rows pass by for each panel, and
/// the more there are, the fewer times panels come from memory.
pub(crate) fn most_rows(lanes: usize) -> usize {
    (BLOCK / lanes).clamp(64, MOST_ROWS)
}

/// Runs all experts on their rows and writes every token's weighted sum to `y_td`, `[t, d]`: zeros
/// for tokens without rows. `x_td` is `[t, d]`. With `save`, what the activations saw is kept there
/// for [`crate::backward`].
///
/// # Errors
///
/// If the weights are not packed, `plan` has another number of experts, `x_td` or `y_td` another
/// length than `t * d`, or memory is short.
pub fn forward(
    packed: &Packed,
    plan: &Plan<'_>,
    x_td: &[f32],
    y_td: &mut [f32],
    save: Option<&mut Saved>,
    workspace: &mut Workspace,
) -> Result<(), KernelError> {
    packed.check_filled()?;
    check_plan(packed.shape(), plan)?;
    check_tokens("x_td", packed.shape(), plan, x_td)?;
    check_tokens("y_td", packed.shape(), plan, y_td)?;
    packed.isa().run(packed.dtype(), Forward { packed, plan, x_td, y_td, save, workspace })
}

/// Refuses a plan for another number of experts.
pub(crate) fn check_plan(shape: &Shape, plan: &Plan<'_>) -> Result<(), KernelError> {
    KernelError::check("offset_e", shape.experts + 1, plan.experts() + 1)
}

/// Refuses values that are not `[t, d]`.
pub(crate) fn check_tokens(
    what: &'static str,
    shape: &Shape,
    plan: &Plan<'_>,
    values: &[f32],
) -> Result<(), KernelError> {
    let expected = plan.tokens().checked_mul(shape.width);
    let axes = [plan.tokens(), shape.width, 1];
    KernelError::check(what, expected.ok_or(KernelError::Overflow { what, axes })?, values.len())
}

struct Forward<'a> {
    packed: &'a Packed,
    plan: &'a Plan<'a>,
    x_td: &'a [f32],
    y_td: &'a mut [f32],
    save: Option<&'a mut Saved>,
    workspace: &'a mut Workspace,
}

impl Work for Forward<'_> {
    type Out = Result<(), KernelError>;

    fn run<K: Kernel>(self, kernel: K) -> Self::Out {
        let Self { packed, plan, x_td, y_td, save, workspace } = self;
        let shape = packed.shape();
        workspace.reserve::<K::Lane>(need::<K>(shape))?;
        workspace.rows_of.sort(plan.tokens(), plan.token_n())?;
        let row_nd = workspace.row_nd.at_least("results of rows", plan.rows() * shape.width)?;
        let lane_rows = LaneRows::of::<K::Lane>(plan);
        let pre = save.map(|saved| saved.prepare::<K>(packed, plan.rows(), lane_rows.count()));
        let pre = pre.transpose()?;
        let cx = Context::new(kernel, packed, plan, x_td);
        let spans = blocks(plan, workspace.workers.len(), most_rows(cx.sizes.up_depth));
        let tasks = tasks_of::<K>(&spans, row_nd, shape, pre);
        tasks::run(tasks, &mut workspace.workers, |task, worker| {
            kernel.vectorized(Block { cx: &cx, task, worker });
        });
        combine(kernel, shape.width, &workspace.rows_of, row_nd, y_td);
        Ok(())
    }
}

/// A task for each block, longest first.
fn tasks_of<'a, K: Kernel>(
    spans: &[Span],
    row_nd: &'a mut [f32],
    shape: &Shape,
    pre: Option<&'a mut [K::Lane]>,
) -> Vec<Task<'a, K::Lane>> {
    let stride = pre_stride::<K>(shape);
    let lanes = spans.iter().map(|span| span.lane_rows::<K::Lane>() * stride);
    let mut pre = pre.map(|pre| tasks::pieces(pre, lanes).into_iter());
    let lengths = spans.iter().map(|span| span.rows.len() * shape.width);
    let rows = spans.iter().zip(tasks::pieces(row_nd, lengths));
    let task = |(span, y): (&Span, _)| {
        let pre = pre.as_mut().and_then(Iterator::next);
        Task { span: span.clone(), y, pre }
    };
    let mut tasks: Vec<_> = rows.map(task).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.span.rows.len()));
    tasks
}

/// Rows of one expert.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) expert: usize,
    pub(crate) rows: Range<usize>,
}

impl Span {
    /// Rows of lanes of these rows, which begin with a whole pair.
    pub(crate) fn lane_rows<L: Lane>(&self) -> usize {
        self.rows.len().div_ceil(L::DEPTH)
    }
}

/// Cuts the rows of all experts into blocks of like size, in the order of the plan: small enough to
/// keep all workers busy, and never above `most`. A pair of an expert's rows stays together.
pub(crate) fn blocks(plan: &Plan<'_>, workers: usize, most: usize) -> Vec<Span> {
    let share = plan.rows().max(1).div_ceil(workers * 4).next_multiple_of(32);
    let most = share.min(most);
    let counts = |expert: usize| plan.span(expert).len().div_ceil(most);
    // Of many blocks the queue makes an even load; few are as many as make one.
    let few = (0..plan.experts()).map(counts).sum::<usize>() < FEW * workers;
    let cut = |expert: usize| {
        let rows = plan.span(expert);
        let count = counts(expert).max(1);
        let count = if few { count.next_multiple_of(workers) } else { count };
        let edge = move |part: usize| match part == count {
            true => rows.end,
            false => rows.start + rows.len() * part / count / 2 * 2,
        };
        let spans = (0..count).map(move |part| Span { expert, rows: edge(part)..edge(part + 1) });
        spans.filter(|span| !span.rows.is_empty())
    };
    (0..plan.experts()).flat_map(cut).collect()
}

impl Saved {
    /// Room for the rows of a plan.
    pub(crate) fn prepare<K: Kernel>(
        &mut self,
        packed: &Packed,
        rows: usize,
        lane_rows: usize,
    ) -> Result<&mut [K::Lane], KernelError> {
        let shape = packed.shape();
        self.holds = Some((*shape, packed.isa(), rows));
        let lanes = K::Lane::buffer(&mut self.lanes);
        lanes.at_least("the saved hidden layer", lane_rows * pre_stride::<K>(shape))
    }
}

/// A worker's buffers in a forward pass.
pub(crate) fn need<K: Kernel>(shape: &Shape) -> Need {
    let sizes = Panelled::of::<K>(shape);
    let rows = most_rows(sizes.up_depth);
    Need {
        block: gemm::block_lanes::<K>(rows, sizes.up_depth),
        second: gemm::block_lanes::<K>(rows, sizes.down_depth),
        panel: 0,
        more: 0,
        sums: rows.next_multiple_of(K::MR) * gemm::sums_stride::<K>(shape.width),
    }
}

struct Task<'a, L> {
    span: Span,
    /// Results, `[n, d]`.
    y: &'a mut [f32],
    /// What the activation saw.
    pre: Option<&'a mut [L]>,
}

/// A task on a worker.
struct Block<'a, K: Kernel> {
    cx: &'a Context<'a, K>,
    task: Task<'a, K::Lane>,
    worker: &'a mut Scratch,
}

impl<K: Kernel> Job for Block<'_, K> {
    #[inline(always)]
    fn run(self) {
        let Self { cx, mut task, worker } = self;
        let Operands { block, second, .. } = K::Lane::operands(&mut worker.operands);
        let depth = gemm::whole_steps::<K>(cx.sizes.down_depth);
        let activated =
            Activated { kernel: cx.kernel, pre: task.pre.as_deref_mut(), to: &mut *second, depth };
        cx.up(&task.span, block, &mut worker.sums, activated);
        cx.down(&mut task, second, &mut worker.sums);
    }
}

/// What is done with the sums of each panel of the first product.
pub(crate) trait OnPanel<K> {
    /// Asks for what [`Self::run`] will write of a tile's rows; to be marked likewise.
    fn before(&self, hidden: &Hidden, tile: usize);

    /// Does it; to be marked `#[inline(always)]`.
    fn run(&mut self, hidden: Hidden, sums: &mut [f32]);
}

/// Activates the hidden layer and packs it for the second product.
struct Activated<'a, K: Kernel> {
    kernel: K,
    pre: Option<&'a mut [K::Lane]>,
    to: &'a mut [K::Lane],
    depth: usize,
}

impl<K: Kernel> OnPanel<K> for Activated<'_, K> {
    #[inline(always)]
    fn before(&self, hidden: &Hidden, tile: usize) {
        if let Some(pre) = &self.pre {
            hidden.prefetch(self.kernel, tile, pre);
        }
    }

    #[inline(always)]
    fn run(&mut self, hidden: Hidden, sums: &mut [f32]) {
        if let Some(pre) = &mut self.pre {
            hidden.keep(self.kernel, sums, pre);
        }
        hidden.activate::<K>(sums);
        hidden.pack(self.kernel, sums, self.to, self.depth);
    }
}

/// What all tasks read.
pub(crate) struct Context<'a, K> {
    pub(crate) kernel: K,
    pub(crate) packed: &'a Packed,
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) x_td: &'a [f32],
    pub(crate) sizes: Panelled,
}

impl<'a, K: Kernel> Context<'a, K> {
    pub(crate) fn new(kernel: K, packed: &'a Packed, plan: &'a Plan<'a>, x_td: &'a [f32]) -> Self {
        Self { kernel, packed, plan, x_td, sizes: Panelled::of::<K>(packed.shape()) }
    }

    /// Gathers rows of `from`, `[t, d]`, into a block.
    #[inline(always)]
    pub(crate) fn gather<'b>(
        &self,
        from: &[f32],
        span: &Span,
        to: &'b mut [K::Lane],
    ) -> Operand<'b, K::Lane> {
        let token_n = &self.plan.token_n()[span.rows.clone()];
        let (width, depth) = (self.packed.shape().width, self.sizes.up_depth);
        let row = |row: usize| &from[token_n[row] as usize * width..][..width];
        let to = &mut to[..gemm::block_lanes::<K>(token_n.len(), depth)];
        gemm::gather(self.kernel, to, depth, token_n.len(), row);
        Operand { lanes: to, rows: token_n.len(), depth }
    }

    /// The first product: `each` gets the sums of every panel, biases added.
    #[inline(always)]
    pub(crate) fn up(
        &self,
        span: &Span,
        block: &mut [K::Lane],
        sums: &mut [f32],
        mut each: impl OnPanel<K>,
    ) {
        let expert = self.packed.expert::<K>(span.expert);
        let block = self.gather(self.x_td, span, block);
        let panels = expert.up.chunks_exact(block.depth * K::NR);
        let down = &expert.down[..self.sizes.down_depth * K::NR];
        let ahead = panels.clone().skip(1).chain([down]);
        for (number, (panel, ahead)) in panels.zip(ahead).enumerate() {
            let hidden = Hidden::of::<K>(self.packed.shape(), number, block.rows);
            gemm::product(self.kernel, block, panel, ahead, sums, |tile| {
                each.before(&hidden, tile);
            });
            hidden.add_bias::<K>(expert.b1_h, sums);
            each.run(hidden, sums);
        }
    }

    #[inline(always)]
    fn down(&self, task: &mut Task<'_, K::Lane>, second: &[K::Lane], sums: &mut [f32]) {
        let expert = self.packed.expert::<K>(task.span.expert);
        let weight_n = &self.plan.weight_n()[task.span.rows.clone()];
        let depth = self.sizes.down_depth;
        let operand = Operand { lanes: second, rows: weight_n.len(), depth };
        let panels = expert.down.chunks_exact(depth * K::NR);
        let width = self.packed.shape().width;
        // Whole panels go where they belong; what is narrower would write over the next row.
        let whole = width.is_multiple_of(K::NR);
        let stride = if whole { width } else { gemm::sums_stride::<K>(width) };
        let to = if whole { &mut *task.y } else { &mut *sums };
        let tiles = operand.rows.div_ceil(K::MR);
        // Depth outermost: the part of the operand that all panels need stays in the cache.
        for part in gemm::parts::<K>(depth, gemm::DEPTH) {
            let lanes = part.start * K::NR..part.end * K::NR;
            let after =
                part.end * K::NR..lanes.len().min((depth - part.end) * K::NR) + part.end * K::NR;
            let next = panels.clone().skip(1).map(|panel| &panel[lanes.clone()]);
            let next = next.chain([&expert.down[after]]);
            for (number, (panel, ahead)) in panels.clone().zip(next).enumerate() {
                let sums = Sums { to: &mut to[number * K::NR..], stride };
                let mut ahead = ahead.chunks(ahead.len().div_ceil(tiles).max(1));
                gemm::partial(
                    self.kernel,
                    operand,
                    part.clone(),
                    &panel[lanes.clone()],
                    sums,
                    |_| {
                        self.kernel.prefetch(ahead.next().unwrap_or_default());
                    },
                );
            }
        }
        if !whole {
            for (y_d, sums) in task.y.chunks_exact_mut(width).zip(sums.chunks(stride)) {
                y_d.copy_from_slice(&sums[..width]);
            }
        }
        weigh(weight_n, expert.b2_d, task.y);
    }
}

/// `y[n] = weight[n] (y[n] + b2)`.
#[inline(always)]
fn weigh(weight_n: &[f32], b2_d: Option<&[f32]>, y_nd: &mut [f32]) {
    let width = y_nd.len() / weight_n.len();
    for (y_d, weight) in y_nd.chunks_exact_mut(width).zip(weight_n) {
        match b2_d {
            Some(b2_d) => {
                for (y, bias) in y_d.iter_mut().zip(b2_d) {
                    *y = weight * (*y + bias);
                }
            }
            None => y_d.iter_mut().for_each(|y| *y *= weight),
        }
    }
}
