//! Experts through the kernels of this workspace.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width.

use super::{Activation, ExpertExec, Experts};
use crate::recompute::Recompute;
use moe_kernels::{Dtype, Shape};
use moe_routers::plan::SparseRows;
use moe_torch_sys::fused::{FusedBank, Rows};
use tch::{Kind, Tensor};

impl Experts {
    /// Room for packed weights, where `exec` wants them.
    ///
    /// # Panics
    /// If the memory for them is not there.
    pub(super) fn fused_bank(&self, exec: ExpertExec) -> Option<FusedBank> {
        let dtype = match exec {
            ExpertExec::Fused => Dtype::F32,
            ExpertExec::FusedBf16 => Dtype::Bf16,
            ExpertExec::Loop | ExpertExec::Grouped | ExpertExec::Padded | ExpertExec::Cuda => {
                return None;
            }
        };
        let (experts, hidden, width) = self.w1_ehd.size3().expect("[e, h, d]");
        let shape = Shape {
            experts: experts as usize,
            width: width as usize,
            hidden: hidden as usize,
            activation: kernel_activation(self.activation),
            bias: self.b1_eh.is_some(),
        };
        let bank = FusedBank::new(shape, dtype).unwrap_or_else(|e| panic!("packed experts: {e}"));
        Some(bank.recomputing(self.recompute == Recompute::Experts))
    }

    /// The only expert on every token, `[.., d] -> [.., d]`.
    pub(super) fn dense_fused(&self, bank: &FusedBank, x: &Tensor) -> Tensor {
        let width = *x.size().last().expect("a width");
        let x_gtd = x.reshape([1, -1, width]);
        let tokens = x_gtd.size()[1];
        let rows = SparseRows {
            token_n: Tensor::arange(tokens, (Kind::Int64, x.device())),
            weight_n: Tensor::ones([tokens], (Kind::Float, x.device())),
            load_e: Tensor::from_slice(&[tokens]),
            groups: 1,
            tokens,
        };
        self.execute_fused(bank, &x_gtd, &rows).view_as(x)
    }

    /// Dispatch, experts and combine in one. `[g, t, d] -> [g, t, d]`.
    ///
    /// # Panics
    /// If the plan and the tokens do not fit the bank.
    pub(super) fn execute_fused(
        &self,
        bank: &FusedBank,
        x_gtd: &Tensor,
        rows: &SparseRows,
    ) -> Tensor {
        let (token_n, weight_n, load_e) = (&rows.token_n, &rows.weight_n, &rows.load_e);
        let rows = Rows { token_n, weight_n, load_e };
        let y_td = bank.run(&x_gtd.flatten(0, 1), &rows, &self.bank_tensors());
        y_td.unwrap_or_else(|e| panic!("fused experts: {e}")).view_as(x_gtd)
    }
}

fn kernel_activation(activation: Activation) -> moe_kernels::Activation {
    match activation {
        Activation::Relu => moe_kernels::Activation::Relu,
        Activation::Gelu => moe_kernels::Activation::Gelu,
        Activation::Swiglu => moe_kernels::Activation::Swiglu,
        Activation::Geglu => moe_kernels::Activation::Geglu,
    }
}
