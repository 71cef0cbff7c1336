//! `<op>_grad`: the derivative of the libtorch implementation of `<op>`.
//!
//! `value = sum over given outputs of sum(cot_<output> * <output>)`; `grad_<tensor>` is its
//! derivative with respect to that input. Discrete choices are constants.

use crate::args::Args;
use crate::op::{OpError, Out};
use ndarray::ArrayD;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The operation that `name` is the gradient of.
pub fn base(name: &str) -> Option<&str> {
    name.strip_suffix("_grad")
}

/// Whether `name` is a cotangent.
pub fn is_cotangent(name: &str) -> bool {
    name.starts_with("cot_")
}

/// `value`, every `grad_<tensor>`, and the outputs of the operation itself.
///
/// # Errors
/// A cotangent of no output (`unknown`), of another `shape`, or none at all (`missing`).
pub fn differentiate(
    args: &Args<'_>,
    outputs: crate::op::Outputs,
    cotangents: &[String],
) -> Result<BTreeMap<String, ArrayD<f64>>, OpError> {
    let mut value = Tensor::zeros([], (Kind::Double, tch::Device::Cpu));
    if cotangents.is_empty() {
        return Err(OpError::new("cot_<output> is missing"));
    }
    for name in cotangents {
        let output = name.trim_start_matches("cot_");
        let found = outputs.iter().find(|(known, _)| *known == output);
        let Some((_, Out::Torch(tensor))) = found else {
            return Err(OpError::new(format!("unknown output `{output}` of {name}")));
        };
        let cotangent = args.torch(name)?.detach();
        if cotangent.size() != tensor.size() {
            let (got, want) = (cotangent.size(), tensor.size());
            return Err(OpError::new(format!("{name}: shape {got:?}, expected {want:?}")));
        }
        value += (cotangent * tensor).sum(Kind::Double);
    }
    let mut found: BTreeMap<_, _> =
        outputs.into_iter().map(|(name, out)| (name.to_owned(), out.into_array())).collect();
    found.insert("value".to_owned(), crate::run::to_array(&value));
    if value.requires_grad() {
        value.backward();
    }
    for (name, leaf) in args.leaves() {
        let grad = leaf.grad();
        let grad = if grad.defined() { grad } else { leaf.detach().zeros_like() };
        found.insert(format!("grad_{name}"), crate::run::to_array(&grad));
    }
    Ok(found)
}
