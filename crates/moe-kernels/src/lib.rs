//! Fused mixture-of-experts layers for CPUs: forward, backward and decode, without libtorch.
//!
//! A [`Plan`] says which tokens every expert reads, sorted by expert. [`forward`] gathers, multiplies,
//! activates, multiplies, weighs and combines without writing permuted copies; [`backward`] returns
//! the gradients of inputs, weights, biases and routing weights; [`decode`] does a few tokens as fast
//! as memory delivers the weights of the experts they visit. Microkernels for AMX, AVX-512
//! (with and without BF16), AVX2 and plain Rust are chosen at run time ([`Isa::detect`]); that for AMX
//! is checked against an emulation of its instructions and not yet run on hardware.
//!
//! Beside the experts, which are what it is for, a training step spends its time in attention and in the output
//! layer: [`attention`] and [`attention_backward`] keep no scores, and [`cross_entropy`] reads them once.
//!
//! Results do not depend on the number of threads: no sum is split between them. The threads are those of
//! the current rayon pool, or of [`on_threads`].
//!
//! ```
//! use moe_kernels::{
//!     Activation, Dtype, Groups, Isa, Packed, Plan, Shape, Weights, Workspace, forward, top_k,
//! };
//!
//! # fn main() -> Result<(), moe_kernels::KernelError> {
//! // Four tokens of width 2 choose 2 of 3 experts by their scores.
//! let shape =
//!     Shape { experts: 3, width: 2, hidden: 5, activation: Activation::Gelu, bias: false };
//! let score_te = [0.1, 0.7, 0.2, 0.5, 0.4, 0.1, 0.3, 0.3, 0.4, 0.8, 0.1, 0.1];
//! let (mut expert_tk, mut score_tk) = ([0; 8], [0.0; 8]);
//! top_k(&score_te, 3, 2, &mut expert_tk, &mut score_tk)?;
//!
//! // The plan: choices sorted by expert.
//! let mut choices = Groups::default();
//! choices.sort(3, &expert_tk)?;
//! let token_n: Vec<u32> = choices.items().iter().map(|choice| choice / 2).collect();
//! let weight_n: Vec<f32> = choices.items().iter().map(|&c| score_tk[c as usize]).collect();
//! let plan = Plan::new(4, choices.offset(), &token_n, &weight_n)?;
//!
//! let (w1_ehd, w2_edh) = (vec![0.1; 3 * 5 * 2], vec![0.1; 3 * 2 * 5]);
//! let mut packed = Packed::new(shape, Dtype::F32, Isa::detect())?;
//! packed.repack(&Weights {
//!     w1_ehd: &w1_ehd, gate_ehd: None, w2_edh: &w2_edh, b1_eh: None, b2_ed: None,
//! })?;
//! let mut y_td = [0.0; 8];
//! forward(&packed, &plan, &[1.0; 8], &mut y_td, None, &mut Workspace::new())?;
//! # Ok(())
//! # }
//! ```
//!
//! Axis letters: `t` tokens, `d` width, `h` hidden width, `e` experts, `k` choices, `n` routed rows.

mod activation;
mod arch;
mod attention;
mod backward;
mod bands;
mod combine;
mod decode;
mod error;
mod factor;
mod forward;
mod gemm;
mod hidden;
mod left;
mod memory;
mod pack;
mod plan;
mod score;
mod shape;
mod softmax;
mod sort;
mod tasks;
mod threads;
mod topk;
mod wgrad;
mod workspace;

pub use arch::Isa;
pub use attention::{AttentionInput, Heads, attention, attention_backward};
pub use backward::{BackwardInput, BackwardOutput, backward};
pub use decode::{MOST_TOKENS, decode};
pub use error::KernelError;
pub use forward::forward;
pub use pack::Packed;
pub use plan::Plan;
pub use score::{Bf16, Score};
pub use shape::{Activation, Dtype, Shape, WeightGrads, Weights};
pub use softmax::cross_entropy;
pub use sort::Groups;
pub use threads::{Threads, on_threads};
pub use topk::{MOST_CHOICES, top_k};
pub use workspace::{Saved, Workspace};
