//! Named tensors as a safetensors file, and back, with every difference reported.
//!
//! `tch` has a reader of its own; it is not used: it accepts a duplicate name, ignores unexpected
//! ones, and names no file in its errors.

use crate::checkpoint::CheckpointError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Element type and shape of a stored tensor, for the manifest and for messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Element type, as safetensors names it.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
}

impl Layout {
    /// The layout of a tensor.
    pub fn of(tensor: &Tensor) -> Self {
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Self { dtype: dtype_of(tensor.kind()).map_or("?".into(), |d| d.to_string()), shape }
    }
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        Kind::Int64 => Dtype::I64,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}

/// Serialises tensors, in the order of their names.
///
/// # Errors
/// A tensor of a kind that is not stored.
pub fn to_bytes(path: &Path, tensors: &[(String, Tensor)]) -> Result<Vec<u8>, CheckpointError> {
    let refused = |reason: String| CheckpointError::Format { path: path.to_owned(), reason };
    let mut owned = Vec::new();
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let dtype =
            dtype_of(kind).ok_or_else(|| refused(format!("{name}: {kind:?} is not stored")))?;
        let host = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; host.numel() * kind.elt_size_in_bytes()];
        host.copy_data_u8(&mut bytes, host.numel());
        owned.push((name, dtype, Layout::of(tensor).shape, bytes));
    }
    let mut views = BTreeMap::new();
    for (name, dtype, shape, bytes) in &owned {
        let view =
            TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| refused(e.to_string()))?;
        views.insert(name.as_str(), view);
    }
    safetensors::serialize(views, None).map_err(|e| refused(e.to_string()))
}

/// Copies the tensors of a file into `targets`, which must have exactly its names, shapes and types.
///
/// # Errors
/// A damaged file, or the list of missing, unexpected and mismatched tensors. Nothing is copied
/// unless everything fits.
pub fn restore(
    path: &Path,
    bytes: &[u8],
    targets: &[(String, Tensor)],
) -> Result<(), CheckpointError> {
    let format = |reason: String| CheckpointError::Format { path: path.to_owned(), reason };
    let file = SafeTensors::deserialize(bytes).map_err(|e| format(e.to_string()))?;
    let stored: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let differences = differences(&stored, targets);
    if !differences.is_empty() {
        return Err(CheckpointError::Mismatch { path: path.to_owned(), differences });
    }
    for (name, target) in targets {
        let view = &stored[name];
        let value = Tensor::from_data_size(view.data(), &target.size(), target.kind());
        tch::no_grad(|| target.shallow_clone().copy_(&value));
    }
    Ok(())
}

fn differences(
    stored: &BTreeMap<String, TensorView<'_>>,
    targets: &[(String, Tensor)],
) -> Vec<String> {
    let wanted: BTreeMap<&str, Layout> =
        targets.iter().map(|(name, tensor)| (name.as_str(), Layout::of(tensor))).collect();
    let unexpected = stored.keys().filter(|name| !wanted.contains_key(name.as_str()));
    let unexpected = unexpected.map(|name| format!("unexpected tensor {name}"));
    let wrong = wanted.iter().filter_map(|(name, want)| match stored.get(*name) {
        None => Some(format!("missing tensor {name} ({} {:?})", want.dtype, want.shape)),
        Some(view) => {
            let got = Layout { dtype: view.dtype().to_string(), shape: view.shape().to_vec() };
            (got != *want).then(|| {
                let (Layout { dtype, shape }, want) = (got, want);
                format!("{name} is {dtype} {shape:?}, expected {} {:?}", want.dtype, want.shape)
            })
        }
    });
    wrong.chain(unexpected).collect()
}
