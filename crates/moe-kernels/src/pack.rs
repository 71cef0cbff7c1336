//! Operands in the order in which microkernels read them, and the packed weights.
//!
//! An operand is `[k, width]`: for each lane of depth, the lanes of a tile's rows or columns. Weights
//! are packed once after each optimiser step, in panels of `NR` columns; the gate's and the up map's
//! columns of one half panel lie side by side, so that one tile of sums holds both.
//!
//! Axis letters: `e` experts, `d` width, `h` hidden width, `k` depth in lanes, `n` rows.

use crate::arch::{Isa, Job, Kernel, Lane, Pair, SIDE, Work};
use crate::memory::Buffer;
use crate::shape::{Dtype, Shape, Weights};
use crate::{KernelError, tasks};

/// Writes `to[k, i] = row_i[k]`: depth runs along the rows, and each row becomes a column. All rows
/// are of one length.
#[inline(always)]
pub(crate) fn transpose<'a, K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    width: usize,
    rows: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
) {
    if width == 1 {
        for (to, values) in
            to.chunks_mut(SIDE).zip(rows.flat_map(|row| row.chunks(SIDE * K::Lane::DEPTH)))
        {
            join_some(to, values);
        }
        return;
    }
    for first in (0..rows.len()).step_by(SIDE) {
        let rows = rows.clone().skip(first).take(SIDE);
        transpose_strip(kernel, &mut to[first..], width, rows);
    }
}

/// How many values ahead rows are fetched: they are too many streams for a processor to follow.
const AHEAD: usize = 128;

/// The same for at most [`SIDE`] rows.
#[inline(always)]
fn transpose_strip<'a, K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    width: usize,
    rows: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
) {
    // Loops over numbers, here and below: iterators of iterators are not inlined.
    let (mut of, mut count) = ([<&[f32]>::default(); SIDE], 0);
    for row in rows.take(SIDE) {
        of[count] = row;
        count += 1;
    }
    let (length, step) = (of[0].len(), SIDE * K::Lane::DEPTH);
    let mut start = 0;
    while start < length {
        let columns = start..length.min(start + step);
        let mut square = [[K::Lane::default(); SIDE]; SIDE];
        for i in 0..count {
            square[i] = joined(kernel, &of[i][columns.clone()]);
            kernel.prefetch(of[i].get(start + AHEAD..start + AHEAD + step).unwrap_or_default());
        }
        let square = kernel.transposed(&square);
        let lanes = columns.len().div_ceil(K::Lane::DEPTH);
        let to = &mut to[start / K::Lane::DEPTH * width..];
        put_rows::<K>(to, width, count, &square[..lanes]);
        start += step;
    }
}

/// Joins consecutive values to lanes; those that are missing are zeros.
#[inline(always)]
fn joined<K: Kernel>(kernel: K, values: &[f32]) -> [K::Lane; SIDE] {
    if let Some(values) = values.first_chunk() {
        return kernel.joined_along(values);
    }
    let mut padded = [0.0; 2 * SIDE];
    // Half as many, as a gated layer's panel has, are copied by registers; other lengths by a call.
    if values.len() == SIDE {
        padded[..SIDE].copy_from_slice(values);
    } else {
        padded[..values.len()].copy_from_slice(values);
    }
    kernel.joined_along(&padded)
}

#[inline(always)]
fn join_some<L: Lane>(to: &mut [L], values: &[f32]) {
    for (to, values) in to.iter_mut().zip(values.chunks(L::DEPTH)) {
        *to = L::join(values[0], values.get(1).copied().unwrap_or(0.0));
    }
}

