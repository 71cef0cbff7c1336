//! The experts of layer operations: `E_e(x) = relu(x W1_e^T + b1_e) W2_e^T + b2_e`, `W1 [E, h, d]`,
//! `b1 [E, h]`, `W2 [E, d, h]`, `b2 [E, d]`; a missing bias is zero.
//!
//! Axis letters: `n` rows of one expert, `d` width, `h` hidden width, `e` experts.

use crate::args::{Args, expect_shape};
use crate::op::OpError;
use moe_core::Plan;
use moe_routers::TensorPlan;
use ndarray::{Array2, Array3, ArrayView2, Axis};
use tch::Tensor;

/// Experts on the host.
#[derive(Debug)]
pub struct HostBank {
    w1_ehd: Array3<f64>,
    b1_eh: Array2<f64>,
    w2_edh: Array3<f64>,
    b2_ed: Array2<f64>,
}

impl HostBank {
    /// Reads `W1 b1? W2 b2?` for `experts` experts of this width.
    ///
    /// # Errors
    /// `missing`, `shape`, `finite`.
    pub fn read(args: &Args<'_>, experts: usize, width: usize) -> Result<Self, OpError> {
        let (w1_ehd, w2_edh) = (args.cube("W1")?, args.cube("W2")?);
        let hidden = w1_ehd.dim().1;
        expect_shape("W1", w1_ehd.shape(), &[experts, hidden, width])?;
        expect_shape("W2", w2_edh.shape(), &[experts, width, hidden])?;
        let bias = |name: &str, len: usize| match args.optional(name, Args::matrix)? {
            Some(bias) => expect_shape(name, bias.shape(), &[experts, len]).map(|()| bias),
            None => Ok(Array2::zeros((experts, len))),
        };
        Ok(Self { b1_eh: bias("b1", hidden)?, b2_ed: bias("b2", width)?, w1_ehd, w2_edh })
    }

    /// From weights and biases of both layers, whose shapes fit.
    pub fn from_parts(
        (w1_ehd, b1_eh): (Array3<f64>, Array2<f64>),
        (w2_edh, b2_ed): (Array3<f64>, Array2<f64>),
    ) -> Self {
        Self { w1_ehd, b1_eh, w2_edh, b2_ed }
    }

    /// Expert `e` on its rows.
    pub fn expert(&self, e: usize, x_nd: ArrayView2<'_, f64>) -> Array2<f64> {
        let h_nh = x_nd.dot(&self.w1_ehd.index_axis(Axis(0), e).t()) + self.b1_eh.row(e);
        h_nh.mapv(|v| v.max(0.0)).dot(&self.w2_edh.index_axis(Axis(0), e).t()) + self.b2_ed.row(e)
    }

    /// The layer without its residual, `[t, d]`.
    pub fn apply(&self, plan: &Plan, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
        plan.apply(x_td, |e, rows| self.expert(e, rows))
    }
}

/// Experts on libtorch, leaves for gradients. Read a [`HostBank`] first: it checks the shapes.
#[derive(Debug)]
pub struct TorchBank {
    w1_ehd: Tensor,
    b1_eh: Option<Tensor>,
    w2_edh: Tensor,
    b2_ed: Option<Tensor>,
}

impl TorchBank {
    /// Reads `W1 b1? W2 b2?`.
    ///
    /// # Errors
    /// As [`HostBank::read`].
    pub fn read(args: &Args<'_>, experts: usize, width: usize) -> Result<Self, OpError> {
        HostBank::read(args, experts, width)?;
        Ok(Self {
            w1_ehd: args.torch("W1")?,
            b1_eh: args.torch_optional("b1")?,
            w2_edh: args.torch("W2")?,
            b2_ed: args.torch_optional("b2")?,
        })
    }

    /// From weights and biases of both layers, whose shapes fit.
    pub fn from_parts(
        (w1_ehd, b1_eh): (Tensor, Option<Tensor>),
        (w2_edh, b2_ed): (Tensor, Option<Tensor>),
    ) -> Self {
        Self { w1_ehd, b1_eh, w2_edh, b2_ed }
    }

    /// Expert `e` on its rows.
    pub fn expert(&self, e: usize, x_nd: &Tensor) -> Tensor {
        let row = |bias: &Option<Tensor>| bias.as_ref().map(|b| b.get(e as i64));
        let h_nh = x_nd.linear(&self.w1_ehd.get(e as i64), row(&self.b1_eh)).relu();
        h_nh.linear(&self.w2_edh.get(e as i64), row(&self.b2_ed))
    }

    /// The layer without its residual, `[g, t, d]`.
    pub fn apply(&self, plan: &TensorPlan, x_gtd: &Tensor) -> Tensor {
        plan.apply(x_gtd, |e, rows| self.expert(e, rows))
    }
}
