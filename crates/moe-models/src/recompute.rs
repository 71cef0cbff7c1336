//! What the backward pass computes again instead of keeping it from the forward pass.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Activations that are computed a second time in the backward pass. Gradients are the same to the bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// None: all are kept.
    #[default]
    None,
    /// The hidden layers of experts and dense layers: a third more products there, and their memory
    /// once rather than in every layer.
    Experts,
}
