//! Experts, the sparse layer and backbones on libtorch.
//!
//! A [`MoeLayer`] is a router and a bank of experts; a [`DecoderLm`] is a decoder-only language model, a
//! [`MaskedLm`] one that sees both sides, a [`Vit`] an image classifier and a [`Swin`] one in stages, whose
//! feed-forward layers are dense or sparse; a [`SmoeVae`] chooses among decoders, and a [`TextClassifier`] is a language model with
//! another head. Whatever a forward pass wants to say besides its
//! output (losses, loads, entropies) comes back in a [`LayerTrace`]; nothing is kept in globals.
//!
//! Axis letters: `b` batch, `g` groups, `t` tokens, `d` width, `h` hidden width, `e` experts, `n`
//! routed rows, `v` vocabulary.

pub mod attention;
mod block;
pub mod classifier;
pub mod encoder;
pub mod experts;
mod flops;
pub mod head;
pub mod image;
pub mod layer;
pub mod lm;
pub mod loss;
pub mod memory;
mod precision;
mod recompute;
pub mod smoe_vae;
pub mod swin;
pub mod vit;

pub use attention::Attention;
pub use classifier::{TextClassifier, TextPool};
pub use encoder::MaskedLm;
pub use experts::{Activation, ExpertExec, ExpertShape, Experts};
pub use head::adaptive::SoftmaxConfig;
pub use image::{ImageClassifier, ImageSpec};
pub use layer::{LayerTrace, MoeLayer};
pub use lm::{DecoderLm, LmConfig, ModelError, Output, RoutingGroup, Rules};
pub use loss::LossWeights;
pub use memory::Memory;
pub use moe_routers::Norm;
pub use precision::Precision;
pub use recompute::Recompute;
pub use smoe_vae::{SmoeVae, VaeConfig};
pub use swin::{Swin, SwinConfig};
pub use vit::{Pool, Vit, VitConfig};
