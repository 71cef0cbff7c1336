//! The GPU path on a CPU: grouped products by libtorch, kernels by the emulator, held against plain
//! operations and their autograd.
//!
//! Axis letters: `t` tokens, `n` routed rows sorted by expert, `d` width, `h` hidden width, `e` experts,
//! `k` choices.

use moe_cuda::{Activation, Launcher, Score};
use moe_cuda_emulator::Emulator;
use moe_torch_sys::cuda::{CudaBank, CudaRunError, route};
use moe_torch_sys::fused::{BankTensors, Rows};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Largest allowed difference, relative to the largest expected magnitude.
fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => 3e-2,
        _ => 8e-6,
    }
}

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

const ACTIVATIONS: [Activation; 4] =
    [Activation::Relu, Activation::Gelu, Activation::Swiglu, Activation::Geglu];

fn emulator(backwards: bool) -> Arc<dyn Launcher> {
    Arc::new(Emulator { backwards })
}

/// Values in about -1 to 1 that `kind` holds exactly.
fn values(seed: i64, size: &[i64], kind: Kind) -> Tensor {
    let count: i64 = size.iter().product();
    let steps =
        Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.618_034 + seed as f64 * 0.377;
    ((steps * 12.9898).sin() * 0.9).to_kind(kind).view(size)
}

fn leaf(tensor: Tensor) -> Tensor {
    tensor.set_requires_grad(true)
}

/// A bank, tokens and the gradient that comes from above.
struct Scene {
    activation: Activation,
    x_td: Tensor,
    w1_ehd: Tensor,
    gate_ehd: Tensor,
    w2_edh: Tensor,
    dy_td: Tensor,
}

impl Scene {
    fn new(activation: Activation, kind: Kind, [t, d, h, e]: [i64; 4]) -> Self {
        let w = |seed, size: &[i64]| leaf(values(seed, size, kind));
        Self {
            activation,
            x_td: leaf(values(1, &[t, d], kind)),
            w1_ehd: w(2, &[e, h, d]),
            gate_ehd: w(3, &[e, h, d]),
            w2_edh: w(4, &[e, d, h]),
            dy_td: values(5, &[t, d], kind),
        }
    }

    fn gated(&self) -> bool {
        matches!(self.activation, Activation::Swiglu | Activation::Geglu)
    }

    fn weights(&self) -> BankTensors<'_> {
        BankTensors {
            w1_ehd: &self.w1_ehd,
            gate_ehd: self.gated().then_some(&self.gate_ehd),
            w2_edh: &self.w2_edh,
            b1_eh: None,
            b2_ed: None,
        }
    }

    /// One expert on some rows, by plain operations.
    fn expert(&self, e: i64, x: &Tensor) -> Tensor {
        let product = |w: &Tensor, x: &Tensor| x.matmul(&w.to_kind(Kind::Double).get(e).tr());
        let up = product(&self.w1_ehd, x);
        let gate = || product(&self.gate_ehd, x);
        let a = match self.activation {
            Activation::Relu => up.relu(),
            Activation::Gelu => up.gelu("none"),
            Activation::Swiglu => gate().silu() * up,
            Activation::Geglu => gate().gelu("none") * up,
        };
        product(&self.w2_edh, &a)
    }

    /// The layer in `f64`: `weight_te` is zero where an expert does not read a token.
    fn plain(&self, weight_te: &Tensor) -> Tensor {
        let x_td = self.x_td.to_kind(Kind::Double);
        let weight_te = weight_te.to_kind(Kind::Double);
        let one = |e: i64| self.expert(e, &x_td) * weight_te.narrow(1, e, 1);
        (0..self.w1_ehd.size()[0]).map(one).fold(x_td.zeros_like(), |sum, y| sum + y)
    }

    /// Gradients of all leaves, which are cleared.
    fn gradients(&mut self, y_td: &Tensor) -> Vec<Tensor> {
        (y_td * self.dy_td.to_kind(y_td.kind())).sum(None::<Kind>).backward();
        let leaves = [&mut self.x_td, &mut self.w1_ehd, &mut self.gate_ehd, &mut self.w2_edh];
        let all = leaves.map(|leaf| {
            let grad = leaf.grad();
            let own = if grad.defined() { grad.copy() } else { Tensor::new() };
            leaf.zero_grad();
            own
        });
        all.into_iter().collect()
    }
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor, kind: Kind) {
    assert_eq!(got.size(), want.size(), "{what}");
    if want.numel() == 0 {
        return;
    }
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    let error = (&got - &want).abs().max().double_value(&[]);
    let scale = want.abs().max().double_value(&[]).max(1e-3);
    // Written so that NaN fails.
    assert!(error <= tolerance(kind) * scale, "{what}: {error} at scale {scale}");
}

