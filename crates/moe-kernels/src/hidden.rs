//! The hidden layer: bias and activation on tiles of sums, forward and backward.
//!
//! Axis letters: `n` rows of a block, `h` hidden width.

use std::marker::PhantomData;
use std::ops::Range;

use crate::activation::{Curve, OnCurve};
use crate::arch::{Kernel, Lane};
use crate::left;
use crate::pack::join_rows;
use crate::score::{PARTS, by_halves};
use crate::shape::{Activation, Shape};

/// Columns of a matrix padded to whole panels.
fn padded<K: Kernel>(columns: usize) -> usize {
    columns.next_multiple_of(K::NR)
}

/// Values from one saved row to the next. A cache line more than it holds: a stride of a power of
/// two would put all rows into the same few sets of the cache.
pub(crate) fn pre_stride<K: Kernel>(shape: &Shape) -> usize {
    shape.activation.maps() * padded::<K>(shape.hidden) + 16
}

/// Values from one row of the weighted hidden layer to the next, with the same gap.
pub(crate) fn hidden_stride<K: Kernel>(shape: &Shape) -> usize {
    padded::<K>(shape.hidden) + 16
}

/// Where the up map's columns start in a saved row.
pub(crate) fn up_column<K: Kernel>(shape: &Shape) -> usize {
    (shape.activation.maps() - 1) * padded::<K>(shape.hidden)
}

/// A panel's columns of the hidden layer, in all rows of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hidden {
    activation: Activation,
    /// The first column.
    pub(crate) first: usize,
    pub(crate) columns: usize,
    rows: usize,
    /// Where the up map's columns start in a saved row.
    up_column: usize,
    /// Values from one saved row to the next.
    stride: usize,
}

impl Hidden {
    /// The columns of a panel of the first product.
    pub(crate) fn of<K: Kernel>(shape: &Shape, panel: usize, rows: usize) -> Self {
        let columns = K::NR / shape.activation.maps();
        Self::between::<K>(shape, panel * columns, columns, rows)
    }

    /// The columns of a panel of the hidden layer's gradient.
    pub(crate) fn of_gradient<K: Kernel>(shape: &Shape, panel: usize, rows: usize) -> Self {
        Self::between::<K>(shape, panel * K::NR, K::NR, rows)
    }

    fn between<K: Kernel>(shape: &Shape, first: usize, columns: usize, rows: usize) -> Self {
        Self {
            activation: shape.activation,
            first,
            columns: columns.min(shape.hidden - first),
            rows,
            up_column: up_column::<K>(shape),
            stride: pre_stride::<K>(shape),
        }
    }

    /// Where the up map's columns start in a row of sums.
    fn up<K: Kernel>(&self) -> usize {
        if self.activation.gated() { K::NR / 2 } else { 0 }
    }

