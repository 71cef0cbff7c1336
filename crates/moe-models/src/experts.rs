//! A bank of expert networks with stacked weights, and the ways to run it.
//!
//! ```text
//! two matrices:  E_e(x) = a(x W1_e^T + b1_e) W2_e^T + b2_e               a = ReLU, GELU
//! gated:         E_e(x) = (a(x G_e^T) * (x W1_e^T + b1_e)) W2_e^T + b2_e a = SiLU, GELU
//! ```
//!
//! Axis letters: `n` rows sorted by expert, `d` width, `h` hidden width, `e` experts.

mod cuda;
mod fused;
mod padded;

use crate::precision::Precision;
use moe_routers::{Params, TensorPlan};
use moe_torch_sys::cuda::CudaBank;
use moe_torch_sys::fused::{BankTensors, FusedBank};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Nonlinearity of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(0, x)`, two matrices.
    Relu,
    /// GELU with the error function, two matrices.
    Gelu,
    /// SiLU gate, three matrices (Shazeer 2020, arXiv 2002.05202).
    Swiglu,
    /// GELU gate, three matrices (same paper; GLaM's dense layers).
    Geglu,
}

impl Activation {
    /// Whether a third matrix gates the hidden layer.
    pub fn gated(self) -> bool {
        matches!(self, Self::Swiglu | Self::Geglu)
    }

    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::Gelu | Self::Geglu => x.gelu("none"),
            Self::Swiglu => x.silu(),
        }
    }
}

/// How the expert matrices are multiplied. All give the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertExec {
    /// One matmul per expert. Reads the loads back to the host: free on a CPU, a stall on a GPU.
    Loop,
    /// libtorch's grouped matmul, without a host round trip; `f32` and `bf16`.
    Grouped,
    /// Kernels of this workspace: dispatch, products, activation and combine in one. `f32` on a CPU.
    Fused,
    /// The same with products of `bf16` values, sums and parameters in `f32`.
    FusedBf16,
    /// libtorch's grouped matmul and kernels of this workspace around it, without a host round trip. `bf16`
    /// on a GPU; experts with biases run as [`ExpertExec::Grouped`]. Not yet run on a GPU.
    Cuda,
    /// One batched matmul, every expert padded to the busiest one's rows. Reads the largest load back
    /// to the host; wasteful where loads are uneven.
    Padded,
}

impl ExpertExec {
    /// Every way that a CPU has, for parity tests and measurements.
    pub const ALL: [Self; 5] =
        [Self::Loop, Self::Grouped, Self::Padded, Self::Fused, Self::FusedBf16];

    /// Every way that this device has.
    pub fn on(device: Device) -> Vec<Self> {
        match device {
            Device::Cuda(_) => vec![Self::Loop, Self::Grouped, Self::Padded, Self::Cuda],
            _ => Self::ALL.to_vec(),
        }
    }

    /// The fastest exact way for parameters of this kind on this device, as measured
    /// (`docs/performance.md`).
    pub fn best(device: Device, kind: Kind) -> Self {
        match (device, kind) {
            (Device::Cpu, Kind::Float) => Self::Fused,
            (Device::Cuda(_), Kind::BFloat16) => Self::Cuda,
            _ => Self::Loop,
        }
    }

    /// Name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Grouped => "grouped",
            Self::Cuda => "cuda",
            Self::Padded => "padded",
            Self::Fused => "fused",
            Self::FusedBf16 => "fused-bf16",
        }
    }
}

/// Sizes and kind of a bank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertShape {
    /// Number of experts.
    pub experts: i64,
    /// Model width.
    pub width: i64,
    /// Hidden width of one expert.
    pub hidden: i64,
    /// Nonlinearity.
    pub activation: Activation,
    /// Whether the two outer maps have biases.
    pub bias: bool,
    /// Factor on the initial output weights; `1 / sqrt(2 layers)` keeps a deep stream's variance.
    pub output_scale: f64,
}

/// `E` feed-forward networks.
#[derive(Debug)]
pub struct Experts {
    w1_ehd: Tensor,
    gate_ehd: Option<Tensor>,
    w2_edh: Tensor,
    b1_eh: Option<Tensor>,
    b2_ed: Option<Tensor>,
    activation: Activation,
    exec: ExpertExec,
    fused: Option<FusedBank>,
    cuda: Option<CudaBank>,
    precision: Precision,
}

/// One expert's weights, views into the bank.
struct One {
    w1_hd: Tensor,
    gate_hd: Option<Tensor>,
    w2_dh: Tensor,
    b1_h: Option<Tensor>,
    b2_d: Option<Tensor>,
}

impl Experts {
    /// Fresh experts under `params`.
    pub fn new(params: &Params<'_>, shape: ExpertShape, exec: ExpertExec) -> Self {
        let ExpertShape { experts: e, width: d, hidden: h, activation, bias, output_scale } = shape;
        let std = |fan_in: i64| (1.0 / fan_in as f64).sqrt();
        let bank = Self {
            w1_ehd: params.matrix("w1", &[e, h, d], std(d)),
            gate_ehd: activation.gated().then(|| params.matrix("gate", &[e, h, d], std(d))),
            w2_edh: params.matrix("w2", &[e, d, h], std(h) * output_scale),
            b1_eh: bias.then(|| params.constant("b1", &[e, h], 0.0)),
            b2_ed: bias.then(|| params.constant("b2", &[e, d], 0.0)),
            activation,
            exec: ExpertExec::Loop,
            fused: None,
            cuda: None,
            precision: Precision::Fp32,
        };
        bank.with_exec(exec)
    }

    /// Number of experts.
    pub fn count(&self) -> i64 {
        self.w1_ehd.size()[0]
    }

    /// Values in one expert's parameters.
    pub fn params_per_expert(&self) -> usize {
        let optional = [&self.gate_ehd, &self.b1_eh, &self.b2_ed].into_iter().flatten();
        let all = [&self.w1_ehd, &self.w2_edh].into_iter().chain(optional);
        all.map(Tensor::numel).sum::<usize>() / self.count() as usize
    }

    /// Every expert's matrices and biases in a row, without a graph: `[e, m]`.
    pub fn weights_em(&self) -> Tensor {
        let optional = [&self.gate_ehd, &self.b1_eh, &self.b2_ed].into_iter().flatten();
        let all = [&self.w1_ehd, &self.w2_edh].into_iter().chain(optional);
        let flat: Vec<Tensor> = all.map(|values| values.detach().flatten(1, -1)).collect();
        Tensor::cat(&flat, 1)
    }

    /// What every expert makes of every row, whoever would read it, without a graph:
    /// `[n, d] -> [e, n, d]`.
    pub fn outputs_end(&self, x_nd: &Tensor) -> Tensor {
        let _guard = tch::no_grad_guard();
        let of = |one: One| one.forward(x_nd, self.activation);
        Tensor::stack(&self.one_by_one().into_iter().map(of).collect::<Vec<_>>(), 0)
    }

    /// Products of one row in one expert: the values of its matrices.
    pub(crate) fn products(&self) -> f64 {
        let matrices = [&self.w1_ehd, &self.w2_edh].into_iter().chain(&self.gate_ehd);
        matrices.map(|matrix| matrix.numel() as f64).sum::<f64>() / self.count() as f64
    }

    /// Carries out a plan: dispatch, experts, combine. `[g, t, d] -> [g, t, d]`.
    pub fn execute(&self, x_gtd: &Tensor, plan: &TensorPlan) -> Tensor {
        match (&self.fused, &self.cuda, plan) {
            (Some(bank), _, TensorPlan::Sparse(rows)) => self.execute_fused(bank, x_gtd, rows),
            (_, Some(bank), TensorPlan::Sparse(rows)) => self.execute_cuda(bank, x_gtd, rows),
            _ if self.precision == Precision::Bf16 => {
                let x_nd = self.precision.factor(&plan.dispatch(x_gtd));
                let y_nd = self.rounded().forward(&x_nd, &plan.load_e());
                plan.combine(&y_nd.to_kind(x_gtd.kind()))
            }
            _ => plan.combine(&self.forward(&plan.dispatch(x_gtd), &plan.load_e())),
        }
    }

    /// The only expert on every token, whatever axes stand before the width: `[.., d] -> [.., d]`.
    pub fn dense(&self, x: &Tensor) -> Tensor {
        if let Some(bank) = &self.fused {
            return self.dense_fused(bank, x);
        }
        if self.precision == Precision::Bf16 {
            return self.rounded().dense(&self.precision.factor(x)).to_kind(x.kind());
        }
        self.one_by_one()[0].forward(x, self.activation)
    }

    /// Runs every expert on its rows. `x_nd` is sorted by expert, `load_e` says how many rows each
    /// has. `[n, d] -> [n, d]`.
    pub fn forward(&self, x_nd: &Tensor, load_e: &Tensor) -> Tensor {
        match self.exec {
            ExpertExec::Grouped | ExpertExec::Cuda => self.forward_grouped(x_nd, load_e),
            ExpertExec::Padded => self.forward_padded(x_nd, load_e),
            _ if self.count() == 1 => self.dense(x_nd),
            // The fused kernels take plans; rows without one are products like any others.
            ExpertExec::Loop | ExpertExec::Fused | ExpertExec::FusedBf16 => {
                self.forward_loop(x_nd, load_e)
            }
        }
    }

    /// The same weights, run another way.
    pub fn with_exec(&self, exec: ExpertExec) -> Self {
        let share = |t: &Option<Tensor>| t.as_ref().map(Tensor::shallow_clone);
        Self {
            w1_ehd: self.w1_ehd.shallow_clone(),
            gate_ehd: share(&self.gate_ehd),
            w2_edh: self.w2_edh.shallow_clone(),
            b1_eh: share(&self.b1_eh),
            b2_ed: share(&self.b2_ed),
            activation: self.activation,
            exec,
            fused: self.fused_bank(exec),
            cuda: self.cuda_bank(exec),
            precision: self.precision,
        }
    }

    fn bank_tensors(&self) -> BankTensors<'_> {
        BankTensors {
            w1_ehd: &self.w1_ehd,
            gate_ehd: self.gate_ehd.as_ref(),
            w2_edh: &self.w2_edh,
            b1_eh: self.b1_eh.as_ref(),
            b2_ed: self.b2_ed.as_ref(),
        }
    }

    /// The same weights with products in `precision`, in the best way for it.
    pub fn with_precision(&self, precision: Precision) -> Self {
        let best = ExpertExec::best(self.w1_ehd.device(), self.w1_ehd.kind());
        let exec = match (best, precision) {
            (ExpertExec::Fused, Precision::Bf16) => ExpertExec::FusedBf16,
            (exec, _) => exec,
        };
        Self { precision, ..self.with_exec(exec) }
    }

    /// The weights as factors of products in `bf16`, with their graph.
    fn rounded(&self) -> Self {
        let round = |t: &Tensor| t.to_kind(Kind::BFloat16);
        let exec = ExpertExec::best(self.w1_ehd.device(), Kind::BFloat16);
        let bank = Self {
            w1_ehd: round(&self.w1_ehd),
            gate_ehd: self.gate_ehd.as_ref().map(round),
            w2_edh: round(&self.w2_edh),
            b1_eh: self.b1_eh.as_ref().map(round),
            b2_ed: self.b2_ed.as_ref().map(round),
            activation: self.activation,
            exec: ExpertExec::Loop,
            fused: None,
            cuda: None,
            precision: Precision::Fp32,
        };
        bank.with_exec(exec)
    }

    fn forward_loop(&self, x_nd: &Tensor, load_e: &Tensor) -> Tensor {
        let rows_e = x_nd.split_with_sizes(moe_routers::convert::to_host_i64(load_e), 0);
        let busy = rows_e.iter().zip(self.one_by_one()).filter(|(x, _)| x.size()[0] > 0);
        let y_e: Vec<Tensor> = busy.map(|(x, one)| one.forward(x, self.activation)).collect();
        if y_e.is_empty() { x_nd.zeros_like() } else { Tensor::cat(&y_e, 0) }
    }

    /// Views of each expert's weights. `unbind` rather than indexing: its backward stacks the
    /// gradients once, where every index would add a full-size zero tensor.
    fn one_by_one(&self) -> Vec<One> {
        let each = |stacked: &Option<Tensor>| match stacked {
            Some(stacked) => stacked.unbind(0).into_iter().map(Some).collect(),
            None => (0..self.count()).map(|_| None).collect::<Vec<_>>(),
        };
        let outer = self.w1_ehd.unbind(0).into_iter().zip(self.w2_edh.unbind(0));
        let inner = each(&self.gate_ehd).into_iter().zip(each(&self.b1_eh)).zip(each(&self.b2_ed));
        outer
            .zip(inner)
            .map(|((w1_hd, w2_dh), ((gate_hd, b1_h), b2_d))| One {
                w1_hd,
                gate_hd,
                w2_dh,
                b1_h,
                b2_d,
            })
            .collect()
    }

    fn forward_grouped(&self, x_nd: &Tensor, load_e: &Tensor) -> Tensor {
        let end_e = load_e.cumsum(0, Kind::Int64).to_kind(Kind::Int);
        let grouped = |x: &Tensor, w: &Tensor| {
            x.internal_grouped_mm(&w.transpose(1, 2), Some(&end_e), None, None)
        };
        let expert_n = Tensor::repeat_interleave(load_e, None);
        let biased = |y: Tensor, b: &Option<Tensor>| match b {
            Some(b) => y + b.index_select(0, &expert_n),
            None => y,
        };
        let up_nh = biased(grouped(x_nd, &self.w1_ehd), &self.b1_eh);
        let h_nh = match &self.gate_ehd {
            Some(gate) => self.activation.apply(&grouped(x_nd, gate)) * up_nh,
            None => self.activation.apply(&up_nh),
        };
        biased(grouped(&h_nh, &self.w2_edh), &self.b2_ed)
    }
}

impl One {
    fn forward(&self, x_nd: &Tensor, activation: Activation) -> Tensor {
        let up_nh = x_nd.linear(&self.w1_hd, self.b1_h.as_ref());
        let h_nh = match &self.gate_hd {
            Some(gate_hd) => activation.apply(&x_nd.linear(gate_hd, None::<&Tensor>)) * up_nh,
            None => activation.apply(&up_nh),
        };
        h_nh.linear(&self.w2_dh, self.b2_d.as_ref())
    }
}