fn assert_all_close(got: &[Tensor], want: &[Tensor], kind: Kind) {
    for ((name, got), want) in ["dx", "dw1", "dgate", "dw2"].iter().zip(got).zip(want) {
        assert_eq!(got.defined(), want.defined(), "{name}");
        if want.defined() {
            assert_close(name, got, want, kind);
        }
    }
}

/// Rows sorted by expert where `weight_te` is not zero, with the weights taken from it on the graph.
fn sorted_rows(weight_te: &Tensor) -> (Tensor, Tensor, Tensor) {
    let weight_et = weight_te.tr();
    let there = weight_et.detach().not_equal(0.0);
    let places = there.nonzero();
    let weight_n = weight_et.masked_select(&there);
    let load_e = there.sum_dim_intlist(1, false, Kind::Int64);
    (places.select(1, 1).contiguous(), weight_n, load_e)
}

/// Weights of a plan in which expert 1 reads nothing, token 2 is read by none, token 0 by all others.
fn weights_te(t: i64, e: i64) -> Tensor {
    let weight_te = values(9, &[t, e], Kind::Float) + 1.0;
    let keep = values(10, &[t, e], Kind::Float).gt(0.2);
    let _ = keep.get(0).fill_(1);
    if t > 2 {
        let _ = keep.get(2).fill_(0);
    }
    if e > 1 {
        let _ = keep.select(1, 1).fill_(0);
    }
    leaf(weight_te * keep)
}

const SHAPES: [[i64; 4]; 4] = [[1, 8, 8, 1], [5, 8, 16, 3], [17, 16, 8, 4], [40, 24, 40, 5]];

#[test]
fn rows_of_any_plan_with_all_gradients() {
    for (shape, kind) in SHAPES.into_iter().flat_map(|shape| KINDS.map(|kind| (shape, kind))) {
        for activation in ACTIVATIONS {
            let mut scene = Scene::new(activation, kind, shape);
            let mut weight_te = weights_te(shape[0], shape[3]);
            let want = scene.plain(&weight_te);
            let want_grads = scene.gradients(&want);
            let want_weight = weight_te.grad().copy();
            weight_te.zero_grad();

            let (token_n, weight_n, load_e) = sorted_rows(&weight_te);
            let rows = Rows { token_n: &token_n, weight_n: &weight_n, load_e: &load_e };
            let bank = CudaBank::new(emulator(false), activation);
            let got = bank.run(&scene.x_td, &rows, &scene.weights()).unwrap();
            assert_eq!(got.kind(), kind);
            assert_close("y", &got, &want, kind);
            let got_grads = scene.gradients(&got);
            assert_all_close(&got_grads, &want_grads, kind);
            // Where no row is, plain operations still have a gradient.
            let there = weight_te.detach().not_equal(0.0);
            assert_close("dweight", &weight_te.grad(), &(want_weight * there), kind);
        }
    }
}

/// The whole way from logits: routing, plan and experts by kernels, against topk and plain operations.
#[test]
fn from_logits_to_outputs_and_back() {
    let score = Score { sigmoid: false, renormalise: true };
    for ([t, d, h, e], k) in [([1, 8, 8, 4], 1), ([6, 8, 16, 3], 3), ([40, 16, 8, 5], 2)] {
        for kind in KINDS {
            let mut scene = Scene::new(Activation::Swiglu, kind, [t, d, h, e]);
            let mut logit_te = leaf(values(7, &[t, e], kind));
            let score_te = logit_te.to_kind(Kind::Double).softmax(-1, Kind::Double);
            let (best_tk, expert_tk) = score_te.topk(k, -1, true, true);
            let gate_tk = &best_tk / best_tk.sum_dim_intlist(-1, true, Kind::Double);
            let weight_te = score_te.zeros_like().scatter(1, &expert_tk, &gate_tk);
            let want = scene.plain(&weight_te) + &score_te.select(1, 0).unsqueeze(1);
            let want_grads = scene.gradients(&want);
            let want_logit = logit_te.grad().copy();
            logit_te.zero_grad();

            let launcher = emulator(true);
            let routed = route(&launcher, &logit_te.unsqueeze(0), k as usize, score).unwrap();
            assert_eq!(routed.expert_gtk.to_kind(Kind::Int64), expert_tk.unsqueeze(0));
            let choices = (&routed.expert_gtk, &routed.gate_gtk);
            let bank = CudaBank::new(launcher, Activation::Swiglu);
            let y_td = bank.run_choices(&scene.x_td, choices, None, &scene.weights()).unwrap();
            let got = y_td + routed.score_gte.get(0).select(1, 0).unsqueeze(1);
            assert_close("y", &got, &want, kind);
            let got_grads = scene.gradients(&got);
            assert_all_close(&got_grads, &want_grads, kind);
            assert_close("dlogit", &logit_te.grad(), &want_logit, kind);
        }
    }
}

