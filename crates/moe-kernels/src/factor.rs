//! Products with matrices in libtorch's layout.
//!
//! Where the depth of a product runs over the rows of a matrix, the columns of a panel lie side by
//! side already: parts of panels are copied when they are needed, and nothing is kept packed.
//!
//! Axis letters: `k` depth in lanes.

use std::ops::Range;

use crate::arch::{Kernel, Lane};
use crate::gemm::{self, Operand, Sums};
use crate::pack::stack;

/// Row-major matrices of one width, one above the other: the second factor of a product whose depth
/// runs over their rows.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub(crate) matrices: [Option<&'a [f32]>; 2],
    pub(crate) width: usize,
}

/// Which depth of a product: a range of lanes of one of a factor's matrices.
#[derive(Clone)]
pub(crate) struct Depth {
    matrix: usize,
    lanes: Range<usize>,
    /// Where the matrix starts in the whole depth.
    start: usize,
}

/// A part of a panel of a [`Factor`].
pub(crate) struct Piece<'a> {
    /// Its rows, in full.
    rows: &'a [f32],
    /// Values of a row.
    width: usize,
    columns: Range<usize>,
    /// Which depth of the product it is.
    pub(crate) part: Range<usize>,
}

impl<'a> Piece<'a> {
    fn rows(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let columns = self.columns.clone();
        self.rows.chunks_exact(self.width).map(move |row| &row[columns.clone()])
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.rows[row * self.width..][self.columns.clone()]
    }
}

impl<'a> Factor<'a> {
    /// The parts of the depth.
    pub(crate) fn depths<K: Kernel>(self) -> impl Iterator<Item = Depth> + Clone {
        let lengths = self.matrices.into_iter().enumerate();
        let lengths = lengths.filter_map(|(number, matrix)| Some((number, matrix?.len())));
        lengths.enumerate().flat_map(move |(above, (matrix, length))| {
            let depth = (length / self.width).div_ceil(K::Lane::DEPTH);
            let start = above * gemm::whole_steps::<K>(depth);
            let part = move |lanes| Depth { matrix, lanes, start };
            gemm::parts::<K>(depth, gemm::DEPTH).map(part)
        })
    }

    /// A part of a panel; none if there is no such panel.
    #[inline(always)]
    pub(crate) fn piece<K: Kernel>(self, panel: usize, depth: &Depth) -> Option<Piece<'a>> {
        let first = panel * K::NR;
        let matrix = self.matrices[depth.matrix].filter(|_| first < self.width)?;
        let values = K::Lane::DEPTH * self.width;
        let Range { start, end } = depth.lanes;
        Some(Piece {
            rows: &matrix[start * values..matrix.len().min(end * values)],
            width: self.width,
            columns: first..self.width.min(first + K::NR),
            part: depth.start + start..depth.start + end,
        })
    }
}

/// A product with pieces of a factor.
pub(crate) struct Product<'a, K: Kernel> {
    pub(crate) kernel: K,
    pub(crate) operand: Operand<'a, K::Lane>,
    /// Room for a part of a panel.
    pub(crate) panel: &'a mut [K::Lane],
}

impl<K: Kernel> Product<'_, K> {
    /// Multiplies with one piece. Meanwhile the lines of the next are fetched: they lie a row apart,
    /// which no processor foresees. `before_each` runs before each tile, with its number.
    #[inline(always)]
    pub(crate) fn multiply(
        &mut self,
        piece: Piece<'_>,
        next: Option<Piece<'_>>,
        sums: Sums<'_>,
        mut before_each: impl FnMut(usize),
    ) {
        let panel = &mut self.panel[..piece.part.len() * K::NR];
        stack(self.kernel, panel, K::NR, piece.columns.len(), piece.rows());
        let tiles = self.operand.rows.div_ceil(K::MR);
        let count = next.as_ref().map_or(0, |next| next.rows.len() / next.width);
        let share = count.div_ceil(tiles);
        gemm::partial(self.kernel, self.operand, piece.part, panel, sums, |tile| {
            before_each(tile);
            let Some(next) = &next else { return };
            // Numbers: an iterator that is lent from tile to tile is not inlined.
            for row in tile * share..count.min((tile + 1) * share) {
                self.kernel.prefetch(next.row(row));
            }
        });
    }
}
