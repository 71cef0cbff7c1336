//! The release's small encoder and decoder in plain `f64`.
//!
//! Axis letters: `b` images, `c` channels, `z` latent width; rows and columns of an image are `r` and `q`.

use super::host::Linear;
use moe_core::score::sigmoid;
use ndarray::{Array1, Array2, Array4, ArrayView2};

/// A convolution's kernels, `[out, in, 3, 3]`, and bias, `[out]`.
pub type Convolution = (Array4<f64>, Array1<f64>);

/// 3 x 3 with padding 1. `[b, in, r, q] -> [b, out, ceil(r / stride), ceil(q / stride)]`.
pub fn convolve(x_bcrq: &Array4<f64>, (w, bias): &Convolution, stride: usize) -> Array4<f64> {
    let (images, channels, rows, columns) = x_bcrq.dim();
    let shape = (images, w.dim().0, rows.div_ceil(stride), columns.div_ceil(stride));
    // The input cell under kernel cell `k` of output cell `out`, unless it is padding.
    let under =
        |out: usize, k: usize, len: usize| (out * stride + k).checked_sub(1).filter(|&at| at < len);
    Array4::from_shape_fn(shape, |(b, out, r, q)| {
        let mut sum = bias[out];
        for (kr, kq) in (0..3).flat_map(|kr| (0..3).map(move |kq| (kr, kq))) {
            if let (Some(r), Some(q)) = (under(r, kr, rows), under(q, kq, columns)) {
                let at = |c| x_bcrq[[b, c, r, q]] * w[[out, c, kr, kq]];
                sum += (0..channels).map(at).sum::<f64>();
            }
        }
        sum
    })
}

fn elu(x: f64) -> f64 {
    if x > 0.0 { x } else { x.exp_m1() }
}

/// Every pixel twice in both directions.
fn double(x_bcrq: &Array4<f64>) -> Array4<f64> {
    let (images, channels, rows, columns) = x_bcrq.dim();
    let shape = (images, channels, 2 * rows, 2 * columns);
    Array4::from_shape_fn(shape, |(b, c, r, q)| x_bcrq[[b, c, r / 2, q / 2]])
}

/// Encoder `lite`: two strided convolutions, then the heads of mean and log-variance, `[b, z]` each.
///
/// # Panics
/// If the heads do not fit the flattened image.
pub fn encode_lite(
    x_bcrq: &Array4<f64>,
    convolutions: &[Convolution; 2],
    heads: &[Linear; 2],
) -> [Array2<f64>; 2] {
    let h_bcrq = convolve(x_bcrq, &convolutions[0], 2).mapv(elu);
    let h_bcrq = convolve(&h_bcrq, &convolutions[1], 2).mapv(elu);
    let (images, features) = (h_bcrq.dim().0, h_bcrq.len() / h_bcrq.dim().0);
    let flat = h_bcrq.into_shape_with_order((images, features)).expect("channel-major");
    heads.each_ref().map(|(w, b)| flat.dot(&w.t()) + b)
}

/// Decoder `lite`: a linear map, no activation, then twice: double, convolve. `[b, z] -> [b, 1, 4 side, 4 side]`.
///
/// # Panics
/// If the linear map does not fit `side`.
pub fn decode_lite(
    z_bz: ArrayView2<'_, f64>,
    (fc, fc_bias): &Linear,
    convolutions: &[Convolution; 2],
    side: usize,
) -> Array4<f64> {
    let flat = z_bz.dot(&fc.t()) + fc_bias;
    let (images, features) = flat.dim();
    let shape = (images, features / (side * side), side, side);
    let h_bcrq = flat.into_shape_with_order(shape).expect("channels x side x side");
    let h_bcrq = convolve(&double(&h_bcrq), &convolutions[0], 1).mapv(elu);
    convolve(&double(&h_bcrq), &convolutions[1], 1).mapv(sigmoid)
}
