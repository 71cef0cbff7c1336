//! The hidden layer: bias and activation on tiles of sums, forward and backward.
//!
//! Axis letters: `n` rows of a block, `h` hidden width.

use std::marker::PhantomData;

use crate::activation::{Curve, OnCurve};
use crate::arch::{Kernel, Lane};
use crate::left;
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

    /// Copies what the activation sees.
    #[inline(always)]
    pub(crate) fn keep<K: Kernel>(&self, sums: &[f32], pre: &mut [f32]) {
        let up = self.up::<K>();
        for (row, pre) in sums.chunks_exact(K::NR).zip(pre.chunks_exact_mut(self.stride)) {
            let to = &mut pre[self.up_column + self.first..][..self.columns];
            to.copy_from_slice(&row[up..][..self.columns]);
            if up > 0 {
                pre[self.first..][..self.columns].copy_from_slice(&row[..self.columns]);
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
        let lane = self.first / K::Lane::DEPTH;
        let sums = sums[..self.rows * K::NR].chunks(K::MR * K::NR);
        for (sums, to) in sums.zip(to.chunks_exact_mut(depth * K::MR)) {
            let rows = sums.chunks_exact(K::NR).map(|row| &row[..self.columns]);
            left::along(kernel, to, lane, rows);
        }
    }

    /// Asks for what [`Self::back`] will read and write in the rows of a tile.
    #[inline(always)]
    pub(crate) fn prefetch<K: Kernel>(&self, kernel: K, tile: usize, rows: &BackRows<'_>) {
        for row in tile * K::MR..self.rows.min((tile + 1) * K::MR) {
            let pre = &rows.pre[row * self.stride + self.first..];
            kernel.prefetch(&pre[..self.columns]);
            if self.activation.gated() {
                kernel.prefetch(&pre[self.up_column..][..self.columns]);
            }
            kernel.prefetch(&rows.hidden[row * rows.hidden_stride + self.first..][..self.columns]);
        }
    }

    /// Turns `sums`, the gradient of the results before weighting times `W2`, into gradients: of
    /// what the activation saw, over `pre`; of the routing weights, added to `dweight_n`. Leaves
    /// the weighted hidden layer in `hidden`.
    #[inline(always)]
    pub(crate) fn back<K: Kernel>(&self, sums: &[f32], weight_n: &[f32], rows: &mut BackRows<'_>) {
        let back = Back::<K> { hidden: self, sums, weight_n, rows, kernel: PhantomData };
        self.activation.on_curve(back);
    }

    /// Packs the gradients that [`Self::back`] left in `pre` as depth of the next product: the
    /// gate's, then the up map's.
    #[inline(always)]
    pub(crate) fn pack_gradients<K: Kernel>(
        &self,
        kernel: K,
        pre: &[f32],
        to: &mut [K::Lane],
        depth: usize,
    ) {
        let lane = self.first / K::Lane::DEPTH;
        let up_lane = if self.activation.gated() { depth / 2 } else { 0 };
        for (pre, to) in pre.chunks(K::MR * self.stride).zip(to.chunks_exact_mut(depth * K::MR)) {
            let rows = |column: usize| {
                pre.chunks_exact(self.stride).map(move |row| &row[column..][..self.columns])
            };
            let up = self.up_column + self.first;
            left::along(kernel, to, up_lane + lane, rows(up));
            if self.activation.gated() {
                left::along(kernel, to, lane, rows(self.first));
            }
        }
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
                gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = C::value(*gate) * *up);
            } else {
                row.iter_mut().for_each(|x| *x = C::value(*x));
            }
        }
    }
}

/// The rows of a block in a backward pass.
#[derive(Debug)]
pub(crate) struct BackRows<'a> {
    /// What the activation saw; its gradient afterwards.
    pub(crate) pre: &'a mut [f32],
    /// The weighted hidden layer, written.
    pub(crate) hidden: &'a mut [f32],
    /// From one of its rows to the next.
    pub(crate) hidden_stride: usize,
    /// Gradients of the routing weights.
    pub(crate) dweight_n: &'a mut [f32],
}

/// The backward pass of the activation.
struct Back<'a, 'b, K> {
    hidden: &'a Hidden,
    sums: &'a [f32],
    weight_n: &'a [f32],
    rows: &'a mut BackRows<'b>,
    kernel: PhantomData<K>,
}

impl<K: Kernel> OnCurve for Back<'_, '_, K> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        let Hidden { first, columns, stride, up_column, activation, .. } = *self.hidden;
        let rows = self.rows.pre.chunks_exact_mut(stride);
        let rows = rows.zip(self.rows.hidden.chunks_exact_mut(self.rows.hidden_stride));
        let rows = rows.zip(self.sums.chunks_exact(K::NR));
        for (row, ((pre, hidden), sums)) in rows.enumerate() {
            let weight = self.weight_n[row];
            let hidden = &mut hidden[first..][..columns];
            let sums = &sums[..columns];
            let dweight = if activation.gated() {
                let (gate, up) = pre.split_at_mut(up_column);
                let (gate, up) = (&mut gate[first..][..columns], &mut up[first..][..columns]);
                back_gated::<C>(weight, sums, gate, up, hidden)
            } else {
                back_plain::<C>(weight, sums, &mut pre[first..][..columns], hidden)
            };
            self.rows.dweight_n[row] += dweight;
        }
    }
}

/// Partial sums of a dot product, so that it becomes a vector's worth of independent ones.
pub(crate) const PARTS: usize = 16;

/// One row of `h = a(gate) up`: returns the gradient of its weight.
#[inline(always)]
fn back_gated<C: Curve>(
    weight: f32,
    dh_h: &[f32],
    gate_h: &mut [f32],
    up_h: &mut [f32],
    hidden_h: &mut [f32],
) -> f32 {
    let mut part = [0.0; PARTS];
    let parts = dh_h.chunks(PARTS).zip(gate_h.chunks_mut(PARTS));
    let parts = parts.zip(up_h.chunks_mut(PARTS)).zip(hidden_h.chunks_mut(PARTS));
    for (((dh, gate), up), hidden) in parts {
        let columns = dh.iter().zip(gate).zip(up).zip(hidden).zip(&mut part);
        for ((((&dh, gate), up), hidden), part) in columns {
            let [value, slope] = C::both(*gate);
            let h = value * *up;
            *part += dh * h;
            *gate = weight * dh * *up * slope;
            *up = weight * dh * value;
            *hidden = weight * h;
        }
    }
    part.iter().sum()
}

/// One row of `h = a(up)`: returns the gradient of its weight.
#[inline(always)]
fn back_plain<C: Curve>(weight: f32, dh_h: &[f32], up_h: &mut [f32], hidden_h: &mut [f32]) -> f32 {
    let mut part = [0.0; PARTS];
    let parts = dh_h.chunks(PARTS).zip(up_h.chunks_mut(PARTS)).zip(hidden_h.chunks_mut(PARTS));
    for ((dh, up), hidden) in parts {
        for (((&dh, up), hidden), part) in dh.iter().zip(up).zip(hidden).zip(&mut part) {
            let [value, slope] = C::both(*up);
            *part += dh * value;
            *up = weight * dh * slope;
            *hidden = weight * value;
        }
    }
    part.iter().sum()
}
