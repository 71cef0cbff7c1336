//! The backward pass of all experts.
//!
//! ```text
//! y_t = sum_n w_n (h_n W2^T + b2)      over the rows n of token t, h = a(gate) up or a(up)
//! dh_n = dy_t W2                       dw_n = dh_n . h_n + dy_t . b2
//! dpre = w_n dh_n through a            dx_t = sum_n dgate_n G + dup_n W1
//! dW2 += sum_n w_n dy_t^T h_n          dG += sum_n dgate_n^T x_t,  dW1 likewise
//! ```
//!
//! The gradient of a routing weight comes from `dh` and `h`, so results of single experts need not be
//! kept (SonicMoE, arXiv 2512.14080). First the rows, in blocks as in the forward pass: gradients of
//! what the activation saw replace it, and those of the rows are gathered and summed as outputs are.
//! Then the weights ([`crate::wgrad`]). All of it reads the weights in libtorch's layout
//! ([`crate::factor`]).
//!
//! Axis letters: `t` tokens, `n` routed rows, `d` width, `h` hidden width, `k` depth in lanes.

use crate::arch::{Isa, Job, Kernel, Lane, Work};
use crate::combine::combine;
use crate::factor::{Factor, Product};
use crate::forward::{self, Context, OnPanel, Span};
use crate::gemm::{self, Operand, Sums};
use crate::hidden::{BackRows, Hidden, hidden_stride, pre_stride};
use crate::pack::{Packed, Panelled};
use crate::plan::Plan;
use crate::score::dot;
use crate::shape::{Shape, WeightGrads, Weights};
use crate::workspace::{LaneRows, Need, Operands, Saved, Scratch, Workspace};
use crate::{KernelError, tasks, wgrad};

/// What a backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct BackwardInput<'a> {
    /// The weights that were packed.
    pub weights: &'a Weights<'a>,
    /// The forward pass's plan.
    pub plan: &'a Plan<'a>,
    /// Its input, `[t, d]`.
    pub x_td: &'a [f32],
    /// The gradient of its output, `[t, d]`.
    pub dy_td: &'a [f32],
}

/// Where a backward pass writes.
#[derive(Debug)]
pub struct BackwardOutput<'a> {
    /// The gradient of the input, `[t, d]`, overwritten.
    pub dx_td: &'a mut [f32],
    /// The gradient of the routing weights, `[n]`, overwritten.
    pub dweight_n: &'a mut [f32],
    /// Gradients of the weights, added to what is there.
    pub weights: WeightGrads<'a>,
}

/// The gradients of [`crate::forward`].
///
/// With `saved`, as the forward pass left it, the hidden layer is not computed again; `saved` is used
/// up. Without, it is computed anew.
///
/// # Errors
///
/// If the weights are not packed, a slice has another length than its axes say, an optional one is
/// given or missing against the shape, `saved` does not hold this plan's rows, or memory is short.
pub fn backward(
    packed: &Packed,
    input: BackwardInput<'_>,
    output: &mut BackwardOutput<'_>,
    saved: Option<&mut Saved>,
    workspace: &mut Workspace,
) -> Result<(), KernelError> {
    check(packed, &input, output)?;
    if let Some(saved) = &saved {
        check_saved(packed, input.plan.rows(), saved)?;
    }
    packed.isa().run(packed.dtype(), Backward { packed, input, output, saved, workspace })
}

fn check(
    packed: &Packed,
    input: &BackwardInput<'_>,
    output: &BackwardOutput<'_>,
) -> Result<(), KernelError> {
    packed.check_filled()?;
    let (shape, plan) = (packed.shape(), input.plan);
    forward::check_plan(shape, plan)?;
    input.weights.check(shape)?;
    forward::check_tokens("x_td", shape, plan, input.x_td)?;
    forward::check_tokens("dy_td", shape, plan, input.dy_td)?;
    forward::check_tokens("dx_td", shape, plan, output.dx_td)?;
    KernelError::check("dweight_n", plan.rows(), output.dweight_n.len())?;
    output.weights.check(shape)
}

