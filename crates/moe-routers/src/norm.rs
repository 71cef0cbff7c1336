//! LayerNorm on both sides, for papers whose layer rule has one inside.
//!
//! Axis letters: `t` tokens, `d` width.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use tch::Tensor;

/// A LayerNorm's parameters on the host; absent is 1 and 0.
#[derive(Debug, Clone, Default)]
pub struct HostNorm {
    /// Factor, `[d]`.
    pub weight_d: Option<Array1<f64>>,
    /// Summand, `[d]`.
    pub bias_d: Option<Array1<f64>>,
}

impl HostNorm {
    /// Every row less its mean, over its population deviation.
    ///
    /// # Panics
    /// Without columns.
    pub fn apply(&self, x_td: ArrayView2<'_, f64>, eps: f64) -> Array2<f64> {
        let mean_t1 = x_td.mean_axis(Axis(1)).expect("a width").insert_axis(Axis(1));
        let centred_td = &x_td - &mean_t1;
        let var_t = centred_td.mapv(|v| v * v).mean_axis(Axis(1)).expect("a width");
        let mut y_td = centred_td / var_t.mapv(|v| (v + eps).sqrt()).insert_axis(Axis(1));
        if let Some(weight_d) = &self.weight_d {
            y_td *= weight_d;
        }
        if let Some(bias_d) = &self.bias_d {
            y_td += bias_d;
        }
        y_td
    }
}

/// A LayerNorm's parameters on libtorch; absent is 1 and 0.
#[derive(Debug, Default)]
pub struct TorchNorm {
    /// Factor, `[d]`.
    pub weight_d: Option<Tensor>,
    /// Summand, `[d]`.
    pub bias_d: Option<Tensor>,
}

impl TorchNorm {
    /// LayerNorm over the last axis.
    ///
    /// # Panics
    /// On a scalar.
    pub fn apply(&self, x: &Tensor, eps: f64) -> Tensor {
        let width = *x.size().last().expect("a width");
        x.layer_norm([width], self.weight_d.as_ref(), self.bias_d.as_ref(), eps, false)
    }
}
