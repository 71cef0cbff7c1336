//! The shim's functions as C declares them, and what all callers share.
#![expect(unsafe_code, reason = "declarations of the shim, and its text coming back")]

use std::ffi::{CStr, c_char, c_int, c_void};
use tch::Tensor;
use torch_sys::C_tensor;

/// What libtorch said when a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimError(String);

impl std::fmt::Display for ShimError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What follows the first line is a C++ backtrace.
        f.write_str(self.0.lines().next().unwrap_or_default())
    }
}

impl std::error::Error for ShimError {}

impl ShimError {
    /// Takes over the text that a function of the shim returned.
    pub(crate) fn check(text: *mut c_char) -> Result<(), Self> {
        if text.is_null() {
            return Ok(());
        }
        // SAFETY: the shim returns null or a terminated text that is ours until it is freed.
        let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: freed once, by the allocator that made it.
        unsafe { moe_free_text(text) };
        Err(Self(message))
    }
}

pub(crate) type BackwardFn =
    unsafe extern "C" fn(*mut c_void, *mut C_tensor, *mut *mut C_tensor, usize) -> *mut c_char;

/// Handles for the time of a call.
pub(crate) fn pointers(tensors: &[&Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect()
}

unsafe extern "C" {
    fn moe_free_text(text: *mut c_char);
    pub(crate) fn moe_copy_text(bytes: *const c_char, count: usize) -> *mut c_char;
    pub(crate) fn moe_wants_graph(inputs: *const *mut C_tensor, count: usize) -> bool;
    pub(crate) fn moe_attach(
        output: *mut C_tensor,
        inputs: *const *mut C_tensor,
        count: usize,
        backward: BackwardFn,
        drop: unsafe extern "C" fn(*mut c_void),
        state: *mut c_void,
        attached: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn moe_fused_adamw(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        m: *const *mut C_tensor,
        v: *const *mut C_tensor,
        steps: *const *mut C_tensor,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn moe_current_stream(device: c_int, stream: *mut *mut c_void) -> *mut c_char;
    pub(crate) fn moe_own_grad(leaf: *mut C_tensor, grad: *mut *mut C_tensor) -> *mut c_char;
    pub(crate) fn moe_has_onednn() -> bool;
    pub(crate) fn moe_onednn_linear(
        x_ni: *mut C_tensor,
        weight_oi: *mut C_tensor,
        y_no: *mut *mut C_tensor,
    ) -> *mut c_char;
    pub(crate) fn moe_parallel(
        count: usize,
        call: unsafe extern "C" fn(*const c_void),
        state: *const c_void,
    ) -> *mut c_char;
    pub(crate) fn moe_set_deterministic(on: bool) -> *mut c_char;
}
