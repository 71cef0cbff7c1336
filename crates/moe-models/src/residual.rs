//! How a block adds what its layer computed to the stream.
//!
//! A seam of its own, so that methods that change the stream between layers (momentum and its kin)
//! compose with every router.

use std::fmt::Debug;
use tch::Tensor;

/// `(x, f(x), carried) -> (x', carried')`; `carried` goes from block to block of one forward pass.
pub trait Residual: Debug + Send {
    /// One step of the stream.
    fn step(&self, x: &Tensor, f_x: &Tensor, carried: Option<Tensor>) -> (Tensor, Option<Tensor>);
}

/// `x + f(x)`, nothing carried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Residual for Plain {
    fn step(&self, x: &Tensor, f_x: &Tensor, carried: Option<Tensor>) -> (Tensor, Option<Tensor>) {
        (x + f_x, carried)
    }
}
