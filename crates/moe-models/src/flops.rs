//! Multiplications and additions that language models and image classifiers count alike: 2 for every
//! value of a matrix that a row passes through.
//!
//! Norms, softmax, activations and sums of residuals are not counted, as in the papers. A router counts
//! with the products of its matrices; sorting and drawing are not products, and neither similarities
//! between tokens nor the mixing of Soft MoE's slots are in it.

use crate::block::Block;
use moe_routers::{ParamStore, Role};

/// Products of one token in the routers of these blocks: what a router says of itself, else the values of
/// its learned matrices, through which each token passes.
pub(crate) fn of_routers(blocks: &[Block], store: &ParamStore) -> f64 {
    let layers = blocks.iter().filter_map(|block| Some((block.index(), block.sparse()?)));
    layers
        .map(|(index, layer)| layer.router.products().unwrap_or_else(|| matrices(index, store)))
        .sum()
}

/// Values of the matrices of one block's router.
fn matrices(block: usize, store: &ParamStore) -> f64 {
    let entries = store.entries();
    let prefix = format!("layers.{block}.router.");
    let of_router = entries.iter().filter(|p| p.name.starts_with(&prefix));
    let matrices = of_router.filter(|p| p.role != Role::Buffer && p.tensor.dim() > 1);
    matrices.map(|p| p.tensor.numel() as f64).sum()
}

/// Products of one token in the dense feed-forward layers of these blocks.
pub(crate) fn of_dense(blocks: &[Block]) -> f64 {
    blocks.iter().filter_map(Block::dense).map(|network| network.products()).sum()
}

/// Products of `rows_l` rows in the experts of the sparse layers, in order.
pub(crate) fn of_experts(blocks: &[Block], rows_l: &[f64]) -> f64 {
    let layers = blocks.iter().filter_map(Block::sparse).zip(rows_l);
    layers.map(|(layer, rows)| rows * layer.experts.products()).sum()
}
