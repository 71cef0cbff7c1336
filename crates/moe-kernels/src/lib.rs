//! Fused mixture-of-experts layers for CPUs: forward, backward and decode, without libtorch.
//!
//! A [`Plan`] says which tokens every expert reads, sorted by expert. [`forward`] gathers, multiplies,
//! activates, multiplies, weighs and combines without writing permuted copies; [`backward`] returns
//! the gradients of inputs, weights, biases and routing weights; [`decode`] does a few tokens as fast
//! as memory delivers the weights of the experts they visit. Microkernels for AVX-512 (with and
//! without BF16), AVX2 and plain Rust are chosen at run time ([`Isa::detect`]).
//!
//! Results do not depend on the number of threads: no sum is split between them.
//!
//! Axis letters: `t` tokens, `d` width, `h` hidden width, `e` experts, `k` choices, `n` routed rows.

mod activation;
mod arch;
mod backward;
mod combine;
mod decode;
mod error;
mod forward;
mod gemm;
mod hidden;
mod memory;
mod pack;
mod plan;
mod shape;
mod sort;
mod tasks;
mod topk;
mod wgrad;
mod workspace;

pub use arch::Isa;
pub use backward::{BackwardInput, BackwardOutput, backward};
pub use decode::{MOST_TOKENS, decode};
pub use error::KernelError;
pub use forward::forward;
pub use pack::Packed;
pub use plan::Plan;
pub use shape::{Activation, Dtype, Shape, WeightGrads, Weights};
pub use sort::Groups;
pub use topk::{MOST_CHOICES, top_k};
pub use workspace::{Saved, Workspace};
