//! The forward pass of a few tokens: bound by how fast memory delivers weights.
//!
//! Each visited expert's panels are read once, by whichever thread is free; the rows that read them
//! are so few that they stay in the first cache. Two rounds over panels, first up, then down, with
//! results of single panels side by side so that every task has its own.
//!
//! Axis letters: `t` tokens, `k` choices, `d` width, `h` hidden width, `e` experts, `n` rows.

use std::marker::PhantomData;
use std::ops::Range;

use crate::arch::{Job, Kernel, Lane, Left, Work};
use crate::gemm;
use crate::hidden::Hidden;
use crate::memory::Buffer;
use crate::pack::{Packed, Panelled, transpose};
use crate::sort::Groups;
use crate::workspace::{AnyOperands, Operands, Workspace};
use crate::{KernelError, tasks, threads};

/// The most tokens that [`decode`] takes.
pub const MOST_TOKENS: usize = 16;

/// Panels of a task at most: enough to hide its start, few enough to share out evenly.
const PANELS: usize = 8;

/// Runs the chosen experts of at most [`MOST_TOKENS`] tokens: `y_td = sum_k weight_tk E_k(x_td)`.
/// `expert_tk` `[t, k]` names them, in any order; no expert twice for a token, or it counts twice.
///
/// # Errors
///
/// If the weights are not packed, there are too many tokens, an expert is out of range, a slice has
/// another length than its axes say, or memory is short.
pub fn decode(
    packed: &Packed,
    x_td: &[f32],
    expert_tk: &[u32],
    weight_tk: &[f32],
    y_td: &mut [f32],
    workspace: &mut Workspace,
) -> Result<(), KernelError> {
    packed.check_filled()?;
    let shape = packed.shape();
    let tokens = x_td.len() / shape.width;
    if tokens > MOST_TOKENS {
        return Err(KernelError::Tokens { got: tokens, most: MOST_TOKENS });
    }
    KernelError::check("x_td", tokens * shape.width, x_td.len())?;
    KernelError::check("y_td", x_td.len(), y_td.len())?;
    let choices = expert_tk.len().checked_div(tokens).unwrap_or(0);
    KernelError::check("expert_tk", tokens * choices, expert_tk.len())?;
    KernelError::check("weight_tk", expert_tk.len(), weight_tk.len())?;
    let Workspace { rows_of, row_nd, decode, workers, .. } = workspace;
    rows_of.sort(shape.experts, expert_tk)?;
    workers.resize_with(threads::count(), Default::default);
    let threads = workers.len();
    let cx = Decode { packed, rows_of, x_td, weight_tk, choices, threads };
    packed.isa().for_few_rows().run(packed.dtype(), Run { cx, row_nd, operands: decode, y_td })
}

/// What all tasks read.
#[derive(Clone, Copy)]
struct Decode<'a> {
    packed: &'a Packed,
    /// The choices of each expert.
    rows_of: &'a Groups,
    x_td: &'a [f32],
    weight_tk: &'a [f32],
    choices: usize,
    threads: usize,
}

struct Run<'a> {
    cx: Decode<'a>,
    row_nd: &'a mut Buffer<f32>,
    operands: &'a mut AnyOperands,
    y_td: &'a mut [f32],
}

impl Work for Run<'_> {
    type Out = Result<(), KernelError>;

    fn run<K: Kernel>(self, kernel: K) -> Self::Out {
        let Self { cx, row_nd, operands, y_td } = self;
        let sizes = Panelled::of::<K>(cx.packed.shape());
        let rows = cx.weight_tk.len();
        let Operands { block, second, .. } = K::Lane::operands(operands);
        let block = block.at_least("a block of rows", rows * sizes.up_depth)?;
        let second = second.at_least("the hidden layer", rows * sizes.down_depth)?;
        let results = row_nd.at_least("results of rows", rows * sizes.down_panels * K::NR)?;
        kernel.vectorized(Gather { kernel, cx, sizes, to: &mut *block });
        let tasks = cx.tasks(block, sizes.up_depth, second, sizes.up_panels, |panels| {
            let lane = |panel: usize| panel * sizes.hidden_columns / K::Lane::DEPTH;
            lane(panels.end).min(sizes.down_depth) - lane(panels.start)
        });
        cx.run(tasks, |task| kernel.vectorized(Up { kernel, cx, sizes, task }));
        let tasks =
            cx.tasks(second, sizes.down_depth, results, sizes.down_panels, |p| p.len() * K::NR);
        cx.run(tasks, |task| kernel.vectorized(Down { kernel, cx, sizes, task }));
        let panels = sizes.down_panels;
        kernel.vectorized(Combine::<K> { cx, panels, results, y_td, kernel: PhantomData });
        Ok(())
    }
}