    /// Adds the bias.
    #[inline(always)]
    pub(crate) fn add_bias<K: Kernel>(&self, b1_h: Option<&[f32]>, sums: &mut [f32]) {
        let Some(b1_h) = b1_h else { return };
        let bias = &b1_h[self.first..][..self.columns];
        for row in sums[..self.rows * K::NR].chunks_exact_mut(K::NR) {
            row[self.up::<K>()..].iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
    }

    /// Keeps what the activation sees.
    #[inline(always)]
    pub(crate) fn keep<K: Kernel>(&self, kernel: K, sums: &[f32], pre: &mut [K::Lane]) {
        // Places in a saved row and in a row of sums.
        let places = [(self.up_column, self.up::<K>()), (0, 0)];
        let maps = self.activation.maps();
        let pairs = sums[..self.rows * K::NR].chunks(K::Lane::DEPTH * K::NR);
        for (pair, pre) in pairs.zip(pre.chunks_exact_mut(self.stride)) {
            let (first, second) = pair.split_at(K::NR);
            let second = Some(second).filter(|row| !row.is_empty());
            for (to, from) in &places[..maps] {
                let to = &mut pre[to + self.first..][..self.columns];
                join_rows(kernel, to, &first[*from..], second.map(|row| &row[*from..]));
            }
        }
    }

    /// Replaces the first columns of `sums` by the hidden layer.
    #[inline(always)]
    pub(crate) fn activate<K: Kernel>(&self, sums: &mut [f32]) {
        let sums = &mut sums[..self.rows * K::NR];
        let gated = self.activation.gated();
        self.activation.on_curve(Activate::<K> { sums, gated, kernel: PhantomData });
    }

    /// Packs the first columns of `sums` as depth of the next product.
    #[inline(always)]
    pub(crate) fn pack<K: Kernel>(
        &self,
        kernel: K,
        sums: &[f32],
        to: &mut [K::Lane],
        depth: usize,
    ) {
        self.pack_from(kernel, sums, to, depth, 0);
    }

    /// The same at this lane of depth and after.
    #[inline(always)]
    fn pack_from<K: Kernel>(
        &self,
        kernel: K,
        sums: &[f32],
        to: &mut [K::Lane],
        depth: usize,
        lane: usize,
    ) {
        let lane = lane + self.first / K::Lane::DEPTH;
        let sums = sums[..self.rows * K::NR].chunks(K::MR * K::NR);
        for (sums, to) in sums.zip(to.chunks_exact_mut(depth * K::MR)) {
            let rows = sums.chunks_exact(K::NR).map(|row| &row[..self.columns]);
            left::along(kernel, to, lane, rows);
        }
    }

    /// The rows of lanes of a tile.
    fn lane_rows<K: Kernel>(&self, tile: usize) -> Range<usize> {
        let end = self.rows.min((tile + 1) * K::MR).div_ceil(K::Lane::DEPTH);
        tile * K::MR / K::Lane::DEPTH..end
    }

    /// Asks for what [`Self::keep`] will write in the rows of a tile: the lines lie a row apart.
    #[inline(always)]
    pub(crate) fn prefetch<K: Kernel>(&self, kernel: K, tile: usize, pre: &[K::Lane]) {
        for row in self.lane_rows::<K>(tile) {
            let pre = &pre[row * self.stride + self.first..];
            kernel.prefetch(&pre[..self.columns]);
            if self.activation.gated() {
                kernel.prefetch(&pre[self.up_column..][..self.columns]);
            }
        }
    }

    /// Asks for what [`Self::back`] will read and write in the rows of a tile.
    #[inline(always)]
    pub(crate) fn prefetch_back<K: Kernel>(
        &self,
        kernel: K,
        tile: usize,
        rows: &BackRows<'_, K::Lane>,
    ) {
        self.prefetch(kernel, tile, rows.pre);
        for row in self.lane_rows::<K>(tile) {
            kernel.prefetch(&rows.hidden[row * rows.hidden_stride + self.first..][..self.columns]);
        }
    }

    /// Turns `sums[0]`, the gradient of the results before weighting times `W2`, into gradients: of what the
    /// activation saw, over `pre` and over `sums` (the gate's, then the up map's; without a gate the first
    /// only); of the routing weights, added to `dweight_n`. Leaves the weighted hidden layer in `hidden`.
    #[inline(always)]
    pub(crate) fn back<K: Kernel>(
        &self,
        kernel: K,
        sums: [&mut [f32]; 2],
        weight_n: &[f32],
        rows: &mut BackRows<'_, K::Lane>,
    ) {
        self.activation.on_curve(Back { hidden: self, sums, weight_n, rows, kernel });
    }

    /// Packs the gradients that [`Self::back`] left in `sums` as depth of the next product.
    #[inline(always)]
    pub(crate) fn pack_gradients<K: Kernel>(
        &self,
        kernel: K,
        sums: [&[f32]; 2],
        to: &mut [K::Lane],
        depth: usize,
    ) {
        if self.activation.gated() {
            self.pack_from(kernel, sums[1], to, depth, depth / 2);
        }
        self.pack_from(kernel, sums[0], to, depth, 0);
    }
}

/// The activation in place.
struct Activate<'a, K> {
    sums: &'a mut [f32],
    gated: bool,
    kernel: PhantomData<K>,
}

