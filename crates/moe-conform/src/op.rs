//! An operation: what it accepts, and its implementations.

use crate::args::Args;
use moe_core::{CapacityError, PlanError, RouteError};
use moe_routers::ConfigError;
use ndarray::{Array, Array1, ArrayD, Dimension};
use tch::Tensor;

/// Where an operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Plain `f64` on the host: the paper's reference.
    Reference,
    /// libtorch: the trainable form.
    Torch,
}

/// An implementation of an operation.
pub type Run = fn(&Args<'_>) -> Result<Outputs, OpError>;

/// One operation. A key or tensor that it does not list is refused.
#[derive(Debug)]
pub struct Op {
    /// `<paper>.<operation>`.
    pub name: &'static str,
    /// Known settings; `preset` is listed where there are presets.
    pub config: &'static [&'static str],
    /// Known inputs.
    pub tensors: &'static [&'static str],
    /// The plain reference.
    pub reference: Option<Run>,
    /// The trainable form. `<op>_grad` differentiates it.
    pub torch: Option<Run>,
}

/// An output.
#[derive(Debug)]
pub enum Out {
    /// From the host.
    Host(ArrayD<f64>),
    /// From libtorch, with its graph.
    Torch(Tensor),
}

/// Outputs by name.
pub type Outputs = Vec<(&'static str, Out)>;

impl<D: Dimension> From<Array<f64, D>> for Out {
    fn from(array: Array<f64, D>) -> Self {
        Self::Host(array.into_dyn())
    }
}

impl From<f64> for Out {
    fn from(value: f64) -> Self {
        Self::Host(ndarray::arr0(value).into_dyn())
    }
}

impl From<Vec<f64>> for Out {
    fn from(values: Vec<f64>) -> Self {
        Array1::from_vec(values).into()
    }
}

impl From<Tensor> for Out {
    fn from(tensor: Tensor) -> Self {
        Self::Torch(tensor)
    }
}

/// Why an operation refused. The text contains the words that `FORMAT.md` fixes: `shape`, `missing`,
/// `unknown`, `finite`, `range`, `top_k`, or the name of the key.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct OpError(pub String);

impl OpError {
    /// With this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<RouteError> for OpError {
    fn from(error: RouteError) -> Self {
        Self(error.to_string())
    }
}

impl From<CapacityError> for OpError {
    fn from(error: CapacityError) -> Self {
        Self(error.to_string())
    }
}

impl From<PlanError> for OpError {
    fn from(error: PlanError) -> Self {
        Self(error.to_string())
    }
}

impl From<ConfigError> for OpError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}