/// Refuses a hidden layer of other rows, or of another bank.
fn check_saved(packed: &Packed, expected: usize, saved: &Saved) -> Result<(), KernelError> {
    let own =
        |(shape, isa, _): &(Shape, Isa, usize)| (shape, *isa) == (packed.shape(), packed.isa());
    match saved.holds.filter(own) {
        Some((_, _, rows)) if rows == expected => Ok(()),
        other => Err(KernelError::Saved { expected, got: other.map_or(0, |(_, _, rows)| rows) }),
    }
}

struct Backward<'a, 'o> {
    packed: &'a Packed,
    input: BackwardInput<'a>,
    output: &'a mut BackwardOutput<'o>,
    saved: Option<&'a mut Saved>,
    workspace: &'a mut Workspace,
}

impl Work for Backward<'_, '_> {
    type Out = Result<(), KernelError>;

    fn run<K: Kernel>(self, kernel: K) -> Self::Out {
        let Self { packed, input, output, saved, workspace } = self;
        let (shape, plan) = (packed.shape(), input.plan);
        workspace.reserve::<K::Lane>(need::<K>(shape))?;
        let Workspace { workers, row_nd, hidden, pre, rows_of, .. } = workspace;
        rows_of.sort(plan.tokens(), plan.token_n())?;
        let recompute = saved.is_none();
        let saved = saved.unwrap_or(pre);
        let lane_rows = LaneRows::of::<K::Lane>(plan);
        let pre = saved.prepare::<K>(packed, plan.rows(), lane_rows.count())?;
        let row_nd = row_nd.at_least("gradients of rows", plan.rows() * shape.width)?;
        let stride = hidden_stride::<K>(shape);
        let hidden = K::Lane::buffer(hidden);
        let hidden = hidden.at_least("the hidden layer", lane_rows.count() * stride)?;
        let cx = Rows {
            forward: Context::new(kernel, packed, plan, input.x_td),
            weights: input.weights,
            dy_td: input.dy_td,
            recompute,
        };
        let most = forward::most_rows(cx.forward.sizes.up_depth);
        let spans = forward::blocks(plan, workers.len(), most);
        let tasks =
            tasks_of::<K>(&spans, shape, &mut *row_nd, [&mut *pre, &mut *hidden], output.dweight_n);
        tasks::run(tasks, workers, |task, worker| {
            kernel.vectorized(Block { cx: &cx, task, worker });
        });
        combine(kernel, shape.width, rows_of, row_nd, output.dx_td);
        let rows = wgrad::Rows { input, pre, hidden, lane_rows: &lane_rows };
        wgrad::add(kernel, shape, rows, &mut output.weights, workers);
        saved.holds = None;
        Ok(())
    }
}

fn need<K: Kernel>(shape: &Shape) -> Need {
    let forward = forward::need::<K>(shape);
    let depth = gradients_depth::<K>(shape);
    let rows = forward::most_rows(shape.width.div_ceil(K::Lane::DEPTH));
    Need {
        block: forward.block.max(wgrad::operand_lanes::<K>()),
        second: gemm::block_lanes::<K>(rows, depth).max(wgrad::joined_lanes::<K>()),
        panel: (gemm::DEPTH * K::NR).max(wgrad::panels_lanes::<K>()),
        sums: forward.sums,
        more: forward::most_rows(Panelled::of::<K>(shape).up_depth) * K::NR,
    }
}

/// Depth of the gradients of what an activation saw, the gate's and then the up map's.
fn gradients_depth<K: Kernel>(shape: &Shape) -> usize {
    shape.activation.maps() * gemm::whole_steps::<K>(shape.hidden.div_ceil(K::Lane::DEPTH))
}

