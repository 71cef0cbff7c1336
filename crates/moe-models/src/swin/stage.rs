//! One stage of a hierarchy: its map of tokens and the sizes of its blocks.

use super::SwinConfig;
use super::merge::halved;
use crate::attention::window::Windows;
use crate::lm::LmConfig;
use std::ops::Range;

/// A stage of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Sizes of its blocks; `layers` are the stage's, `moe_every` counts in it.
    pub blocks: LmConfig,
    /// Height and width of its map, in tokens.
    pub hw: [i64; 2],
    /// The first of its blocks, counted from 0 over all stages.
    pub first: i64,
    window: i64,
    sparse: bool,
}

impl Stage {
    /// The stages of `config`, the first with blocks of the sizes in `first` on a map of `hw` tokens.
    pub(super) fn all(
        config: &SwinConfig,
        first: &LmConfig,
        hw: [i64; 2],
    ) -> impl Iterator<Item = Self> {
        let mut next = (hw, 0);
        config.depths.iter().zip(&config.heads).enumerate().map(move |(index, (&depth, &heads))| {
            let (hw, before) = next;
            next = (hw.map(halved), before + depth);
            let twice = |value: i64| value << index;
            let blocks = LmConfig {
                width: twice(first.width),
                layers: depth,
                heads,
                active_hidden: twice(first.active_hidden),
                expert_hidden: first.expert_hidden.map(twice),
                moe_first: None,
                span: None,
                ..first.clone()
            };
            let sparse = config.moe_stages.contains(&(index + 1));
            Self { blocks, hw, first: before, window: config.window, sparse }
        })
    }

    /// Its blocks among those of all stages.
    pub fn range(&self) -> Range<usize> {
        self.first as usize..(self.first + self.blocks.layers) as usize
    }

    /// Tokens of its map.
    pub fn tokens(&self) -> i64 {
        self.hw.iter().product()
    }

    /// Number of sparse layers.
    pub fn sparse_layers(&self) -> usize {
        (0..self.blocks.layers).filter(|&block| self.is_sparse(block)).count()
    }

    /// Whether its block `offset`, counted from 0, is sparse.
    pub(super) fn is_sparse(&self, offset: i64) -> bool {
        self.sparse && (offset + 1) % self.blocks.moe_every == 0
    }

    /// The windows of its block `offset`: every second block has shifted ones.
    pub fn windows(&self, offset: i64) -> Windows {
        Windows::new(self.hw, self.window, offset % 2 == 1)
    }
}
