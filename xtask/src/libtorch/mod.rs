//! Provides the libtorch that the workspace builds against, whatever its origin.
//!
//! torch-sys and the linker see a *view*: a directory with the headers, exactly the libraries to
//! link, and `run`, a link to where the shared libraries really lie. Without `libtorch_cuda.so`
//! among the libraries to link, torch-sys never ties a program to CUDA, so that one program serves
//! machines with and without a GPU; with `run` the libraries find each other by their own rpaths.
//! `.libtorch` in the checkout is a link to the view in use.

pub(crate) mod assemble;
pub(crate) mod cache;
pub(crate) mod manifest;
pub(crate) mod nvrtc;
pub(crate) mod origin;
pub(crate) mod pip;
pub(crate) mod setup;
mod unpack;
pub(crate) mod version;
pub(crate) mod view;
mod wheels;

/// The only libtorch that the pinned tch works with.
pub(crate) const VERSION: &str = "2.11.0";
