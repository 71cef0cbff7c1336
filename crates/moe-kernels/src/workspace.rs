//! Memory that kernels reuse from call to call.

use std::ops::Range;

use crate::KernelError;
use crate::arch::{Isa, Lane, Pair};
use crate::memory::Buffer;
use crate::plan::Plan;
use crate::shape::Shape;
use crate::threads;

/// Scratch memory of forward and backward passes. It grows to the largest call and stays; one
/// workspace serves all layers of a model, one after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Of each worker.
    pub(crate) workers: Vec<Scratch>,
    /// Results of all rows before they are combined, `[n, d]`.
    pub(crate) row_nd: Buffer<f32>,
    /// The weighted hidden layer, as [`Saved`].
    pub(crate) hidden: AnyBuffer,
    /// What the activation saw, where it was not saved.
    pub(crate) pre: Saved,
    /// The rows of each token, or of each expert.
    pub(crate) rows_of: crate::sort::Groups,
    /// Operands of decoding.
    pub(crate) decode: AnyOperands,
}

impl Workspace {
    /// Without memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One scratch for each thread, large enough for `need`.
    pub(crate) fn reserve<L: Lane>(&mut self, need: Need) -> Result<(), KernelError> {
        self.workers.resize_with(threads::count(), Scratch::default);
        self.workers.iter_mut().try_for_each(|worker| worker.reserve::<L>(need))
    }
}

/// What activations saw in a forward pass, kept for the backward pass in the type of the products: rows of
/// lanes, each of one routed row or of a pair of an expert's rows.
///
/// Of a gated expert a row holds the gate's and the up map's columns, else the up map's only. The
/// backward pass overwrites it.
#[derive(Debug, Default)]
pub struct Saved {
    pub(crate) lanes: AnyBuffer,
    /// Whose rows it holds, and how many.
    pub(crate) holds: Option<(Shape, Isa, usize)>,
}

impl Saved {
    /// Nothing saved yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows that are saved; none after a backward pass has used them.
    pub fn rows(&self) -> Option<usize> {
        self.holds.map(|(_, _, rows)| rows)
    }
}

/// Sizes of a worker's buffers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Need {
    /// Lanes of the first operand's block.
    pub(crate) block: usize,
    /// Lanes of the second product's block.
    pub(crate) second: usize,
    /// Lanes of a part of a panel.
    pub(crate) panel: usize,
    /// Sums.
    pub(crate) sums: usize,
    /// More of them.
    pub(crate) more: usize,
}

/// A buffer of whatever lanes the last call had.
#[derive(Debug, Default)]
pub(crate) struct AnyBuffer {
    pub(crate) single: Buffer<f32>,
    pub(crate) paired: Buffer<Pair>,
}

/// Where each expert's rows of lanes begin: two routed rows of an expert make one of pairs, and an odd last
/// one has zeros beside it.
#[derive(Debug)]
pub(crate) struct LaneRows(Vec<usize>);

impl LaneRows {
    pub(crate) fn of<L: Lane>(plan: &Plan<'_>) -> Self {
        let mut end = 0;
        let ends = (0..plan.experts()).map(|expert| {
            end += plan.span(expert).len().div_ceil(L::DEPTH);
            end
        });
        Self(std::iter::once(0).chain(ends).collect())
    }

    /// All of them.
    pub(crate) fn count(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// An expert's.
    pub(crate) fn span(&self, expert: usize) -> Range<usize> {
        self.0[expert]..self.0[expert + 1]
    }
}

/// Scratch of a worker.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) operands: AnyOperands,
    pub(crate) sums: Buffer<f32>,
    pub(crate) more: Buffer<f32>,
}

/// A worker's operands, of whatever lanes the last calls had.
#[derive(Debug, Default)]
pub(crate) struct AnyOperands {
    pub(crate) single: Operands<f32>,
    pub(crate) paired: Operands<Pair>,
}

/// A worker's operands.
#[derive(Debug, Default)]
pub(crate) struct Operands<L: Lane> {
    pub(crate) block: Buffer<L>,
    pub(crate) second: Buffer<L>,
    pub(crate) panel: Buffer<L>,
}

impl Scratch {
    fn reserve<L: Lane>(&mut self, need: Need) -> Result<(), KernelError> {
        let operands = L::operands(&mut self.operands);
        operands.block.at_least("a block of rows", need.block)?;
        operands.second.at_least("a block of the hidden layer", need.second)?;
        operands.panel.at_least("a panel of weights", need.panel)?;
        self.more.at_least("a tile of gradients", need.more)?;
        self.sums.at_least("a tile of sums", need.sums).map(drop)
    }
}
