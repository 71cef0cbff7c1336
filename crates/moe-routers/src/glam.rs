//! GLaM: what it has besides its routing.
//!
//! *GLaM: Efficient Scaling of Language Models with Mixture-of-Experts*, Du, Huang, Dai et al., 2021,
//! arXiv 2112.06905. Its routing is GShard's top-2 ([`crate::gshard`], preset `lingvo`); the layers
//! between its sparse ones are GEGLU networks (Shazeer, 2020, arXiv 2002.05202):
//!
//! ```text
//! GEGLU(x) = (gelu(x W^T) * x V^T) W2^T
//! ```
//!
//! It is no router and does not stand in `PAPERS`: a dense layer, or an expert, calls it on its rows.
//! Whether GELU is the exact one or its tanh approximation the papers do not say.
//!
//! Axis letters: `n` rows, `d` width, `h` hidden width.

use ndarray::{Array2, ArrayView2};
use std::f64::consts::FRAC_2_PI;
use tch::Tensor;

/// Which GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gelu {
    /// `x Phi(x)`.
    #[default]
    Erf,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    Tanh,
}

impl Gelu {
    /// Its value.
    pub fn of(self, x: f64) -> f64 {
        match self {
            Self::Erf => x * moe_core::score::normal_cdf(x),
            Self::Tanh => 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        }
    }

    /// libtorch's name of it.
    fn name(self) -> &'static str {
        match self {
            Self::Erf => "none",
            Self::Tanh => "tanh",
        }
    }
}

/// The weights of a GEGLU layer on the host.
#[derive(Debug, Clone)]
pub struct HostGeglu {
    /// Gate, `[h, d]`.
    pub w_hd: Array2<f64>,
    /// Value, `[h, d]`.
    pub v_hd: Array2<f64>,
    /// Output, `[d, h]`.
    pub w2_dh: Array2<f64>,
}

impl HostGeglu {
    /// The layer, `[n, d] -> [n, d]`.
    pub fn apply(&self, x_nd: ArrayView2<'_, f64>, gelu: Gelu) -> Array2<f64> {
        let gate_nh = x_nd.dot(&self.w_hd.t()).mapv(|x| gelu.of(x));
        (gate_nh * x_nd.dot(&self.v_hd.t())).dot(&self.w2_dh.t())
    }
}

/// The same weights as tensors.
#[derive(Debug)]
pub struct Geglu {
    /// Gate, `[h, d]`.
    pub w_hd: Tensor,
    /// Value, `[h, d]`.
    pub v_hd: Tensor,
    /// Output, `[d, h]`.
    pub w2_dh: Tensor,
}

impl Geglu {
    /// The layer, `[…, d] -> […, d]`.
    pub fn apply(&self, x: &Tensor, gelu: Gelu) -> Tensor {
        let gate = x.linear(&self.w_hd, None::<&Tensor>).gelu(gelu.name());
        (gate * x.linear(&self.v_hd, None::<&Tensor>)).linear(&self.w2_dh, None::<&Tensor>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// `x = 2`, `w = (1/2, -1/2)`, `v = (1, 3)`, `w2 = (1, 1)`: gates `gelu(1) = Phi(1)` and
    /// `gelu(-1) = -Phi(-1)`, values 2 and 6: `2 Phi(1) - 6 Phi(-1)`. The approximation is within 1e-3.
    #[test]
    fn by_hand() {
        let layer = HostGeglu {
            w_hd: array![[0.5], [-0.5]],
            v_hd: array![[1.0], [3.0]],
            w2_dh: array![[1.0, 1.0]],
        };
        let phi = moe_core::score::normal_cdf;
        let y = |gelu| layer.apply(array![[2.0]].view(), gelu)[[0, 0]];
        let want = 2.0 * phi(1.0) - 6.0 * phi(-1.0);
        assert!((y(Gelu::Erf) - want).abs() < 1e-12);
        let difference = (y(Gelu::Tanh) - want).abs();
        assert!(difference < 2e-3 && difference > 1e-6, "{difference}");
    }
}