/// Some panels of an expert and where their results go.
struct Task<'a, L, T> {
    expert: usize,
    panels: Range<usize>,
    /// The expert's rows, `[k, n]`.
    left: Left<'a, L>,
    to: &'a mut [T],
}

impl<'a> Decode<'a> {
    /// Experts with rows, and their rows by number.
    fn visited(self) -> impl Iterator<Item = (usize, Range<usize>)> + Clone {
        let spans = self.rows_of.offset().windows(2).enumerate();
        spans.map(|(expert, span)| (expert, span[0]..span[1])).filter(|(_, rows)| !rows.is_empty())
    }

    /// Cuts all panels of the visited experts into tasks. `per_row` says how many results of a row
    /// some panels have.
    fn tasks<'t, L, T>(
        self,
        left: &'t [L],
        depth: usize,
        to: &'t mut [T],
        panels: usize,
        per_row: impl Fn(Range<usize>) -> usize,
    ) -> Vec<Task<'t, L, T>> {
        let all = self.visited().count() * panels;
        let step = all.div_ceil(self.threads * 4).clamp(1, PANELS);
        let parts = self.visited().flat_map(|(expert, rows)| {
            let panels = (0..panels).step_by(step).map(move |at| at..panels.min(at + step));
            panels.map(move |panels| (expert, rows.clone(), panels))
        });
        let lengths = parts.clone().map(|(_, rows, panels)| rows.len() * per_row(panels));
        let pieces = tasks::pieces(to, lengths);
        let task = |((expert, rows, panels), to): ((usize, Range<usize>, _), _)| {
            let lanes = &left[rows.start * depth..rows.end * depth];
            Task { expert, panels, left: Left { lanes, stride: rows.len() }, to }
        };
        parts.zip(pieces).map(task).collect()
    }

    fn run<T: Send>(self, tasks: Vec<T>, work: impl Fn(T) + Sync) {
        tasks::run_all(tasks, work);
    }
}

/// Sums of one panel and at most [`MOST_TOKENS`] rows of any number of choices.
struct Sums([f32; Sums::ROWS * Sums::COLUMNS]);

impl Sums {
    /// Most rows that are multiplied at a time.
    const ROWS: usize = MOST_TOKENS;
    /// Most columns of any kernel's tile.
    const COLUMNS: usize = 32;
}

/// `sums[n, NR] = left x panel` for the rows of `left` from `first` on.
#[inline(always)]
fn product<K: Kernel>(
    kernel: K,
    left: Left<'_, K::Lane>,
    rows: Range<usize>,
    panel: &[K::Lane],
    sums: &mut Sums,
) {
    for part in gemm::parts::<K>(panel.len() / K::NR, gemm::DEPTH) {
        let lanes = &panel[part.start * K::NR..part.end * K::NR];
        for first in rows.clone().step_by(K::MR) {
            let count = K::MR.min(rows.end - first);
            let a = Left { lanes: &left.lanes[part.start * left.stride + first..], ..left };
            let to = &mut sums.0[(first - rows.start) * K::NR..];
            kernel.tile(count, a, lanes, to, K::NR, part.start > 0);
        }
    }
}

/// Packs the rows of all visited experts.
struct Gather<'a, K: Kernel> {
    kernel: K,
    cx: Decode<'a>,
    sizes: Panelled,
    to: &'a mut [K::Lane],
}