/// Writes the first `count` lanes of each row to rows of `width`.
#[inline(always)]
fn put_rows<K: Kernel>(to: &mut [K::Lane], width: usize, count: usize, rows: &[[K::Lane; SIDE]]) {
    let Some((last, rows)) = rows.split_last() else { return };
    // Whole registers are faster than parts, and the next row overwrites what is too much: it must
    // reach as far.
    let whole = count == SIDE || (count == width && SIDE <= 2 * width);
    for (k, row) in rows.iter().enumerate() {
        let to = &mut to[k * width..];
        match to.first_chunk_mut::<SIDE>() {
            Some(to) if whole => *to = *row,
            _ if count == K::MR => to[..K::MR].copy_from_slice(&row[..K::MR]),
            _ => to[..count].copy_from_slice(&row[..count]),
        }
    }
    to[rows.len() * width..][..count].copy_from_slice(&last[..count]);
}

/// Writes `to[k, i] = row_k[i]` for `i < count`: depth runs over the rows, two of which make a lane
/// of pairs. Rows may be longer. Columns from `count` to `width` become zero.
#[inline(always)]
pub(crate) fn stack<'a, K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    width: usize,
    count: usize,
    mut rows: impl Iterator<Item = &'a [f32]>,
) {
    // As in `put_rows`: a row may run into the next, which is written later.
    let spills = count == width && count.next_multiple_of(SIDE) <= 2 * width;
    let mut rest = to;
    while rest.len() >= width {
        let Some(first) = rows.next() else { break };
        let second = if K::Lane::DEPTH == 2 { rows.next() } else { Some(first) };
        let spills = spills && rest.len() > width;
        match second {
            Some(second) => stack_row(kernel, rest, count, spills, first, second),
            None => join_rows(kernel, &mut rest[..count], first, None),
        }
        rest[count..width].fill(K::Lane::default());
        rest = &mut rest[width..];
    }
}

/// Joins two rows to a row of lanes; without the second, to zeros.
#[inline(always)]
pub(crate) fn join_rows<K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    first: &[f32],
    second: Option<&[f32]>,
) {
    match second {
        _ if K::Lane::DEPTH == 1 => stack_row(kernel, to, to.len(), false, first, first),
        Some(second) => stack_row(kernel, to, to.len(), false, first, second),
        None => {
            for (to, &first) in to.iter_mut().zip(first) {
                *to = K::Lane::join(first, 0.0);
            }
        }
    }
}

/// Joins two rows, a register at a time where that is possible.
#[inline(always)]
fn stack_row<K: Kernel>(
    kernel: K,
    to: &mut [K::Lane],
    count: usize,
    spills: bool,
    first: &[f32],
    second: &[f32],
) {
    let mut start = 0;
    while start < count {
        let whole = spills || start + SIDE <= count;
        let (to, first, second) = (&mut to[start..], &first[start..], &second[start..]);
        let registers = (to.first_chunk_mut(), first.first_chunk(), second.first_chunk());
        if let (true, (Some(to), Some(first), Some(second))) = (whole, registers) {
            *to = kernel.joined_across(first, second);
        } else {
            let count = SIDE.min(count - start);
            for ((to, &first), &second) in to[..count].iter_mut().zip(first).zip(second) {
                *to = K::Lane::join(first, second);
            }
        }
        start += SIDE;
    }
}

/// Sizes of a bank of experts in panels of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panelled {
    /// Hidden columns in a panel of the first product.
    pub(crate) hidden_columns: usize,
    /// Panels of the first product.
    pub(crate) up_panels: usize,
    /// Panels of the second product.
    pub(crate) down_panels: usize,
    /// Depth of the first product in lanes.
    pub(crate) up_depth: usize,
    /// Depth of the second product in lanes.
    pub(crate) down_depth: usize,
    /// Lanes of one expert's up panels.
    pub(crate) up_lanes: usize,
    /// Lanes of one expert's down panels.
    pub(crate) down_lanes: usize,
}