/// A block of an expert's rows.
struct Task<'a, L> {
    span: Span,
    /// Gradients of the rows' inputs, `[n, d]`.
    dx: &'a mut [f32],
    rows: BackRows<'a, L>,
}

/// A task for each block, longest first.
fn tasks_of<'a, K: Kernel>(
    spans: &[Span],
    shape: &Shape,
    row_nd: &'a mut [f32],
    [pre, hidden]: [&'a mut [K::Lane]; 2],
    dweight_n: &'a mut [f32],
) -> Vec<Task<'a, K::Lane>> {
    let lengths = |per_row: usize| spans.iter().map(move |span| span.rows.len() * per_row);
    let hidden_stride = hidden_stride::<K>(shape);
    let dx = tasks::pieces(row_nd, lengths(shape.width));
    let lanes =
        |per_row: usize| spans.iter().map(move |span| span.lane_rows::<K::Lane>() * per_row);
    let pre = tasks::pieces(pre, lanes(pre_stride::<K>(shape)));
    let hidden = tasks::pieces(hidden, lanes(hidden_stride));
    let dweight = tasks::pieces(dweight_n, lengths(1));
    let parts = spans.iter().zip(dx).zip(pre).zip(hidden).zip(dweight);
    let task = |((((span, dx), pre), hidden), dweight_n): ((((&Span, _), _), _), _)| {
        let rows = BackRows { pre, hidden, hidden_stride, dweight_n };
        Task { span: span.clone(), dx, rows }
    };
    let mut tasks: Vec<_> = parts.map(task).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.span.rows.len()));
    tasks
}

/// What the tasks over rows read.
struct Rows<'a, K> {
    forward: Context<'a, K>,
    weights: &'a Weights<'a>,
    dy_td: &'a [f32],
    recompute: bool,
}

/// A task on a worker.
struct Block<'a, K: Kernel> {
    cx: &'a Rows<'a, K>,
    task: Task<'a, K::Lane>,
    worker: &'a mut Scratch,
}

impl<K: Kernel> Job for Block<'_, K> {
    #[inline(always)]
    fn run(self) {
        let Self { cx, mut task, worker } = self;
        let Operands { block, second, panel } = K::Lane::operands(&mut worker.operands);
        let (sums, more) = (&mut worker.sums, &mut worker.more);
        if cx.recompute {
            cx.forward.up(
                &task.span,
                block,
                sums,
                Kept { kernel: cx.forward.kernel, pre: task.rows.pre },
            );
        }
        cx.start_dweight(&mut task);
        cx.hidden(&mut task, block, second, panel, [&mut *sums, &mut *more]);
        cx.inputs(&mut task, second, panel, sums);
    }
}

/// Keeps what the activation sees.
struct Kept<'a, K: Kernel> {
    kernel: K,
    pre: &'a mut [K::Lane],
}

impl<K: Kernel> OnPanel<K> for Kept<'_, K> {
    #[inline(always)]
    fn before(&self, hidden: &Hidden, tile: usize) {
        hidden.prefetch(self.kernel, tile, self.pre);
    }

    #[inline(always)]
    fn run(&mut self, hidden: Hidden, sums: &mut [f32]) {
        hidden.keep(self.kernel, sums, self.pre);
    }
}

