//! The experts of one bank, forward and backward.
#![expect(unsafe_code, reason = "kernels take addresses of tensors")]

use super::dispatch::Dispatch;
use super::{CudaRunError, address, dtype, kernels, optional, room};
use crate::fused::{BankTensors, Rows};
use crate::graph::{Grads, attach, wants_graph};
use moe_cuda::kernels::{Hidden, HiddenBackward};
use moe_cuda::{Activation, Kernels, Launcher};
use std::sync::Arc;
use tch::{Kind, Tensor};

/// Experts of one kind on one device.
#[derive(Debug, Clone)]
pub struct CudaBank {
    launcher: Arc<dyn Launcher>,
    activation: Activation,
}

impl CudaBank {
    /// Experts with this nonlinearity, their kernels run by `launcher` (see [`super::device`]).
    pub fn new(launcher: Arc<dyn Launcher>, activation: Activation) -> Self {
        Self { launcher, activation }
    }

    /// All experts on the rows of a plan, combined: `x_td` `[t, d]` to `[t, d]`, on the graph of tokens,
    /// row weights and expert weights. Tokens and weights are of one kind.
    ///
    /// # Errors
    /// See [`CudaRunError`].
    pub fn run(
        &self,
        x_td: &Tensor,
        rows: &Rows<'_>,
        weights: &BankTensors<'_>,
    ) -> Result<Tensor, CudaRunError> {
        let dispatch = tch::no_grad(|| Dispatch::of_rows(rows, x_td.size()[0]));
        let kind = rows.weight_n.kind();
        let to_weights = move |_: &Dispatch, dweight_n: Tensor| dweight_n.to_kind(kind);
        self.step(x_td, rows.weight_n, dispatch, weights, to_weights)
    }

    /// The same from choices and gates, `[g, t, k]` int32 and `f32`, with a plan made on the device; each
    /// expert keeps the first `capacity` choices of every group, in the order of tokens.
    ///
    /// # Errors
    /// See [`CudaRunError`].
    pub fn run_choices(
        &self,
        x_td: &Tensor,
        (expert_gtk, gate_gtk): (&Tensor, &Tensor),
        capacity: Option<usize>,
        weights: &BankTensors<'_>,
    ) -> Result<Tensor, CudaRunError> {
        let kernels = kernels(&*self.launcher, x_td)?;
        let (expert, gate) = (expert_gtk.contiguous(), gate_gtk.detach().contiguous());
        let experts = weights.w1_ehd.size()[0];
        let dispatch = Dispatch::of_choices(&kernels, (&expert, &gate), experts, capacity)?;
        let to_gates =
            move |rows: &Dispatch, dweight_n: Tensor| rows.by_choice(&dweight_n).view_as(&gate);
        self.step(x_td, gate_gtk, dispatch, weights, to_gates)
    }

    /// One step of the graph; `to_given` turns the gradient of the rows' weights into that of `given`.
    fn step(
        &self,
        x_td: &Tensor,
        given: &Tensor,
        dispatch: Dispatch,
        weights: &BankTensors<'_>,
        to_given: impl Fn(&Dispatch, Tensor) -> Tensor + Send + 'static,
    ) -> Result<Tensor, CudaRunError> {
        if weights.b1_eh.is_some() || weights.b2_ed.is_some() {
            return Err(CudaRunError::Bias);
        }
        let mut inputs = vec![x_td, given, weights.w1_ehd, weights.w2_edh];
        inputs.extend(weights.gate_ehd);
        let graph = wants_graph(&inputs);
        let step = tch::no_grad(|| Step::new(self, x_td, dispatch, weights));
        let (y_td, hidden) = tch::no_grad(|| step.forward())?;
        if !graph {
            return Ok(y_td);
        }
        let attached = attach(&y_td, &inputs, move |dy_td| -> Grads {
            let down = step.backward(&hidden, dy_td).map_err(|e| e.to_string())?;
            let dgiven = to_given(&step.dispatch, down.dweight_n);
            let all = [down.dx_td, dgiven, down.dw1_ehd, down.dw2_edh];
            Ok(all.into_iter().chain(down.dgate_ehd).map(Some).collect())
        })?;
        Ok(attached)
    }
}

/// What forward and backward of one call share.
#[derive(Debug)]
struct Step {
    bank: CudaBank,
    x_td: Tensor,
    dispatch: Dispatch,
    w1_ehd: Tensor,
    gate_ehd: Option<Tensor>,
    w2_edh: Tensor,
}

/// The first products of all rows, kept for the way back.
#[derive(Debug)]
struct Products {
    gate_nh: Option<Tensor>,
    up_nh: Tensor,
}

/// Gradients.
#[derive(Debug)]
struct Down {
    dx_td: Tensor,
    dweight_n: Tensor,
    dw1_ehd: Tensor,
    dw2_edh: Tensor,
    dgate_ehd: Option<Tensor>,
}

impl Step {
    fn new(bank: &CudaBank, x_td: &Tensor, dispatch: Dispatch, weights: &BankTensors<'_>) -> Self {
        let own = |weight: &Tensor| weight.detach().contiguous();
        Self {
            bank: bank.clone(),
            x_td: x_td.detach().contiguous(),
            dispatch,
            w1_ehd: own(weights.w1_ehd),
            gate_ehd: weights.gate_ehd.map(own),
            w2_edh: own(weights.w2_edh),
        }
    }