impl Panelled {
    pub(crate) fn of<K: Kernel>(shape: &Shape) -> Self {
        let hidden_columns = K::NR / shape.activation.maps();
        let up_panels = shape.hidden.div_ceil(hidden_columns);
        let down_panels = shape.width.div_ceil(K::NR);
        let up_depth = shape.width.div_ceil(K::Lane::DEPTH);
        let down_depth = shape.hidden.div_ceil(K::Lane::DEPTH);
        Self {
            hidden_columns,
            up_panels,
            down_panels,
            up_depth,
            down_depth,
            up_lanes: up_panels * up_depth * K::NR,
            down_lanes: down_panels * down_depth * K::NR,
        }
    }
}

/// The panels of all experts, by the lanes they hold.
#[derive(Debug)]
pub(crate) enum Panels {
    Single(Matrices<f32>),
    Paired(Matrices<Pair>),
}

/// The panels of all experts.
#[derive(Debug, Default)]
pub(crate) struct Matrices<L: Lane> {
    /// Panels of the first product.
    pub(crate) up: Buffer<L>,
    /// Panels of the second product.
    pub(crate) down: Buffer<L>,
}

/// Weights of a bank of experts, packed for one instruction set and element type.
#[derive(Debug)]
pub struct Packed {
    shape: Shape,
    isa: Isa,
    dtype: Dtype,
    panels: Panels,
    bias: Option<[Vec<f32>; 2]>,
    filled: bool,
}

impl Packed {
    /// Memory for packed weights; [`Packed::repack`] fills it.
    ///
    /// # Errors
    ///
    /// If an axis of `shape` has no length, or there is no memory for the weights.
    pub fn new(shape: Shape, dtype: Dtype, isa: Isa) -> Result<Self, KernelError> {
        shape.check()?;
        let panels = isa.run(dtype, Allocate { shape })?;
        Ok(Self { shape, isa, dtype, panels, bias: None, filled: false })
    }

    /// Packs the weights of all experts: after their initialisation and after each optimiser step.
    ///
    /// # Errors
    ///
    /// If a matrix has another size than the shape, or one is missing or given without being part
    /// of it.
    pub fn repack(&mut self, weights: &Weights<'_>) -> Result<(), KernelError> {
        weights.check(&self.shape)?;
        self.isa.run(self.dtype, Repack { packed: self, weights });
        self.bias =
            weights.b1_eh.zip(weights.b2_ed).map(|both| <[_; 2]>::from(both).map(Vec::from));
        self.filled = true;
        Ok(())
    }

    /// Sizes and kind of the experts.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The instruction set it is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The element type of the products.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Refuses weights that were never packed.
    pub(crate) fn check_filled(&self) -> Result<(), KernelError> {
        if self.filled { Ok(()) } else { Err(KernelError::NotPacked) }
    }

    /// An expert's weights.
    ///
    /// # Panics
    ///
    /// If `K` is not the kernel that the weights are packed for.
    pub(crate) fn expert<K: Kernel>(&self, expert: usize) -> Expert<'_, K::Lane> {
        let sizes = Panelled::of::<K>(&self.shape);
        let matrices = K::Lane::panels(&self.panels).expect("packed for these lanes");
        let bias = |which: usize, width: usize| {
            let all = self.bias.as_ref().map(|both| &both[which]);
            all.map(|bias| &bias[expert * width..][..width])
        };
        Expert {
            up: &matrices.up[expert * sizes.up_lanes..][..sizes.up_lanes],
            down: &matrices.down[expert * sizes.down_lanes..][..sizes.down_lanes],
            b1_h: bias(0, self.shape.hidden),
            b2_d: bias(1, self.shape.width),
        }
    }
}

/// An expert's packed weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expert<'a, L> {
    pub(crate) up: &'a [L],
    pub(crate) down: &'a [L],
    pub(crate) b1_h: Option<&'a [f32]>,
    pub(crate) b2_d: Option<&'a [f32]>,
}

struct Allocate {
    shape: Shape,
}

impl Work for Allocate {
    type Out = Result<Panels, KernelError>;

