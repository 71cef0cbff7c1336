//! The memory of CPU tensors as slices, for kernels that know nothing of tensors.
#![expect(unsafe_code, reason = "tensors lend their memory")]

use moe_kernels::Bf16;
use tch::{Device, Kind, Tensor};

/// The values of a contiguous `f32` tensor on the CPU, row-major.
///
/// # Panics
/// If it is of another kind or device, or not contiguous.
pub(crate) fn values(tensor: &Tensor) -> &[f32] {
    check(tensor, Kind::Float);
    // SAFETY: contiguous `f32` in host memory that lives as long as the tensor. Nobody writes to it
    // while the slice lives: kernels get outputs that were allocated for them alone.
    unsafe { std::slice::from_raw_parts(start(tensor), tensor.numel()) }
}

/// The same for writing, of a tensor that nobody else looks at.
///
/// # Safety
/// No other tensor or slice that shares this storage is read or written while the slice lives.
///
/// # Panics
/// As [`values`].
pub(crate) unsafe fn values_mut(tensor: &mut Tensor) -> &mut [f32] {
    check(tensor, Kind::Float);
    // SAFETY: contiguous `f32` in host memory; by this function's contract nobody shares it.
    unsafe { std::slice::from_raw_parts_mut(start(tensor), tensor.numel()) }
}

/// The values of a contiguous `bf16` tensor on the CPU.
///
/// # Panics
/// As [`values`].
pub(crate) fn bits(tensor: &Tensor) -> &[Bf16] {
    check(tensor, Kind::BFloat16);
    // SAFETY: as in `values`; `Bf16` is 16 bits without a layout of its own.
    unsafe { std::slice::from_raw_parts(start(tensor), tensor.numel()) }
}

/// The same for writing.
///
/// # Safety
/// As [`values_mut`].
///
/// # Panics
/// As [`values`].
pub(crate) unsafe fn bits_mut(tensor: &mut Tensor) -> &mut [Bf16] {
    check(tensor, Kind::BFloat16);
    // SAFETY: as in `values_mut` and `bits`.
    unsafe { std::slice::from_raw_parts_mut(start(tensor), tensor.numel()) }
}

/// The values of a contiguous `i64` tensor on the CPU.
///
/// # Panics
/// As [`values`].
pub(crate) fn whole_numbers(tensor: &Tensor) -> &[i64] {
    check(tensor, Kind::Int64);
    // SAFETY: as in `values`.
    unsafe { std::slice::from_raw_parts(start(tensor), tensor.numel()) }
}

/// Where the values begin; an empty tensor may have no memory at all.
fn start<T>(tensor: &Tensor) -> *mut T {
    let start = tensor.data_ptr().cast::<T>();
    if start.is_null() { std::ptr::NonNull::dangling().as_ptr() } else { start }
}

fn check(tensor: &Tensor, kind: Kind) {
    let (device, got) = (tensor.device(), tensor.kind());
    assert!(device == Device::Cpu && got == kind, "{kind:?} on the CPU, not {got:?} on {device:?}");
    assert!(tensor.is_contiguous(), "a contiguous tensor, not strides {:?}", tensor.stride());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_tensor() {
        let mut tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]);
        assert_eq!(values(&tensor), [1.0, 2.0, 3.0, 4.0]);
        // SAFETY: nobody else holds this tensor.
        let slice = unsafe { values_mut(&mut tensor) };
        slice[3] = 9.0;
        assert_eq!(tensor.double_value(&[1, 1]), 9.0);
        assert!(values(&Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))).is_empty());
        assert_eq!(whole_numbers(&Tensor::from_slice(&[7i64])), [7]);
    }

    #[test]
    #[should_panic(expected = "contiguous")]
    fn a_transposed_tensor_is_refused() {
        let _ = values(&Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).tr());
    }

    #[test]
    #[should_panic(expected = "Float on the CPU, not Double")]
    fn another_kind_is_refused() {
        let _ = values(&Tensor::zeros([2], (Kind::Double, Device::Cpu)));
    }
}
