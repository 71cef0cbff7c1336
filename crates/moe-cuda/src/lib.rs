//! CUDA kernels of a sparse layer: everything around the products of its experts.
//!
//! ```text
//! route    logits -> scores, k experts and gates per token, choices per expert and chunk     (route.cu)
//! plan     choices -> rows sorted by expert, a stable counting sort with capacity            (plan.cu)
//! hidden   ReLU, GELU, SwiGLU, GEGLU, forward and backward, with the rows' weight gradient (activation.cu)
//! combine  gather of rows, weighted sum of rows per token                                    (combine.cu)
//! ```
//!
//! The sources are part of the program and compiled when a device is first used, by NVRTC, for that
//! device: nothing of CUDA is needed to build this crate, and one program serves machines with and
//! without a GPU. Kernels take device addresses and a stream, whoever owns them, and never make the
//! host wait: how many rows there are stays on the device, memory is sized by what can be at most.
//!
//! **Not yet run on a GPU.** What was checked without one: NVRTC compiles every source for every
//! architecture in [`nvrtc::ARCHITECTURES`], and the same sources, run on a CPU by
//! `moe-cuda-emulator`, agree with plain loops.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `h` hidden width, `e` experts, `k` choices, `n`
//! routed rows sorted by expert, `q` queues (one for each expert and group), `c` chunks of tokens.

pub mod device;
mod error;
pub mod kernels;
pub mod launch;
pub mod nvrtc;
pub mod source;

pub use device::Device;
pub use error::CudaError;
pub use kernels::{Activation, Dtype, Kernels, Score};
pub use launch::{Address, Launch, Launcher, Stream};
