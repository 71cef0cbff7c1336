//! Experts on a GPU through the kernels of this workspace. Not yet run on a GPU.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width.

use super::{Activation, ExpertExec, Experts};
use moe_cuda::Launcher;
use moe_routers::plan::SparseRows;
use moe_torch_sys::cuda::{self, CudaBank};
use moe_torch_sys::fused::Rows;
use std::sync::Arc;
use tch::{Device, Tensor};

impl Experts {
    /// The same weights, their kernels run by `launcher`: how tests run the GPU's path on a CPU.
    ///
    /// # Panics
    /// With biases, which the kernels do not have.
    pub fn with_launcher(&self, launcher: Arc<dyn Launcher>) -> Self {
        assert!(self.b1_eh.is_none() && self.b2_ed.is_none(), "kernels know no biases");
        let bank = CudaBank::new(launcher, kernel_activation(self.activation));
        Self { exec: ExpertExec::Cuda, cuda: Some(bank), ..self.with_exec(ExpertExec::Grouped) }
    }

    /// Kernels for the device that the weights are on, where `exec` wants them and they know the experts.
    ///
    /// # Panics
    /// If there is no such device, or nothing to compile kernels with.
    pub(super) fn cuda_bank(&self, exec: ExpertExec) -> Option<CudaBank> {
        if exec != ExpertExec::Cuda || self.b1_eh.is_some() || self.b2_ed.is_some() {
            return None;
        }
        let Device::Cuda(ordinal) = self.w1_ehd.device() else {
            panic!("CUDA experts with weights on {:?}", self.w1_ehd.device());
        };
        let launcher = cuda::device(ordinal).unwrap_or_else(|e| panic!("CUDA experts: {e}"));
        Some(CudaBank::new(launcher, kernel_activation(self.activation)))
    }

    /// Dispatch, experts and combine. `[g, t, d] -> [g, t, d]`.
    ///
    /// # Panics
    /// If the plan and the tokens do not fit the bank, or the device refuses.
    pub(super) fn execute_cuda(
        &self,
        bank: &CudaBank,
        x_gtd: &Tensor,
        rows: &SparseRows,
    ) -> Tensor {
        let (token_n, weight_n, load_e) = (&rows.token_n, &rows.weight_n, &rows.load_e);
        let rows = Rows { token_n, weight_n, load_e };
        let y_td = bank.run(&x_gtd.flatten(0, 1), &rows, &self.bank_tensors());
        y_td.unwrap_or_else(|e| panic!("CUDA experts: {e}")).view_as(x_gtd)
    }
}

fn kernel_activation(activation: Activation) -> moe_cuda::Activation {
    match activation {
        Activation::Relu => moe_cuda::Activation::Relu,
        Activation::Gelu => moe_cuda::Activation::Gelu,
        Activation::Swiglu => moe_cuda::Activation::Swiglu,
        Activation::Geglu => moe_cuda::Activation::Geglu,
    }
}
