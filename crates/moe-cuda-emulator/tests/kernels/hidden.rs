//! The hidden layer and its gradients, against formulas in `f64` and their central differences.

use crate::memory::{DTYPES, Memory, ORDERS, kernels, rounded, widened};
use crate::tolerance::{DIFFERENCES, STEP, assert_close, tolerance};
use moe_core::score::{normal_cdf, sigmoid};
use moe_cuda::kernels::{Hidden, HiddenBackward};
use moe_cuda::{Activation, Address, Dtype};
use moe_cuda_emulator::Emulator;
use proptest::prelude::*;

const KINDS: [Activation; 4] =
    [Activation::Relu, Activation::Gelu, Activation::Swiglu, Activation::Geglu];

fn gated(kind: Activation) -> bool {
    matches!(kind, Activation::Swiglu | Activation::Geglu)
}

fn oracle(kind: Activation, gate: f64, up: f64) -> f64 {
    match kind {
        Activation::Relu => up.max(0.0),
        Activation::Gelu => up * normal_cdf(up),
        Activation::Swiglu => gate * sigmoid(gate) * up,
        Activation::Geglu => gate * normal_cdf(gate) * up,
    }
}

/// Derivatives by gate and up.
fn slopes(kind: Activation, gate: f64, up: f64) -> [f64; 2] {
    let by_gate = oracle(kind, gate + STEP, up) - oracle(kind, gate - STEP, up);
    let by_up = oracle(kind, gate, up + STEP) - oracle(kind, gate, up - STEP);
    [by_gate, by_up].map(|difference| difference / (2.0 * STEP))
}

/// A layer of `rows` rows in memory for two more.
struct Layer {
    kind: Activation,
    dtype: Dtype,
    rows: usize,
    hidden: usize,
    gate: Vec<f32>,
    up: Vec<f32>,
    memory: [Memory; 3],
}

impl Layer {
    fn new(kind: Activation, dtype: Dtype, (rows, hidden): (usize, usize), seed: u64) -> Self {
        let len = (rows + 2) * hidden;
        let (gate, up) = (rounded(dtype, seed, len), rounded(dtype, seed ^ 1, len));
        let memory = [
            Memory::values(dtype, &gate),
            Memory::values(dtype, &up),
            Memory::i32s(&[i32::try_from(rows).unwrap()]),
        ];
        Self { kind, dtype, rows, hidden, gate, up, memory }
    }

    fn arguments(&mut self) -> Hidden {
        let [gate, up, rows] = self.memory.each_mut().map(Memory::address);
        Hidden {
            activation: self.kind,
            gate_nh: if gated(self.kind) { gate } else { Address::NULL },
            up_nh: up,
            rows,
            most_rows: self.rows + 2,
            hidden: self.hidden,
        }
    }

    /// Gate and up of each value of the rows there are.
    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let pairs = self.gate.iter().zip(&self.up).map(|(g, u)| (f64::from(*g), f64::from(*u)));
        pairs.take(self.rows * self.hidden)
    }

    fn room(&self) -> Memory {
        Memory::room_of(self.dtype, (self.rows + 2) * self.hidden)
    }
}

/// The rows there are agree; those behind them are untouched.
fn agrees(what: &str, layer: &Layer, got: &Memory, want: &[f64], tolerance: f64) {
    let got = got.to_values(layer.dtype);
    assert_close(what, &got[..want.len()], want, tolerance);
    assert!(got[want.len()..].iter().all(|v| v.is_nan()), "{what}: a row that is none");
}

fn forward(on: &Emulator, layer: &mut Layer) {
    let mut a_nh = layer.room();
    let (it, dtype) = (layer.arguments(), layer.dtype);
    // SAFETY: the addresses are those of tensors of the layer's size.
    unsafe { kernels(on).activation_forward(dtype, &it, a_nh.address()) }.unwrap();
    let want: Vec<f64> = layer.pairs().map(|(g, u)| oracle(layer.kind, g, u)).collect();
    agrees("a", layer, &a_nh, &want, tolerance(dtype));
}

fn backward(on: &Emulator, layer: &mut Layer) {
    let (dtype, rows, hidden) = (layer.dtype, layer.rows, layer.hidden);
    let da = rounded(dtype, 8, (rows + 2) * hidden);
    let weight = rounded(Dtype::F32, 9, rows + 2);
    let (mut da_nh, mut weight_n) = (Memory::values(dtype, &da), Memory::f32s(&weight));
    let [mut dgate, mut dup, mut scaled] = [layer.room(), layer.room(), layer.room()];
    let mut dweight = Memory::room(rows + 2, 4);
    let gates = gated(layer.kind);
    let down = HiddenBackward {
        da_nh: da_nh.address(),
        weight_n: weight_n.address(),
        dgate_nh: if gates { dgate.address() } else { Address::NULL },
        dup_nh: dup.address(),
        scaled_nh: scaled.address(),
        dweight_n: dweight.address(),
    };
    let it = layer.arguments();
    // SAFETY: as above.
    unsafe { kernels(on).activation_backward(dtype, &it, &down) }.unwrap();

    let (mut want_gate, mut want_up, mut want_scaled) = (Vec::new(), Vec::new(), Vec::new());
    let mut want_weight = vec![0.0; rows];
    for (i, (g, u)) in layer.pairs().enumerate() {
        let (w, da, a) =
            (f64::from(weight[i / hidden]), f64::from(da[i]), oracle(layer.kind, g, u));
        let [by_gate, by_up] = slopes(layer.kind, g, u);
        want_gate.push(w * da * by_gate);
        want_up.push(w * da * by_up);
        want_scaled.push(w * a);
        want_weight[i / hidden] += da * a;
    }
    let bound = tolerance(dtype) + DIFFERENCES;
    if gates {
        agrees("dgate", layer, &dgate, &want_gate, bound);
    } else {
        assert!(dgate.to_values(dtype).iter().all(|v| v.is_nan()), "a gate that is none");
    }
    agrees("dup", layer, &dup, &want_up, bound);
    agrees("scaled", layer, &scaled, &want_scaled, bound);
    // A sum of one sign less never has fewer bits than its terms.
    let got = widened(&dweight.to_f32s());
    assert_close(
        "dweight",
        &got[..rows],
        &want_weight,
        tolerance(Dtype::F32) * hidden.max(1) as f64,
    );
    assert!(got[rows..].iter().all(|v| v.is_nan()));
}

/// Whole packs and odd tails, no rows, more rows than one turn of a block.
#[test]
fn values_and_gradients() {
    for (rows, hidden) in [(0, 8), (1, 1), (3, 8), (5, 13), (2, 300), (19, 24)] {
        for on in &ORDERS {
            for (kind, dtype) in KINDS.into_iter().flat_map(|kind| DTYPES.map(|d| (kind, d))) {
                let mut layer = Layer::new(kind, dtype, (rows, hidden), 21);
                forward(on, &mut layer);
                backward(on, &mut layer);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_shape(rows in 0usize..20, hidden in 1usize..70, seed in any::<u64>()) {
        let (kind, on) = (KINDS[(seed % 4) as usize], &ORDERS[(seed / 4 % 2) as usize]);
        let mut layer = Layer::new(kind, DTYPES[(seed / 8 % 2) as usize], (rows, hidden), seed);
        forward(on, &mut layer);
        backward(on, &mut layer);
    }
}
