//! What an operation is given: settings and inputs, with refusals in the words of the format.

use crate::array;
use crate::case::Case;
use crate::op::{Op, OpError};
use ndarray::{Array1, Array2, Array3, ArrayD, Dimension, Ix1, Ix2, Ix3};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Settings and inputs of one case.
#[derive(Debug)]
pub struct Args<'a> {
    case: &'a Case,
    inputs: BTreeMap<&'a str, ArrayD<f64>>,
    /// Tensors handed out, so that their gradients can be asked for.
    leaves: RefCell<BTreeMap<String, Tensor>>,
}

impl<'a> Args<'a> {
    /// Reads a case for `op`; `extra` names tensors that the operation itself does not list.
    ///
    /// # Errors
    /// `unknown` keys and tensors, ragged arrays (`shape`).
    pub fn new(case: &'a Case, op: &Op, extra: impl Fn(&str) -> bool) -> Result<Self, OpError> {
        if let Some(key) = case.config.keys().find(|key| !op.config.contains(&key.as_str())) {
            let known = op.config.join(", ");
            return Err(OpError::new(format!("unknown key `{key}`; {} has {known}", op.name)));
        }
        let listed = |name: &str| op.tensors.contains(&name) || extra(name);
        if let Some(name) = case.tensors.keys().find(|name| !listed(name)) {
            let known = op.tensors.join(", ");
            return Err(OpError::new(format!("unknown tensor `{name}`; {} has {known}", op.name)));
        }
        let read = |(name, value): (&'a String, &Value)| match array::read(value) {
            Ok(array) => Ok((name.as_str(), array)),
            Err(reason) => Err(OpError::new(format!("{name}: {reason}"))),
        };
        let inputs = case.tensors.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { case, inputs, leaves: RefCell::default() })
    }

    /// Whether the key is given and not null.
    pub fn has_key(&self, key: &str) -> bool {
        self.case.config.get(key).is_some_and(|v| !v.is_null())
    }

    /// A given key's value; null counts as given.
    pub fn key(&self, key: &str) -> Option<&Value> {
        self.case.config.get(key)
    }

    /// All given settings.
    pub fn settings(&self) -> impl Iterator<Item = (String, Value)> + '_ {
        self.case.config.iter().map(|(key, value)| (key.clone(), value.clone()))
    }

    /// A number, or `default` if the key is absent.
    ///
    /// # Errors
    /// Names the key if it is no number.
    pub fn f64(&self, key: &str, default: f64) -> Result<f64, OpError> {
        Ok(self.f64_or_null(key, Some(default))?.unwrap_or(default))
    }

    /// A number or null; `default` if the key is absent.
    ///
    /// # Errors
    /// Names the key if it is neither.
    pub fn f64_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>, OpError> {
        match self.key(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| OpError::new(format!("{key}: {value} is no number"))),
        }
    }

    /// A whole number of at least 0, or `default` if the key is absent.
    ///
    /// # Errors
    /// Names the key if it is none.
    pub fn usize(&self, key: &str, default: usize) -> Result<usize, OpError> {
        Ok(self.usize_or_null(key, Some(default))?.unwrap_or(default))
    }

    /// A whole number or null; `default` if the key is absent.
    ///
    /// # Errors
    /// Names the key if it is neither.
    pub fn usize_or_null(
        &self,
        key: &str,
        default: Option<usize>,
    ) -> Result<Option<usize>, OpError> {
        match self.f64_or_null(key, default.map(|n| n as f64))? {
            None => Ok(None),
            Some(v) if v >= 0.0 && v.fract() == 0.0 && v <= 1e15 => Ok(Some(v as usize)),
            Some(v) => Err(OpError::new(format!("{key}: {v} is no whole number of at least 0"))),
        }
    }

    /// A whole number of at least 1 that has no default.
    ///
    /// # Errors
    /// Names the key; `missing` if it is absent.
    pub fn count(&self, key: &str) -> Result<usize, OpError> {
        match self.usize_or_null(key, None)? {
            None => Err(OpError::new(format!("{key} is missing"))),
            Some(0) => Err(OpError::new(format!("{key}: 0 must be at least 1"))),
            Some(n) => Ok(n),
        }
    }

    /// A truth value, or `default` if the key is absent.
    ///
    /// # Errors
    /// Names the key if it is none.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool, OpError> {
        match self.key(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(OpError::new(format!("{key}: {value} is neither true nor false"))),
        }
    }

    /// One of `choices`, or `default` if the key is absent.
    ///
    /// # Errors
    /// Names the key and the choices; an unknown `preset` is `unknown`.
    pub fn word(
        &self,
        key: &str,
        default: &'static str,
        choices: &[&'static str],
    ) -> Result<&'static str, OpError> {
        let Some(value) = self.key(key) else { return Ok(default) };
        let found = choices.iter().find(|choice| value.as_str() == Some(choice));
        found.copied().ok_or_else(|| {
            OpError::new(format!(
                "{key}: unknown {key} {value}; choose one of {}",
                choices.join(", ")
            ))
        })
    }

    /// `top_k`, checked against the number of experts.
    ///
    /// # Errors
    /// Names `top_k`.
    pub fn top_k(&self, default: usize, experts: usize) -> Result<usize, OpError> {
        let k = self.f64("top_k", default as f64)?;
        if k.fract() != 0.0 || !(1.0..=experts as f64).contains(&k) {
            return Err(OpError::new(format!("top_k: {k} is no whole number in 1..={experts}")));
        }
        Ok(k as usize)
    }

    /// Whether the tensor is given.
    pub fn has(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    /// An input of any rank; NaN and infinities allowed.
    ///
    /// # Errors
    /// `missing`.
    pub fn raw(&self, name: &str) -> Result<&ArrayD<f64>, OpError> {
        self.inputs.get(name).ok_or_else(|| OpError::new(format!("{name} is missing")))
    }

    /// A matrix that may hold NaN and infinities.
    ///
    /// # Errors
    /// `missing`, `shape`.
    pub fn raw_matrix(&self, name: &str) -> Result<Array2<f64>, OpError> {
        let array = self.raw(name)?.clone();
        let shape = array.shape().to_vec();
        let matrix = array.into_dimensionality().ok().filter(|m: &Array2<f64>| !m.is_empty());
        matrix.ok_or_else(|| OpError::new(format!("{name}: shape {shape:?} is no matrix")))
    }

    /// As [`Self::torch`], but NaN and infinities are allowed.
    ///
    /// # Errors
    /// `missing`.
    pub fn torch_raw(&self, name: &str) -> Result<Tensor, OpError> {
        Ok(self.leaf(name, self.raw(name)?))
    }

    fn finite(&self, name: &str) -> Result<&ArrayD<f64>, OpError> {
        let array = self.raw(name)?;
        match array.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(OpError::new(format!("{name}: {value} is not finite"))),
            None => Ok(array),
        }
    }

    fn ranked<D: Dimension>(&self, name: &str) -> Result<ndarray::Array<f64, D>, OpError> {
        let array = self.finite(name)?.clone();
        let shape = array.shape().to_vec();
        array.into_dimensionality().map_err(|_| {
            let rank = D::NDIM.unwrap_or_default();
            OpError::new(format!("{name}: shape {shape:?} has not {rank} axes"))
        })
    }

    /// A finite matrix. A matrix without rows or columns is refused with `shape`.
    ///
    /// # Errors
    /// `missing`, `finite`, `shape`.
    pub fn matrix(&self, name: &str) -> Result<Array2<f64>, OpError> {
        let array = self.ranked::<Ix2>(name)?;
        if array.is_empty() {
            return Err(OpError::new(format!("{name}: shape {:?} is empty", array.shape())));
        }
        Ok(array)
    }

    /// A finite vector.
    ///
    /// # Errors
    /// `missing`, `finite`, `shape`.
    pub fn vector(&self, name: &str) -> Result<Array1<f64>, OpError> {
        self.ranked::<Ix1>(name)
    }

    /// A finite array of three axes.
    ///
    /// # Errors
    /// `missing`, `finite`, `shape`.
    pub fn cube(&self, name: &str) -> Result<Array3<f64>, OpError> {
        self.ranked::<Ix3>(name)
    }

    /// A scalar.
    ///
    /// # Errors
    /// `missing`, `finite`, `shape`.
    pub fn scalar(&self, name: &str) -> Result<f64, OpError> {
        let array = self.finite(name)?;
        let first = array.first().filter(|_| array.len() == 1);
        first
            .copied()
            .ok_or_else(|| OpError::new(format!("{name}: shape {:?} is no scalar", array.shape())))
    }

    /// An input that may be absent.
    ///
    /// # Errors
    /// Those of `read` if it is there.
    pub fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Self, &str) -> Result<T, OpError>,
    ) -> Result<Option<T>, OpError> {
        if self.has(name) { read(self, name).map(Some) } else { Ok(None) }
    }

    /// A vector of 0/1 flags of this length; absent means none is set.
    ///
    /// # Errors
    /// `shape`, or `range` for another number.
    pub fn flags(&self, name: &str, len: usize) -> Result<Option<Vec<bool>>, OpError> {
        let Some(flags) = self.optional(name, Self::vector)? else { return Ok(None) };
        expect_shape(name, flags.shape(), &[len])?;
        let flag = |v: &f64| match *v {
            0.0 => Ok(false),
            1.0 => Ok(true),
            v => Err(OpError::new(format!("{name}: {v} is out of range, a flag is 0 or 1"))),
        };
        flags.iter().map(flag).collect::<Result<_, _>>().map(Some)
    }

    /// An array of indices below `below`, any rank.
    ///
    /// # Errors
    /// `missing`, or `range` for a number that is no such index.
    pub fn indices(&self, name: &str, below: usize) -> Result<ArrayD<usize>, OpError> {
        let array = self.finite(name)?;
        if let Some(v) =
            array.iter().find(|v| v.fract() != 0.0 || !(0.0..below as f64).contains(*v))
        {
            return Err(OpError::new(format!("{name}: {v} is out of range 0..{below}")));
        }
        Ok(array.mapv(|v| v as usize))
    }

    /// The same input as a tensor, a leaf whose gradient `<op>_grad` can ask for. Check shapes on the
    /// host form first; this one does not.
    ///
    /// # Errors
    /// `missing`, `finite`.
    pub fn torch(&self, name: &str) -> Result<Tensor, OpError> {
        let array = self.finite(name)?;
        Ok(self.leaf(name, array))
    }

    /// A setting as a scalar leaf, for operations that differentiate by a setting.
    pub fn torch_setting(&self, name: &str, value: f64) -> Tensor {
        self.leaf(name, &ndarray::arr0(value).into_dyn())
    }

    /// The tensor of an input that may be absent.
    ///
    /// # Errors
    /// As [`Self::torch`].
    pub fn torch_optional(&self, name: &str) -> Result<Option<Tensor>, OpError> {
        self.optional(name, Self::torch)
    }

    fn leaf(&self, name: &str, array: &ArrayD<f64>) -> Tensor {
        let mut leaves = self.leaves.borrow_mut();
        let leaf = leaves.entry(name.to_owned()).or_insert_with(|| {
            let kind = if self.case.single { Kind::Float } else { Kind::Double };
            let values: Vec<f64> = array.iter().copied().collect();
            let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
            let tensor = Tensor::from_slice(&values).view(shape.as_slice()).to_kind(kind);
            tensor.to_device(Device::Cpu).set_requires_grad(true)
        });
        leaf.shallow_clone()
    }

    /// Every tensor that was handed out.
    pub(crate) fn leaves(&self) -> Vec<(String, Tensor)> {
        self.leaves.borrow().iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
    }
}

/// Refuses a shape other than the expected one.
///
/// # Errors
/// `shape`, with the name and both shapes.
pub fn expect_shape(name: &str, got: &[usize], want: &[usize]) -> Result<(), OpError> {
    if got == want {
        return Ok(());
    }
    Err(OpError::new(format!("{name}: shape {got:?}, expected {want:?}")))
}
