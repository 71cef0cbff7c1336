//! Numbers that are not finite stop a step before the weights are touched, and are named.

use crate::trainer::TrainError;
use moe_core::RouteError;
use moe_models::LayerTrace;
use moe_routers::ParamStore;
use std::fmt;
use tch::Tensor;

/// A number that is not finite, and where it was met first.
#[derive(Debug, Clone, PartialEq)]
pub struct NonFinite {
    /// Which number.
    pub what: String,
    /// Its value.
    pub value: f64,
    /// Index of the sparse layer, where it was met in one.
    pub layer: Option<usize>,
    /// The first parameter whose value or gradient is not finite, if there is one.
    pub tensor: Option<String>,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "sparse layer {layer}: ")?;
        }
        write!(f, "{} is {}", self.what, self.value)?;
        match &self.tensor {
            Some(tensor) => write!(f, " (first bad tensor: {tensor})"),
            None => Ok(()),
        }
    }
}

impl NonFinite {
    fn at(step: u64, layer: Option<usize>, what: impl Into<String>, value: f64) -> TrainError {
        let found = Self { what: what.into(), value, layer, tensor: None };
        TrainError::NotFinite { step, skipped: 0, found }
    }
}

/// Refuses a number that is not finite.
///
/// # Errors
/// [`TrainError::NotFinite`] with its name.
pub(crate) fn finite(step: u64, what: &str, value: f64) -> Result<f64, TrainError> {
    if value.is_finite() { Ok(value) } else { Err(NonFinite::at(step, None, what, value)) }
}

/// The value of the task's loss, refused if it or what a router adds to it is not finite.
///
/// # Errors
/// [`TrainError::NotFinite`] with the layer and the name of the loss.
pub(crate) fn losses(step: u64, task: &Tensor, traces: &[LayerTrace]) -> Result<f64, TrainError> {
    for trace in traces {
        // A loss without weight is reported and enters nothing.
        for aux in trace.routing.aux.iter().filter(|aux| aux.weight != 0.0) {
            let value = aux.value.double_value(&[]);
            if !value.is_finite() {
                let what = format!("the {} loss", aux.name);
                return Err(NonFinite::at(step, Some(trace.layer), what, value));
            }
        }
    }
    finite(step, "the loss", task.double_value(&[]))
}

/// Numbers that a router refused in a training step are those of a step that went wrong, as a loss is.
pub(crate) fn refused(step: u64, error: TrainError) -> TrainError {
    let TrainError::Route(RouteError::Layer { layer, source }) = &error else { return error };
    match **source {
        RouteError::NotFinite { what, value, .. } => {
            NonFinite::at(step, Some(*layer), format!("what a router reads ({what})"), value)
        }
        _ => error,
    }
}

/// Names the first parameter whose value, or else whose gradient, is not finite.
pub(crate) fn name_tensor(error: TrainError, store: &ParamStore) -> TrainError {
    match error {
        TrainError::NotFinite { step, skipped, found } => {
            let tensor = first_bad(store);
            TrainError::NotFinite { step, skipped, found: NonFinite { tensor, ..found } }
        }
        error => error,
    }
}

/// Values come first: from a bad weight every gradient is bad.
fn first_bad(store: &ParamStore) -> Option<String> {
    let entries = store.entries();
    let value = entries.iter().find(|p| is_bad(&p.tensor)).map(|p| p.name.clone());
    value.or_else(|| {
        let bad = |grad: Tensor| grad.defined() && is_bad(&grad);
        let first = entries.iter().find(|p| bad(p.tensor.grad()));
        first.map(|p| format!("the gradient of {}", p.name))
    })
}

fn is_bad(tensor: &Tensor) -> bool {
    tensor.detach().isfinite().all().int64_value(&[]) == 0
}
