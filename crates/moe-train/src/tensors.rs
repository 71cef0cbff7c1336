//! Named tensors as a safetensors file, and back, with every difference reported.
//!
//! `tch` has a reader of its own; it is not used: it accepts a duplicate name, ignores unexpected
//! ones, and names no file in its errors. The safetensors crate accepts a duplicate name too (the last
//! one wins), so that the header is read once more for names alone.

use crate::checkpoint::CheckpointError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
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

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
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

/// The tensors of a file, by name.
#[derive(Debug)]
pub struct Stored<'a> {
    path: PathBuf,
    views: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Stored<'a> {
    /// Reads the bytes of the file `path`.
    ///
    /// # Errors
    /// No safetensors file, or names that occur twice, all of them listed.
    pub fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let format = |reason: String| CheckpointError::Format { path: path.to_owned(), reason };
        let file = SafeTensors::deserialize(bytes).map_err(|e| format(e.to_string()))?;
        let twice = duplicates(bytes).map_err(format)?;
        if !twice.is_empty() {
            let differences = twice.iter().map(|name| format!("duplicate tensor {name}"));
            let (path, differences) = (path.to_owned(), differences.collect());
            return Err(CheckpointError::Mismatch { path, differences });
        }
        Ok(Self { path: path.to_owned(), views: file.tensors().into_iter().collect() })
    }

    /// The same without the tensors of these names.
    pub(crate) fn without(mut self, spare: impl Fn(&str) -> bool) -> Self {
        self.views.retain(|name, _| !spare(name));
        self
    }

    /// Layout of every tensor.
    pub fn layouts(&self) -> BTreeMap<String, Layout> {
        let layout = |view: &TensorView<'_>| Layout {
            dtype: view.dtype().to_string(),
            shape: view.shape().to_vec(),
        };
        self.views.iter().map(|(name, view)| (name.clone(), layout(view))).collect()
    }

    /// Refuses a file that has not exactly these tensors.
    ///
    /// # Errors
    /// Everything that is missing, unexpected, or of another shape or type.
    pub fn check(&self, wanted: &BTreeMap<String, Layout>) -> Result<(), CheckpointError> {
        let differences = differences(&self.layouts(), wanted);
        if differences.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: self.path.clone(), differences })
    }

    /// Copies every tensor into its target.
    ///
    /// # Panics
    /// If [`Self::check`] would not have passed.
    pub fn copy_to(&self, targets: &[(String, Tensor)]) {
        for (name, target) in targets {
            let data = self.views[name].data();
            let value = Tensor::from_data_size(data, &target.size(), target.kind());
            tch::no_grad(|| target.shallow_clone().copy_(&value));
        }
    }
}

/// Layouts by name.
pub fn layouts(tensors: &[(String, Tensor)]) -> BTreeMap<String, Layout> {
    tensors.iter().map(|(name, tensor)| (name.clone(), Layout::of(tensor))).collect()
}

fn differences(
    stored: &BTreeMap<String, Layout>,
    wanted: &BTreeMap<String, Layout>,
) -> Vec<String> {
    let unexpected = stored.keys().filter(|name| !wanted.contains_key(*name));
    let unexpected = unexpected.map(|name| format!("unexpected tensor {name}"));
    let wrong = wanted.iter().filter_map(|(name, want)| match stored.get(name) {
        None => Some(format!("missing tensor {name} ({want})")),
        Some(got) => (got != want).then(|| format!("{name} is {got}, expected {want}")),
    });
    wrong.chain(unexpected).collect()
}

/// Names that the header of a safetensors file has more than once.
fn duplicates(bytes: &[u8]) -> Result<BTreeSet<String>, String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or("shorter than its header")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|e| e.to_string())?;
    let header = rest.get(..length).ok_or("shorter than its header")?;
    let Keys(names) = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    let mut seen = BTreeSet::new();
    Ok(names.into_iter().filter(|name| !seen.insert(name.clone())).collect())
}

/// Keys of a JSON object in the order of the text, whatever their values.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsWritten;
        impl<'de> Visitor<'de> for AsWritten {
            type Value = Keys;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.push(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(AsWritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn a_name_that_occurs_twice_is_refused() {
        let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
        let bytes = file(&format!(r#"{{"a":{one},"b":{one},"a":{one},"b":{one}}}"#), &[0; 4]);
        // What the crate says of overlap comes first; the same bytes twice are no overlap to it.
        let error = Stored::parse(Path::new("x.safetensors"), &bytes).unwrap_err().to_string();
        assert!(error.contains("x.safetensors"), "{error}");
        let bytes = file(&format!(r#"{{"a":{one},"a":{one}}}"#), &[0; 4]);
        assert!(SafeTensors::deserialize(&bytes).is_ok(), "else this pass is not needed");
        let error = Stored::parse(Path::new("x.safetensors"), &bytes).unwrap_err().to_string();
        assert!(error.contains("duplicate tensor a"), "{error}");
    }

    #[test]
    fn headers_that_end_early_are_no_panic() {
        for bytes in [&b""[..], b"1234567", &u64::MAX.to_le_bytes(), &9u64.to_le_bytes()] {
            assert!(duplicates(bytes).is_err());
            assert!(Stored::parse(Path::new("x"), bytes).is_err());
        }
    }
}