    fn run<K: Kernel>(self, _kernel: K) -> Self::Out {
        let sizes = Panelled::of::<K>(&self.shape);
        let lanes = [sizes.up_lanes, sizes.down_lanes].map(|lanes| lanes * self.shape.experts);
        Ok(match K::Lane::DTYPE {
            Dtype::F32 => Panels::Single(Matrices::zeroed(lanes)?),
            Dtype::Bf16 => Panels::Paired(Matrices::zeroed(lanes)?),
        })
    }
}

impl<L: Lane> Matrices<L> {
    fn zeroed([up, down]: [usize; 2]) -> Result<Self, KernelError> {
        let what = "packed weights";
        Ok(Self { up: Buffer::zeroed(what, up)?, down: Buffer::zeroed(what, down)? })
    }
}

struct Repack<'a> {
    packed: &'a mut Packed,
    weights: &'a Weights<'a>,
}

/// A panel to be written.
struct Panel<'a, L> {
    to: &'a mut [L],
    expert: usize,
    number: usize,
    down: bool,
}

impl Work for Repack<'_> {
    type Out = ();

    fn run<K: Kernel>(self, kernel: K) {
        let (shape, weights) = (self.packed.shape, self.weights);
        let sizes = Panelled::of::<K>(&shape);
        let matrices =
            K::Lane::panels_mut(&mut self.packed.panels).expect("packed for these lanes");
        let ups = panels(&mut matrices.up, sizes.up_depth * K::NR, sizes.up_panels, false);
        let downs = panels(&mut matrices.down, sizes.down_depth * K::NR, sizes.down_panels, true);
        tasks::run_all(ups.chain(downs).collect(), |panel| {
            kernel.vectorized(PackPanel { kernel, panel, shape: &shape, weights });
        });
    }
}

fn panels<L: Lane>(
    to: &mut [L],
    lanes: usize,
    per_expert: usize,
    down: bool,
) -> impl Iterator<Item = Panel<'_, L>> {
    let panel = move |(index, to)| {
        let (expert, number) = (index / per_expert, index % per_expert);
        Panel { to, expert, number, down }
    };
    to.chunks_exact_mut(lanes).enumerate().map(panel)
}

struct PackPanel<'a, K: Kernel> {
    kernel: K,
    panel: Panel<'a, K::Lane>,
    shape: &'a Shape,
    weights: &'a Weights<'a>,
}

impl<K: Kernel> Job for PackPanel<'_, K> {
    #[inline(always)]
    fn run(self) {
        if self.panel.down { self.down() } else { self.up() }
    }
}

impl<K: Kernel> PackPanel<'_, K> {
    #[inline(always)]
    fn up(self) {
        let Self { kernel, panel, shape, weights } = self;
        let columns = Panelled::of::<K>(shape).hidden_columns;
        let first = panel.number * columns;
        let count = columns.min(shape.hidden - first);
        let size = [shape.hidden, shape.width];
        let rows = |matrix_ehd| expert_rows(matrix_ehd, panel.expert, size, first, count);
        match weights.gate_ehd {
            Some(gate_ehd) => {
                transpose(kernel, panel.to, K::NR, rows(gate_ehd));
                transpose(kernel, &mut panel.to[columns..], K::NR, rows(weights.w1_ehd));
            }
            None => transpose(kernel, panel.to, K::NR, rows(weights.w1_ehd)),
        }
    }

    #[inline(always)]
    fn down(self) {
        let Self { kernel, panel, shape, weights } = self;
        let first = panel.number * K::NR;
        let count = K::NR.min(shape.width - first);
        let size = [shape.width, shape.hidden];
        let rows = expert_rows(weights.w2_edh, panel.expert, size, first, count);
        transpose(kernel, panel.to, K::NR, rows);
    }
}

/// `count` rows from `first` on of an expert's matrix `[height, width]`.
#[inline(always)]
fn expert_rows(
    matrix: &[f32],
    expert: usize,
    [height, width]: [usize; 2],
    first: usize,
    count: usize,
) -> impl ExactSizeIterator<Item = &[f32]> + Clone {
    matrix[(expert * height + first) * width..].chunks_exact(width).take(count)
}