impl<K: Kernel> OnCurve for Activate<'_, K> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        for row in self.sums.chunks_exact_mut(K::NR) {
            if self.gated {
                let (gate, up) = row.split_at_mut(K::NR / 2);
                for (gate, up) in gate.iter_mut().zip(up) {
                    *gate = C::value::<K>(*gate) * *up;
                }
            } else {
                for x in row {
                    *x = C::value::<K>(*x);
                }
            }
        }
    }
}

/// The rows of a block in a backward pass.
#[derive(Debug)]
pub(crate) struct BackRows<'a, L> {
    /// What the activation saw; its gradient afterwards.
    pub(crate) pre: &'a mut [L],
    /// The weighted hidden layer, written.
    pub(crate) hidden: &'a mut [L],
    /// From one of its rows to the next.
    pub(crate) hidden_stride: usize,
    /// Gradients of the routing weights.
    pub(crate) dweight_n: &'a mut [f32],
}

/// The backward pass of the activation.
struct Back<'a, 'b, K: Kernel> {
    hidden: &'a Hidden,
    sums: [&'a mut [f32]; 2],
    weight_n: &'a [f32],
    rows: &'a mut BackRows<'b, K::Lane>,
    kernel: K,
}

/// Most columns of a panel.
const MOST: usize = 32;

/// A panel's columns of the rows that one row of lanes holds.
type Rows = [[f32; MOST]; 2];

impl<K: Kernel> OnCurve for Back<'_, '_, K> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        const { assert!(K::NR <= MOST && K::Lane::DEPTH <= 2) };
        let Hidden { first, columns, stride, up_column, rows: count, .. } = *self.hidden;
        let (kernel, depth) = (self.kernel, K::Lane::DEPTH);
        let BackRows { pre, hidden, hidden_stride, dweight_n } = self.rows;
        let [sums, more] = self.sums;
        let sums = sums[..count * K::NR].chunks_mut(depth * K::NR);
        let rows = pre.chunks_exact_mut(stride).zip(hidden.chunks_exact_mut(*hidden_stride));
        let rows = rows.zip(sums.zip(more.chunks_mut(depth * K::NR)));
        let of_rows = self.weight_n.chunks(depth).zip(dweight_n.chunks_mut(depth));
        for (((pre, hidden), (sums, more)), (weight_n, dweight_n)) in rows.zip(of_rows) {
            let (gate, up) = pre.split_at_mut(up_column);
            let up = &mut up[first..][..columns];
            let mut columns_of = Columns { up: split(up), ..Columns::default() };
            let (second, gated) = (dweight_n.len() > 1, up_column > 0);
            let gate = if gated { &mut gate[first..][..columns] } else { gate };
            columns_of.gate = split(gate);
            for (row, (weight, dweight)) in weight_n.iter().zip(dweight_n).enumerate() {
                let dh_h = &mut sums[row * K::NR..][..K::NR];
                *dweight += columns_of.back::<C, K>(row, *weight, dh_h, gated);
                let Columns { gate, up, .. } = &columns_of;
                dh_h.copy_from_slice(&if gated { gate } else { up }[row][..K::NR]);
                if gated {
                    more[row * K::NR..][..K::NR].copy_from_slice(&up[row][..K::NR]);
                }
            }
            join(kernel, gate, &columns_of.gate, second);
            join(kernel, up, &columns_of.up, second);
            join(kernel, &mut hidden[first..][..columns], &columns_of.hidden, second);
        }
    }
}