impl<K: Kernel> Job for Gather<'_, K> {
    #[inline(always)]
    fn run(self) {
        let width = self.cx.packed.shape().width;
        let depth = self.sizes.up_depth;
        for (expert, rows) in self.cx.visited() {
            let to = &mut self.to[rows.start * depth..rows.end * depth];
            let row =
                |&choice: &u32| &self.cx.x_td[choice as usize / self.cx.choices * width..][..width];
            let rows = self.cx.rows_of.of(expert).iter();
            transpose(self.kernel, to, rows.len(), rows.map(row));
        }
    }
}

struct Up<'a, K: Kernel> {
    kernel: K,
    cx: Decode<'a>,
    sizes: Panelled,
    task: Task<'a, K::Lane, K::Lane>,
}

impl<K: Kernel> Job for Up<'_, K> {
    #[inline(always)]
    fn run(self) {
        let Self { kernel, cx, sizes, task } = self;
        let expert = cx.packed.expert::<K>(task.expert);
        let rows = task.left.stride;
        let start = task.panels.start * sizes.hidden_columns / K::Lane::DEPTH;
        let lanes = sizes.up_depth * K::NR;
        let mut sums = Sums([0.0; _]);
        for number in task.panels {
            let panel = &expert.up[number * lanes..][..lanes];
            for first in (0..rows).step_by(Sums::ROWS) {
                let part = first..rows.min(first + Sums::ROWS);
                product(kernel, task.left, part.clone(), panel, &mut sums);
                let hidden = Hidden::of::<K>(cx.packed.shape(), number, part.len());
                hidden.add_bias::<K>(expert.b1_h, &mut sums.0);
                hidden.activate::<K>(&mut sums.0);
                let lane = hidden.first / K::Lane::DEPTH - start;
                let values = sums.0[..part.len() * K::NR].chunks_exact(K::NR);
                let values = values.map(|row| &row[..hidden.columns]);
                transpose(kernel, &mut task.to[lane * rows + first..], rows, values);
            }
        }
    }
}

struct Down<'a, K: Kernel> {
    kernel: K,
    cx: Decode<'a>,
    sizes: Panelled,
    task: Task<'a, K::Lane, f32>,
}

impl<K: Kernel> Job for Down<'_, K> {
    #[inline(always)]
    fn run(self) {
        let Self { kernel, cx, sizes, task } = self;
        let expert = cx.packed.expert::<K>(task.expert);
        let rows = task.left.stride;
        let lanes = sizes.down_depth * K::NR;
        let mut sums = Sums([0.0; _]);
        for (number, to) in task.panels.zip(task.to.chunks_exact_mut(rows * K::NR)) {
            let panel = &expert.down[number * lanes..][..lanes];
            for (part, to) in to.chunks_mut(Sums::ROWS * K::NR).enumerate() {
                let first = part * Sums::ROWS;
                let part = first..rows.min(first + Sums::ROWS);
                product(kernel, task.left, part, panel, &mut sums);
                to.copy_from_slice(&sums.0[..to.len()]);
            }
        }
    }
}

/// Adds the weighted results of each token, expert by expert.
struct Combine<'a, K> {
    cx: Decode<'a>,
    panels: usize,
    /// `[e, panels, n, NR]`.
    results: &'a [f32],
    y_td: &'a mut [f32],
    kernel: PhantomData<K>,
}

impl<K: Kernel> Job for Combine<'_, K> {
    #[inline(always)]
    fn run(self) {
        let Self { cx, panels, results, y_td, .. } = self;
        let width = cx.packed.shape().width;
        y_td.fill(0.0);
        for (expert, span) in cx.visited() {
            let b2_d = cx.packed.expert::<K>(expert).b2_d;
            let results = &results[span.start * panels * K::NR..];
            for (row, &choice) in cx.rows_of.of(expert).iter().enumerate() {
                let weight = cx.weight_tk[choice as usize];
                let y_d = &mut y_td[choice as usize / cx.choices * width..][..width];
                for (panel, y) in y_d.chunks_mut(K::NR).enumerate() {
                    let result = &results[(panel * span.len() + row) * K::NR..][..y.len()];
                    let bias = |column| b2_d.map_or(0.0, |b2_d| b2_d[panel * K::NR + column]);
                    for (column, (y, result)) in y.iter_mut().zip(result).enumerate() {
                        *y += weight * (result + bias(column));
                    }
                }
            }
        }
    }
}
