//! Checks the experts on a GPU: agreement with `f64` on the CPU, and the same bits twice.
//!
//! `cargo run --release -p moe-torch-sys --example cuda_check`, on a machine with a GPU and a libtorch with a
//! CUDA part. Exit code 2 if anything fails. **Has not yet run on a GPU.**
//!
//! Axis letters: `t` tokens, `d` width, `h` hidden width, `e` experts, `k` choices.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a check talks to its terminal")]

use moe_cuda::{Activation, Launcher, Score};
use moe_torch_sys::cuda::{CudaBank, device, route};
use moe_torch_sys::fused::BankTensors;
use std::process::ExitCode;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// The largest relative error that tensors of `bf16` experts may have, see [`error`].
const BF16_ERROR: f64 = 1e-2;

/// `[t, d, h, e, k]`: one token, empty experts, `k = E`, and a layer of real proportions.
const SHAPES: [[i64; 5]; 4] =
    [[1, 64, 64, 8, 2], [300, 128, 64, 64, 2], [77, 64, 128, 4, 4], [2048, 1024, 512, 32, 8]];

fn main() -> ExitCode {
    match checks() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn checks() -> Result<bool, Box<dyn std::error::Error>> {
    let part = moe_torch_sys::load_cuda();
    if tch::Cuda::device_count() == 0 {
        return Err(format!("no CUDA device that libtorch sees ({part:?})").into());
    }
    let launcher = device(0)?;
    let mut fine = true;
    for shape in SHAPES {
        let layer = Layer::new(shape);
        let (first, second) = (layer.on_device(&launcher)?, layer.on_device(&launcher)?);
        let want = layer.plain();
        let worst = first.iter().zip(&want).map(|(a, b)| error(a, b)).fold(0.0, f64::max);
        let same = first == second;
        println!(
            "{shape:?}: error {worst:.1e}, two runs {}",
            if same { "agree" } else { "DIFFER" }
        );
        // Written so that NaN fails.
        fine &= same && worst <= BF16_ERROR;
    }
    println!("{}", if fine { "all is well" } else { "FAILED" });
    Ok(fine)
}

/// Values that `bf16` holds exactly, on the CPU in `f64`.
struct Layer {
    x_td: Tensor,
    logit_te: Tensor,
    w1_ehd: Tensor,
    gate_ehd: Tensor,
    w2_edh: Tensor,
    dy_td: Tensor,
    k: i64,
}

impl Layer {
    fn new([t, d, h, e, k]: [i64; 5]) -> Self {
        tch::manual_seed(0);
        let random = |size: &[i64], scale: f64| {
            let values = Tensor::randn(size, (Kind::Float, Device::Cpu)) * scale;
            values.to_kind(Kind::BFloat16).to_kind(Kind::Double)
        };
        let (by_d, by_h) = ((d as f64).sqrt().recip(), (h as f64).sqrt().recip());
        Self {
            x_td: random(&[t, d], 1.0),
            logit_te: random(&[t, e], 1.0),
            w1_ehd: random(&[e, h, d], by_d),
            gate_ehd: random(&[e, h, d], by_d),
            w2_edh: random(&[e, d, h], by_h),
            dy_td: random(&[t, d], 1.0),
            k,
        }
    }

    /// Fresh leaves of the graph.
    fn leaves(&self, device: Device, kind: Kind) -> [Tensor; 5] {
        [&self.x_td, &self.logit_te, &self.w1_ehd, &self.gate_ehd, &self.w2_edh]
            .map(|tensor| tensor.to_device(device).to_kind(kind).copy().set_requires_grad(true))
    }

    /// Output and gradients, in `f64` on the CPU.
    fn finish(&self, y_td: &Tensor, leaves: [Tensor; 5]) -> Vec<Tensor> {
        let dy_td = self.dy_td.to_device(y_td.device()).to_kind(y_td.kind());
        (y_td * dy_td).sum(None::<Kind>).backward();
        let host = |tensor: &Tensor| tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double);
        std::iter::once(host(y_td)).chain(leaves.iter().map(|leaf| host(&leaf.grad()))).collect()
    }

    fn on_device(
        &self,
        launcher: &Arc<dyn Launcher>,
    ) -> Result<Vec<Tensor>, Box<dyn std::error::Error>> {
        let leaves = self.leaves(Device::Cuda(0), Kind::BFloat16);
        let [x_td, logit_te, w1_ehd, gate_ehd, w2_edh] = &leaves;
        let score = Score { sigmoid: false, renormalise: true };
        let routed = route(launcher, &logit_te.unsqueeze(0), self.k as usize, score)?;
        let gate_ehd = Some(gate_ehd);
        let weights = BankTensors { w1_ehd, gate_ehd, w2_edh, b1_eh: None, b2_ed: None };
        let bank = CudaBank::new(Arc::clone(launcher), Activation::Swiglu);
        let choices = (&routed.expert_gtk, &routed.gate_gtk);
        let y_td = bank.run_choices(x_td, choices, None, &weights)?;
        Ok(self.finish(&y_td, leaves))
    }

    /// The same by plain operations, one expert after the other.
    fn plain(&self) -> Vec<Tensor> {
        let leaves = self.leaves(Device::Cpu, Kind::Double);
        let [x_td, logit_te, w1_ehd, gate_ehd, w2_edh] = &leaves;
        // As the kernel: equal logits, which `bf16` has many of, go to the lower index.
        let expert_tk = logit_te.detach().argsort_stable(true, -1, true).narrow(-1, 0, self.k);
        let score_te = logit_te.softmax(-1, Kind::Double);
        let best_tk = score_te.gather(1, &expert_tk, false);
        let gate_tk = &best_tk / best_tk.sum_dim_intlist(-1, true, Kind::Double);
        let weight_te = score_te.zeros_like().scatter(1, &expert_tk, &gate_tk);
        let one = |e: i64| {
            let gate_th = x_td.matmul(&gate_ehd.get(e).tr()).silu();
            let hidden_th = gate_th * x_td.matmul(&w1_ehd.get(e).tr());
            hidden_th.matmul(&w2_edh.get(e).tr()) * weight_te.narrow(1, e, 1)
        };
        let y_td = (0..w1_ehd.size()[0]).map(one).fold(x_td.zeros_like(), |sum, y| sum + y);
        self.finish(&y_td, leaves)
    }
}

/// Root mean square of the difference, relative to that of what is wanted: the error of a whole tensor.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    let size = |tensor: &Tensor| tensor.square().mean(Kind::Double).sqrt().double_value(&[]);
    // One expert's share of a softmax over one expert has no gradient at all.
    size(&(got - want)) / size(want).max(1e-6)
}
