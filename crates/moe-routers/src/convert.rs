//! The one place where host arrays become tensors and back.

use ndarray::{Array1, Array2, Array3, ArrayView2};
use tch::{Device, Kind, Tensor};

/// Copies a matrix to the host in `f64`.
///
/// # Panics
/// If `t` is not a matrix.
pub fn to_host(t: &Tensor) -> Array2<f64> {
    let (rows, columns) = t.size2().expect("a matrix");
    Array2::from_shape_vec((rows as usize, columns as usize), host_values(t))
        .expect("as many values as the shape says")
}

/// Copies a tensor of three axes to the host in `f64`.
///
/// # Panics
/// If `t` has another number of axes.
pub fn to_host3(t: &Tensor) -> Array3<f64> {
    let (a, b, c) = t.size3().expect("three axes");
    Array3::from_shape_vec((a as usize, b as usize, c as usize), host_values(t))
        .expect("as many values as the shape says")
}

/// Copies a vector to the host in `f64`.
pub fn to_host1(t: &Tensor) -> Array1<f64> {
    Array1::from_vec(host_values(t))
}

/// All values, row-major, in `f64`.
fn host_values(t: &Tensor) -> Vec<f64> {
    let flat = t.detach().to_device(Device::Cpu).to_kind(Kind::Double).contiguous().view([-1]);
    Vec::try_from(flat).expect("a flat tensor of doubles")
}

/// Whole numbers on the host.
pub fn to_host_i64(t: &Tensor) -> Vec<i64> {
    let flat = t.to_device(Device::Cpu).to_kind(Kind::Int64).contiguous().view([-1]);
    Vec::try_from(flat).expect("a flat tensor of integers")
}

/// Copies a host matrix to a tensor of the kind and device of `like`.
pub fn to_tensor(a: ArrayView2<'_, f64>, like: &Tensor) -> Tensor {
    let values: Vec<f64> = a.iter().copied().collect();
    Tensor::from_slice(&values)
        .view([a.nrows() as i64, a.ncols() as i64])
        .to_kind(like.kind())
        .to_device(like.device())
}

/// Copies indices of this shape to an int64 tensor on the device of `like`.
pub fn to_indices(values: &[usize], shape: &[i64], like: &Tensor) -> Tensor {
    let values: Vec<i64> = values.iter().map(|&v| v as i64).collect();
    Tensor::from_slice(&values).view(shape).to_device(like.device())
}