/// Room for all choices, of which a capacity of one keeps few: what lies past the rows is garbage, and
/// reaches nothing. A capacity of nothing leaves no row at all.
#[test]
fn a_capacity_leaves_rows_that_do_not_exist() {
    for capacity in [0i64, 1] {
        let mut scene = Scene::new(Activation::Geglu, Kind::Float, [9, 8, 8, 3]);
        let expert_gtk = Tensor::from_slice(&[0i32, 1, 1, 0, 2, 0, 0, 1, 1]).view([1, 9, 1]);
        let mut gate_gtk = leaf(values(3, &[1, 9, 1], Kind::Float));
        let first = [0, 1, 4].map(|t| i64::from(capacity > 0) * t);
        let kept = Tensor::zeros([9, 3], (Kind::Float, Device::Cpu));
        for (e, t) in first.into_iter().enumerate().filter(|_| capacity > 0) {
            let _ = kept.get(t).get(e as i64).fill_(1.0);
        }
        let want = scene.plain(&(gate_gtk.view([9, 1]) * &kept));
        let want_grads = scene.gradients(&want);
        let want_gate = gate_gtk.grad().copy();
        gate_gtk.zero_grad();

        let bank = CudaBank::new(emulator(false), Activation::Geglu);
        let choices = (&expert_gtk, &gate_gtk);
        let got = bank
            .run_choices(&scene.x_td, choices, Some(capacity as usize), &scene.weights())
            .unwrap();
        assert_close("y", &got, &want, Kind::Float);
        let got_grads = scene.gradients(&got);
        assert_all_close(&got_grads, &want_grads, Kind::Float);
        assert_close("dgate", &gate_gtk.grad(), &want_gate, Kind::Float);
    }
}

#[test]
fn two_runs_have_the_same_bits_in_either_order_of_threads() {
    let run = |backwards| {
        let mut scene = Scene::new(Activation::Swiglu, Kind::BFloat16, [40, 24, 40, 5]);
        let (token_n, weight_n, load_e) = sorted_rows(&weights_te(40, 5));
        let rows = Rows { token_n: &token_n, weight_n: &weight_n, load_e: &load_e };
        let bank = CudaBank::new(emulator(backwards), Activation::Swiglu);
        let y_td = bank.run(&scene.x_td, &rows, &scene.weights()).unwrap();
        let grads = scene.gradients(&y_td);
        (y_td.detach(), grads)
    };
    let (first, second) = (run(false), run(true));
    assert_eq!(first.0, second.0);
    assert_eq!(first.1, second.1);
}

/// libtorch hands down a gradient of stride zero from a plain sum.
#[test]
fn a_gradient_without_strides_is_taken() {
    let scene = Scene::new(Activation::Swiglu, Kind::Float, [5, 8, 8, 2]);
    let (token_n, weight_n, load_e) = sorted_rows(&weights_te(5, 2));
    let rows = Rows { token_n: &token_n, weight_n: &weight_n, load_e: &load_e };
    let bank = CudaBank::new(emulator(false), Activation::Swiglu);
    let y_td = bank.run(&scene.x_td, &rows, &scene.weights()).unwrap();
    y_td.sum(None::<Kind>).backward();
    assert!(scene.x_td.grad().abs().sum(None::<Kind>).double_value(&[]) > 0.0);
}

#[test]
fn without_gradients_nothing_is_on_the_graph() {
    let scene = Scene::new(Activation::Relu, Kind::Float, [5, 8, 8, 2]);
    let (token_n, weight_n, load_e) = sorted_rows(&weights_te(5, 2));
    let rows = Rows { token_n: &token_n, weight_n: &weight_n, load_e: &load_e };
    let bank = CudaBank::new(emulator(false), Activation::Relu);
    let run = || bank.run(&scene.x_td, &rows, &scene.weights()).unwrap();
    assert!(run().requires_grad());
    assert!(!tch::no_grad(run).requires_grad());
}

#[test]
fn what_the_kernels_lack_is_refused() {
    let scene = Scene::new(Activation::Relu, Kind::Double, [5, 8, 8, 2]);
    let (token_n, weight_n, load_e) = sorted_rows(&weights_te(5, 2));
    let rows = Rows { token_n: &token_n, weight_n: &weight_n, load_e: &load_e };
    let bank = CudaBank::new(emulator(false), Activation::Relu);
    let error = bank.run(&scene.x_td, &rows, &scene.weights()).unwrap_err().to_string();
    assert_eq!(error, "Double tokens: the kernels take Float and BFloat16");
    let bias = values(1, &[2, 8], Kind::Float);
    let weights = BankTensors { b1_eh: Some(&bias), ..scene.weights() };
    let error = bank.run(&scene.x_td, &rows, &weights).unwrap_err();
    assert!(matches!(error, CudaRunError::Bias), "{error}");
}