impl<K: Kernel> Rows<'_, K> {
    /// `dw = dy . b2`; the hidden layer's share is added later.
    #[inline(always)]
    fn start_dweight(&self, task: &mut Task<'_, K::Lane>) {
        let width = self.forward.packed.shape().width;
        let b2_d = self.forward.packed.expert::<K>(task.span.expert).b2_d;
        let token_n = &self.forward.plan.token_n()[task.span.rows.clone()];
        for (dweight, &token) in task.rows.dweight_n.iter_mut().zip(token_n) {
            let dy_d = &self.dy_td[token as usize * width..][..width];
            *dweight = b2_d.map_or(0.0, |b2_d| dot(dy_d, b2_d));
        }
    }

    /// `dy W2` and back through the activation.
    #[inline(always)]
    fn hidden(
        &self,
        task: &mut Task<'_, K::Lane>,
        block: &mut [K::Lane],
        second: &mut [K::Lane],
        panel: &mut [K::Lane],
        [sums, more]: [&mut [f32]; 2],
    ) {
        let shape = self.forward.packed.shape();
        let block = self.forward.gather(self.dy_td, &task.span, block);
        let kernel = self.forward.kernel;
        let w2_dh = matrix(self.weights.w2_edh, shape, task.span.expert);
        let w2_dh = Factor { matrices: [Some(w2_dh), None], width: shape.hidden };
        let weight_n = &self.forward.plan.weight_n()[task.span.rows.clone()];
        let depth = gradients_depth::<K>(shape);
        let mut product = Product { kernel, operand: block, panel };
        for number in 0..shape.hidden.div_ceil(K::NR) {
            let hidden = Hidden::of_gradient::<K>(shape, number, block.rows);
            let mut depths = w2_dh.depths::<K>().peekable();
            let first = depths.peek().cloned();
            while let Some(depth) = depths.next() {
                let Some(piece) = w2_dh.piece::<K>(number, &depth) else { break };
                let next = match depths.peek() {
                    Some(next) => w2_dh.piece::<K>(number, next),
                    None => first.as_ref().and_then(|next| w2_dh.piece::<K>(number + 1, next)),
                };
                let start = piece.part.start == 0;
                product.multiply(piece, next, Sums { to: sums, stride: K::NR }, |tile| {
                    if start {
                        hidden.prefetch_back(kernel, tile, &task.rows);
                    }
                });
            }
            hidden.back(kernel, [&mut *sums, &mut *more], weight_n, &mut task.rows);
            hidden.pack_gradients(kernel, [&*sums, &*more], second, depth);
        }
    }

    /// `dgate G + dup W1`.
    #[inline(always)]
    fn inputs(
        &self,
        task: &mut Task<'_, K::Lane>,
        second: &[K::Lane],
        panel: &mut [K::Lane],
        sums: &mut [f32],
    ) {
        let shape = self.forward.packed.shape();
        let rows = task.span.rows.len();
        let depth = gradients_depth::<K>(shape);
        let block = Operand { lanes: second, rows, depth };
        let of_expert = |stacked| matrix(stacked, shape, task.span.expert);
        let matrices = [self.weights.gate_ehd.map(of_expert), Some(of_expert(self.weights.w1_ehd))];
        let factor = Factor { matrices, width: shape.width };
        // Whole panels go where they belong; what is narrower would write over the next row.
        let whole = shape.width.is_multiple_of(K::NR);
        let stride = if whole { shape.width } else { gemm::sums_stride::<K>(shape.width) };
        let to = if whole { &mut *task.dx } else { &mut *sums };
        let mut product = Product { kernel: self.forward.kernel, operand: block, panel };
        let mut depths = factor.depths::<K>().peekable();
        while let Some(depth) = depths.next() {
            for number in 0..self.forward.sizes.down_panels {
                let Some(piece) = factor.piece::<K>(number, &depth) else { break };
                let after = || factor.piece::<K>(0, depths.peek()?);
                let next = factor.piece::<K>(number + 1, &depth).or_else(after);
                product.multiply(
                    piece,
                    next,
                    Sums { to: &mut to[number * K::NR..], stride },
                    |_| {},
                );
            }
        }
        if !whole {
            for (dx_d, sums) in task.dx.chunks_exact_mut(shape.width).zip(sums.chunks(stride)) {
                dx_d.copy_from_slice(&sums[..shape.width]);
            }
        }
    }
}

/// An expert's matrix.
fn matrix<'a>(stacked: &'a [f32], shape: &Shape, expert: usize) -> &'a [f32] {
    let size = shape.width * shape.hidden;
    &stacked[expert * size..][..size]
}
