//! Runs a case and compares.

use crate::args::Args;
use crate::case::{Case, Expect};
use crate::grad;
use crate::op::{Backend, Op, OpError, Out};
use crate::ops::OPS;
use ndarray::{ArrayD, Dimension, IxDyn};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{Kind, Tensor};

/// What became of one case on one implementation.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The case.
    pub id: String,
    /// Where it ran.
    pub backend: Backend,
    /// Worst relative error of the numbers compared; 0 for an expected error.
    pub worst: f64,
    /// Why it failed; `None` if it passed.
    pub failure: Option<String>,
}

/// Runs a case on the asked-for backends that its operation has. A case whose operation is unknown,
/// or has none of them, fails.
pub fn check(case: &Case, backends: &[Backend]) -> Vec<Verdict> {
    let op = find(&case.op);
    let has = |backend: &Backend| op.is_some_and(|op| implementation(op, case, *backend).is_some());
    // An error of reading a case is the same on all backends; without any, one of them speaks.
    let mut chosen: Vec<Backend> = backends.iter().copied().filter(has).collect();
    if chosen.is_empty() && (op.is_none() || backends.len() > 1) {
        chosen.push(backends[0]);
    }
    chosen.into_iter().map(|backend| verdict(case, op, backend)).collect()
}

fn find(name: &str) -> Option<&'static Op> {
    let all = || OPS.iter().flat_map(|ops| ops.iter());
    let base =
        grad::base(name).and_then(|base| all().find(|op| op.name == base && op.torch.is_some()));
    all().find(|op| op.name == name).or(base)
}

/// The implementation that runs the case; gradients are libtorch's alone.
fn implementation(op: &Op, case: &Case, backend: Backend) -> Option<crate::op::Run> {
    match backend {
        Backend::Reference if op.name == case.op => op.reference,
        Backend::Reference => None,
        Backend::Torch => op.torch,
    }
}

fn verdict(case: &Case, op: Option<&'static Op>, backend: Backend) -> Verdict {
    let expects_unknown = matches!(&case.expect, Expect::Error(text) if text.contains("unknown"));
    if op.is_none() && !expects_unknown {
        // Never a pass: the name of an operation that is not there may contain the expected word.
        let failure = Some(format!("unknown operation `{}`", case.op));
        return Verdict { id: case.id.clone(), backend, worst: f64::INFINITY, failure };
    }
    // A panic is a defect of the implementation, which the case has found: report it as one.
    let outputs = catch_unwind(AssertUnwindSafe(|| outputs(case, op, backend)));
    let outcome = match outputs {
        Err(panic) => Err(format!("panicked: {}", panic_text(panic.as_ref()))),
        Ok(got) => compare(case, got),
    };
    let (worst, failure) = match outcome {
        Ok(worst) => (worst, None),
        Err(reason) => (f64::INFINITY, Some(reason)),
    };
    Verdict { id: case.id.clone(), backend, worst, failure }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("?")
        .lines()
        .next()
        .unwrap_or("?")
        .into()
}

type Found = BTreeMap<String, ArrayD<f64>>;

fn outputs(case: &Case, op: Option<&'static Op>, backend: Backend) -> Result<Found, OpError> {
    let op = op.ok_or_else(|| OpError::new(format!("unknown operation `{}`", case.op)))?;
    let gradient = op.name != case.op;
    let args = Args::new(case, op, |name| gradient && grad::is_cotangent(name))?;
    let run = implementation(op, case, backend)
        .ok_or_else(|| OpError::new(format!("{} has no {backend:?} implementation", case.op)))?;
    let outputs = run(&args)?;
    if gradient {
        let cotangents: Vec<String> =
            case.tensors.keys().filter(|name| grad::is_cotangent(name)).cloned().collect();
        return grad::differentiate(&args, outputs, &cotangents);
    }
    Ok(outputs.into_iter().map(|(name, out)| (name.to_owned(), out.into_array())).collect())
}

impl Out {
    /// The values on the host.
    pub(crate) fn into_array(self) -> ArrayD<f64> {
        match self {
            Self::Host(array) => array,
            Self::Torch(tensor) => to_array(&tensor),
        }
    }
}

/// A tensor's values on the host.
pub(crate) fn to_array(tensor: &Tensor) -> ArrayD<f64> {
    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    let flat = tensor.detach().to_kind(Kind::Double).contiguous().view([-1]);
    let values = Vec::<f64>::try_from(flat).expect("a flat tensor of doubles");
    ArrayD::from_shape_vec(IxDyn(&shape), values).expect("as many values as the shape says")
}

/// The worst relative error, or why the case fails.
fn compare(case: &Case, got: Result<Found, OpError>) -> Result<f64, String> {
    match (&case.expect, got) {
        (Expect::Error(text), Err(error)) => {
            let contains = error.to_string().to_lowercase().contains(&text.to_lowercase());
            if contains {
                Ok(0.0)
            } else {
                Err(format!("the error is `{error}`, expected `{text}`"))
            }
        }
        (Expect::Error(text), Ok(_)) => Err(format!("accepted, expected an error with `{text}`")),
        (Expect::Outputs(_), Err(error)) => Err(format!("refused: {error}")),
        (Expect::Outputs(want), Ok(got)) => want
            .iter()
            .map(|(name, want)| match got.get(name) {
                None => Err(format!("there is no output `{name}`")),
                Some(got) => close(name, got, want, case),
            })
            .try_fold(0.0, |worst: f64, error| error.map(|error| worst.max(error))),
    }
}

/// The worst relative error of one output, if every number passes.
fn close(name: &str, got: &ArrayD<f64>, want: &ArrayD<f64>, case: &Case) -> Result<f64, String> {
    if got.shape() != want.shape() {
        return Err(format!("{name}: shape {:?}, expected {:?}", got.shape(), want.shape()));
    }
    let mut worst = 0f64;
    for ((at, &want), &got) in want.indexed_iter().zip(got) {
        let same = got == want || (got.is_nan() && want.is_nan());
        let error = (got - want).abs();
        // NaN is no number that passes.
        if !same && (error.is_nan() || error > case.atol + case.rtol * want.abs()) {
            return Err(format!("{name}{:?}: {got}, expected {want}", at.slice()));
        }
        if !same {
            worst = worst.max(error / want.abs().max(1.0));
        }
    }
    Ok(worst)
}
