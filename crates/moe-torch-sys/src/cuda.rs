//! Experts on a GPU: libtorch's grouped product, and the kernels of [`moe_cuda`] around it.
//!
//! ```text
//! forward    x_nd = rows of x       up, gate = x_nd W1^T, x_nd G^T     a = act(gate) up
//!            y_nd = a W2^T          out[t] = sum over the token's rows of weight y_nd
//! backward   dy_nd = rows of dy     da = dy_nd W2
//!            dweight = da . a       dgate, dup = weight da act'(gate, up)
//!            dW2 = dy_nd^T (weight a)   dW1 = dup^T x_nd   dG = dgate^T x_nd
//!            dx[t] = sum over the token's rows of dup W1 + dgate G
//! ```
//!
//! The gradient of a row's weight comes from the hidden layer (SonicMoE, arXiv 2512.14080), so that no
//! output of a single expert is kept; `x_nd` is gathered again. Nothing here makes the host wait: how
//! many rows an expert has stays on the device, and there is room for as many as there can be.
//!
//! **Not yet run on a GPU.** Tests run all of it on a CPU, with the emulator for a device.
//!
//! Axis letters: `t` tokens (of all groups), `n` routed rows sorted by expert, `d` width, `h` hidden
//! width, `e` experts, `k` choices, `i` rows sorted by token.

mod dispatch;
mod experts;
mod route;

pub use experts::CudaBank;
pub use route::{Routed, route};

use crate::ffi::{self, ShimError};
use moe_cuda::{Address, CudaError, Device, Dtype, Kernels, Launcher, Stream};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Kind, TchError, Tensor};

/// Why experts did not run on a device.
#[derive(Debug, thiserror::Error)]
pub enum CudaRunError {
    /// The kernels, their compiler or the driver.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// libtorch, through the shim.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// An element type without kernels.
    #[error("{0:?} tokens: the kernels take Float and BFloat16")]
    Kind(Kind),
    /// Experts with biases.
    #[error("experts with biases: the kernels have none")]
    Bias,
}

/// The kernels of a device, compiled when it is first asked for and kept for the process.
///
/// # Errors
/// No driver, no compiler, no such device.
pub fn device(ordinal: usize) -> Result<Arc<dyn Launcher>, CudaError> {
    static DEVICES: Mutex<BTreeMap<usize, Arc<Device>>> = Mutex::new(BTreeMap::new());
    // A map is whole after any panic: it changes in one step.
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = devices.get(&ordinal) {
        return Ok(Arc::clone(found) as Arc<dyn Launcher>);
    }
    let device = Arc::new(Device::new(ordinal)?);
    devices.insert(ordinal, Arc::clone(&device));
    Ok(device)
}

/// Kernels on the stream that libtorch uses now for the device of `tensor`; on a CPU, for the emulator,
/// there is none.
fn kernels<'a>(launcher: &'a dyn Launcher, tensor: &Tensor) -> Result<Kernels<'a>, ShimError> {
    let stream = match tensor.device() {
        tch::Device::Cuda(ordinal) => current_stream(ordinal)?,
        _ => Stream::default(),
    };
    Ok(Kernels { launcher, stream })
}

#[expect(unsafe_code, reason = "a stream is a pointer that C++ hands out")]
fn current_stream(ordinal: usize) -> Result<Stream, ShimError> {
    let mut stream = std::ptr::null_mut();
    let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
    // SAFETY: there is room for the pointer.
    ShimError::check(unsafe { ffi::moe_current_stream(ordinal, &raw mut stream) })?;
    Ok(Stream(stream.addr()))
}

fn dtype(tensor: &Tensor) -> Result<Dtype, CudaRunError> {
    match tensor.kind() {
        Kind::Float => Ok(Dtype::F32),
        Kind::BFloat16 => Ok(Dtype::Bf16),
        other => Err(CudaRunError::Kind(other)),
    }
}

/// Where a contiguous tensor lies.
///
/// # Panics
/// If it is not contiguous: kernels know no strides.
fn address(tensor: &Tensor) -> Address {
    assert!(tensor.is_contiguous(), "a contiguous tensor, not strides {:?}", tensor.stride());
    Address(tensor.data_ptr().addr() as u64)
}

fn optional(tensor: Option<&Tensor>) -> Address {
    tensor.map_or(Address::NULL, address)
}

/// A fresh tensor on the device of `like`, not written yet.
fn room(like: &Tensor, kind: Kind, size: &[i64]) -> Tensor {
    Tensor::empty(size, (kind, like.device()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cuda_part_there_is_no_stream() {
        let error = current_stream(0).unwrap_err().to_string();
        assert!(error.to_lowercase().contains("cuda"), "{error}");
    }

    #[test]
    #[should_panic(expected = "contiguous")]
    fn strides_are_refused() {
        let _ = address(&Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu)).tr());
    }
}
