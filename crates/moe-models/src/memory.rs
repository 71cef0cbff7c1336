//! What a language model with sliding attention carries from one stretch of text to the next.
//!
//! Axis letters: `b` batch, `l` span, `d` width.

use tch::Tensor;

/// What every block's attention read at the last positions, without its graph; empty for models that
/// carry nothing.
#[derive(Debug, Default)]
pub struct Memory {
    blocks: Vec<Tensor>,
}

impl Memory {
    /// The memory whose block `n` read `blocks[n]`, `[b, l, d]`.
    pub fn new(blocks: Vec<Tensor>) -> Self {
        Self { blocks }
    }

    /// What each block read, `[b, l, d]`.
    pub fn blocks(&self) -> &[Tensor] {
        &self.blocks
    }

    /// The same memory for another use: the tensors are shared.
    pub fn shallow_clone(&self) -> Self {
        Self { blocks: self.blocks.iter().map(Tensor::shallow_clone).collect() }
    }

    /// Takes over the values of `other`, in the tensors at hand.
    ///
    /// # Panics
    /// If `other` has other shapes.
    pub fn copy_from(&mut self, other: &Self) {
        assert_eq!(self.blocks.len(), other.blocks.len(), "the memory of another model");
        for (mine, theirs) in self.blocks.iter_mut().zip(&other.blocks) {
            mine.copy_(theirs);
        }
    }

    /// The place of block `index`.
    pub(crate) fn block(&mut self, index: usize) -> Option<&mut Tensor> {
        self.blocks.get_mut(index)
    }
}