/// The values of lanes; zeros in columns that are not there.
#[inline(always)]
fn split<L: Lane>(from: &[L]) -> Rows {
    let mut rows = Rows::default();
    let (blocks, rest) = from.as_chunks::<NARROW>();
    // A loop for each row of values: both in one are not compiled for registers.
    for (depth, row) in rows.iter_mut().enumerate() {
        let (row, row_rest) = row.split_at_mut(blocks.len() * NARROW);
        for (to, from) in row.as_chunks_mut::<NARROW>().0.iter_mut().zip(blocks) {
            for i in 0..NARROW {
                to[i] = from[i].split()[depth];
            }
        }
        for (to, from) in row_rest.iter_mut().zip(rest) {
            *to = from.split()[depth];
        }
    }
    rows
}

#[inline(always)]
fn join<K: Kernel>(kernel: K, to: &mut [K::Lane], rows: &Rows, second: bool) {
    join_rows(kernel, to, &rows[0], second.then_some(&rows[1][..]));
}

/// Columns that are taken at a time where panels are narrower than [`PARTS`].
const NARROW: usize = 8;

/// A panel's columns of one row of lanes. Those that are not there are zeros and stay so.
#[derive(Debug, Default)]
struct Columns {
    gate: Rows,
    up: Rows,
    hidden: Rows,
}

impl Columns {
    /// `W` columns of one row of `h = a(gate) up`: adds to the parts of the gradient of its weight.
    #[inline(always)]
    fn back_gated<C: Curve, K: Kernel, const W: usize>(
        &mut self,
        [row, first]: [usize; 2],
        weight: f32,
        dh_h: &[f32],
        part: &mut [f32; PARTS],
    ) {
        let [gate, up, hidden] = [&mut self.gate, &mut self.up, &mut self.hidden]
            .map(|rows| rows[row][first..].first_chunk_mut::<W>().expect("a panel's columns"));
        let dh: &[f32; W] = dh_h[first..].first_chunk().expect("a panel's columns");
        for i in 0..W {
            let [value, slope] = C::both::<K>(gate[i]);
            let h = value * up[i];
            part[i] += dh[i] * h;
            gate[i] = weight * dh[i] * up[i] * slope;
            up[i] = weight * dh[i] * value;
            hidden[i] = weight * h;
        }
    }

    /// The same of `h = a(up)`.
    #[inline(always)]
    fn back_plain<C: Curve, K: Kernel, const W: usize>(
        &mut self,
        [row, first]: [usize; 2],
        weight: f32,
        dh_h: &[f32],
        part: &mut [f32; PARTS],
    ) {
        let [up, hidden] = [&mut self.up, &mut self.hidden]
            .map(|rows| rows[row][first..].first_chunk_mut::<W>().expect("a panel's columns"));
        let dh: &[f32; W] = dh_h[first..].first_chunk().expect("a panel's columns");
        for i in 0..W {
            let [value, slope] = C::both::<K>(up[i]);
            part[i] += dh[i] * value;
            up[i] = weight * dh[i] * slope;
            hidden[i] = weight * value;
        }
    }

    /// One row of all columns: returns the gradient of its weight.
    #[inline(always)]
    fn back<C: Curve, K: Kernel>(
        &mut self,
        row: usize,
        weight: f32,
        dh_h: &[f32],
        gated: bool,
    ) -> f32 {
        let mut part = [0.0; PARTS];
        let mut first = 0;
        while first < K::NR {
            let at = [row, first];
            match (gated, K::NR.is_multiple_of(PARTS)) {
                (true, true) => self.back_gated::<C, K, PARTS>(at, weight, dh_h, &mut part),
                (true, false) => self.back_gated::<C, K, NARROW>(at, weight, dh_h, &mut part),
                (false, true) => self.back_plain::<C, K, PARTS>(at, weight, dh_h, &mut part),
                (false, false) => self.back_plain::<C, K, NARROW>(at, weight, dh_h, &mut part),
            }
            first += if K::NR.is_multiple_of(PARTS) { PARTS } else { NARROW };
        }
        by_halves(&mut part)
    }
}