    fn forward(&self) -> Result<(Tensor, Products), CudaRunError> {
        let kernels = kernels(&*self.bank.launcher, &self.x_td)?;
        let x_nd = self.dispatch.gather(&kernels, &self.x_td)?;
        let first = |w_ehd: &Tensor| self.grouped(&x_nd, &w_ehd.transpose(1, 2));
        let gate_nh = self.gate_ehd.as_ref().map(first).transpose()?;
        let products = Products { gate_nh, up_nh: first(&self.w1_ehd)? };
        let a_nh = products.up_nh.empty_like();
        let hidden = self.hidden(&products);
        // SAFETY: tensors of `hidden`'s sizes, which outlive the launch on their stream.
        unsafe { kernels.activation_forward(dtype(&a_nh)?, &hidden, address(&a_nh)) }?;
        let y_nd = self.grouped(&a_nh, &self.w2_edh.transpose(1, 2))?;
        Ok((self.dispatch.sum(&kernels, (&y_nd, None), true)?, products))
    }

    fn backward(&self, products: &Products, dy_td: &Tensor) -> Result<Down, CudaRunError> {
        let kernels = kernels(&*self.bank.launcher, &self.x_td)?;
        // libtorch hands down gradients of stride zero, which neither kernels nor products take.
        let dy_td = dy_td.to_kind(self.x_td.kind()).contiguous();
        let dy_nd = self.dispatch.gather(&kernels, &dy_td)?;
        let da_nh = self.grouped(&dy_nd, &self.w2_edh)?;
        let (dgate_nh, dup_nh) =
            (products.gate_nh.as_ref().map(Tensor::empty_like), da_nh.empty_like());
        let (scaled_nh, dweight_n) = (da_nh.empty_like(), self.dispatch.weight_n.empty_like());
        let down = HiddenBackward {
            da_nh: address(&da_nh),
            weight_n: address(&self.dispatch.weight_n),
            dgate_nh: optional(dgate_nh.as_ref()),
            dup_nh: address(&dup_nh),
            scaled_nh: address(&scaled_nh),
            dweight_n: address(&dweight_n),
        };
        // SAFETY: as in `forward`.
        unsafe { kernels.activation_backward(dtype(&da_nh)?, &self.hidden(products), &down) }?;
        let dw2_edh = self.outer(&kernels, &dy_nd, &scaled_nh)?;
        let x_nd = self.dispatch.gather(&kernels, &self.x_td)?;
        let dw1_ehd = self.outer(&kernels, &dup_nh, &x_nd)?;
        let by_gate = dgate_nh.as_ref().zip(self.gate_ehd.as_ref());
        let dgate_ehd =
            by_gate.map(|(dgate_nh, _)| self.outer(&kernels, dgate_nh, &x_nd)).transpose()?;
        let through_up = self.grouped(&dup_nh, &self.w1_ehd)?;
        let through_gate = by_gate.map(|(dgate_nh, w)| self.grouped(dgate_nh, w)).transpose()?;
        let dx_td = self.dispatch.sum(&kernels, (&through_up, through_gate.as_ref()), false)?;
        Ok(Down { dx_td, dweight_n, dw1_ehd, dw2_edh, dgate_ehd })
    }

    fn hidden(&self, products: &Products) -> Hidden {
        Hidden {
            activation: self.bank.activation,
            gate_nh: optional(products.gate_nh.as_ref()),
            up_nh: address(&products.up_nh),
            rows: address(&self.dispatch.rows()),
            most_rows: self.dispatch.most_rows() as usize,
            hidden: self.w1_ehd.size()[1] as usize,
        }
    }

    /// Each expert's matrix on its rows, `[n, a] x [e, a, b] -> [n, b]`.
    fn grouped(&self, x_na: &Tensor, w_eab: &Tensor) -> Result<Tensor, CudaRunError> {
        if self.dispatch.most_rows() == 0 {
            return Ok(room(x_na, x_na.kind(), &[0, w_eab.size()[2]]));
        }
        let end_e = Some(&self.dispatch.end_e);
        Ok(x_na.f_internal_grouped_mm(w_eab, end_e, None, None::<Kind>)?)
    }

    /// The sum over each expert's rows of their outer products, `[n, a], [n, b] -> [e, a, b]`.
    fn outer(
        &self,
        kernels: &Kernels<'_>,
        x_na: &Tensor,
        y_nb: &Tensor,
    ) -> Result<Tensor, CudaRunError> {
        let (e, a, b) = (self.w1_ehd.size()[0], x_na.size()[1], y_nb.size()[1]);
        if self.dispatch.most_rows() == 0 {
            return Ok(Tensor::zeros([e, a, b], (x_na.kind(), x_na.device())));
        }
        let end_e = &self.dispatch.end_e;
        let w_eab = x_na.tr().f_internal_grouped_mm(y_nb, Some(end_e), None, None::<Kind>)?;
        let addresses = (address(&w_eab), address(end_e));
        // SAFETY: as in `forward`.
        unsafe { kernels.clear_empty(dtype(&w_eab)?, addresses, e as usize, (a * b) as usize) }?;
        Ok(w_eab)
    }
}
