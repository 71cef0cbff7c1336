//! The suite of [`crate::suite`] for a rule that is no router: outputs, losses and gradients of every
//! variant against the reference.

use super::{Balance, Config, NceOn, Noise, Params, Perturbation, StatsAxis, layer, reference};
use crate::config::Preset;
use crate::convert::{to_host, to_host1};
use crate::noise::{Noise as Draws, SeededNoise, Site};
use crate::tolerance::{relative_error, tolerance};
use ndarray::{Array2, ArrayView2};
use tch::{Device, Kind, Tensor};

const TOKENS: i64 = 7;
const WIDTH: i64 = 4;
const EXPERTS: i64 = 3;
/// Central differences in doubles.
const STEP: f64 = 1e-5;

fn normal(name: &'static str, shape: &[i64]) -> Tensor {
    let like = Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    SeededNoise::train(3, 0).normal(Site { layer: 0, name }, &like)
}

fn expert(e: usize, rows: &Tensor) -> Tensor {
    rows.sin() * (e as f64 + 1.0)
}

fn host_expert(e: usize, rows: ArrayView2<'_, f64>) -> Array2<f64> {
    rows.mapv(|v| v.sin() * (e as f64 + 1.0))
}

/// Everything that the layer reads: tokens, router, its bias, gate, its bias, draws, affine.
struct Case {
    inputs: Vec<Tensor>,
    sequence_t: Tensor,
    config: Config,
}

impl Case {
    fn new(config: Config) -> Self {
        let (t, d, e) = (TOKENS, WIDTH, EXPERTS);
        let shapes: [(_, &[i64]); 9] = [
            ("tokens", &[t, d]),
            ("router", &[e, d]),
            ("bias", &[e]),
            ("gate", &[d]),
            ("gate_bias", &[1]),
            ("eps1", &[t, d]),
            ("eps2", &[t, d]),
            ("weight", &[d]),
            ("shift", &[d]),
        ];
        let inputs = shapes.map(|(name, shape)| normal(name, shape).set_requires_grad(true));
        // The last token is alone in its sequence.
        let sequence_t = Tensor::from_slice(&[1i64, 0, 1, 0, 0, 1, 2]);
        Self { inputs: inputs.into(), sequence_t, config }
    }

    fn torch(&self) -> super::Layer {
        let [x, router, bias, gate, gate_b, eps1, eps2, weight, shift] = &self.inputs[..] else {
            unreachable!("nine inputs")
        };
        let params = Params {
            router_ed: router.shallow_clone(),
            bias_e: Some(bias.shallow_clone()),
            gate_w_d: Some(gate.shallow_clone()),
            gate_b: Some(gate_b.squeeze()),
        };
        let given = Perturbation {
            eps1_td: Some(eps1),
            eps2_td: Some(eps2),
            sequence_t: Some(&self.sequence_t),
            in_weight_d: Some(weight),
            in_bias_d: Some(shift),
        };
        layer(&self.config, &params, x, &given, expert)
    }

    fn host(&self) -> reference::Layer {
        let [x, router, bias, gate, gate_b, eps1, eps2, weight, shift] = &self.inputs[..] else {
            unreachable!("nine inputs")
        };
        let params = reference::Params {
            router_ed: to_host(router),
            bias_e: to_host1(bias),
            gate_w_d: to_host1(gate),
            gate_b: to_host1(gate_b)[0],
        };
        let given = reference::Perturbation {
            eps1_td: Some(to_host(eps1)),
            eps2_td: Some(to_host(eps2)),
            sequence_t: Some(
                crate::convert::to_host_i64(&self.sequence_t).iter().map(|&q| q as usize).collect(),
            ),
            in_weight_d: Some(to_host1(weight)),
            in_bias_d: Some(to_host1(shift)),
        };
        reference::layer(&self.config, &params, to_host(x).view(), &given, host_expert).unwrap()
    }

    /// Outputs squared and summed, plus the losses.
    fn host_objective(&self) -> f64 {
        let found = self.host();
        found.y_td.iter().map(|y| y * y).sum::<f64>() + found.aux
    }

    fn value_error(&self) -> f64 {
        let (got, want) = (self.torch(), self.host());
        let pairs = [
            (&got.y_td, &want.y_td),
            (&got.augmented.x_td, &want.augmented.x_td),
            (&got.augmented.std_td, &want.augmented.std_td),
            (&got.noisy_td, &want.noisy_td),
        ];
        let errors = pairs.iter().flat_map(|(got, want)| {
            let got = to_host(got);
            got.iter().zip(want.iter()).map(|(g, w)| relative_error(*g, *w)).collect::<Vec<_>>()
        });
        let aux = relative_error(got.aux.double_value(&[]), want.aux);
        errors.fold(aux, f64::max)
    }

    fn gradient_error(&self) -> f64 {
        let found = self.torch();
        (found.y_td.square().sum(None) + found.aux).backward();
        let mut worst = 0f64;
        for input in self.inputs.iter().filter(|input| input.grad().defined()) {
            let grad = input.grad().contiguous().view([-1]);
            for i in 0..input.numel() as i64 {
                let at = |h: f64| {
                    let _ = input.detach().view([-1]).get(i).g_add_scalar_(h);
                    let objective = self.host_objective();
                    let _ = input.detach().view([-1]).get(i).g_add_scalar_(-h);
                    objective
                };
                let central = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                worst = worst.max(relative_error(grad.double_value(&[i]), central));
            }
        }
        worst
    }
}

#[test]
fn every_variant_matches_its_reference() {
    let paper = || Config { top_k: 2, beta: 0.7, alpha: 0.3, ..Config::preset("paper") };
    let variants = [
        paper(),
        Config { unbiased: false, noise_scale: 0.4, ..paper() },
        Config { stats_axis: StatsAxis::Features, ..paper() },
        Config { reroute: false, balance: Balance::Kl, ..paper() },
        Config { nce_on: NceOn::Outputs, tau: 0.5, ..paper() },
        Config { noise: Noise::InstanceNorm, scale_mul: 0.5, scale_add: 0.2, ..paper() },
    ];
    let limits = tolerance(Kind::Double);
    for config in variants {
        let case = Case::new(config);
        let (value, gradient) = (case.value_error(), case.gradient_error());
        assert!(value <= limits.value, "values differ by {value:.1e}: {:?}", case.config);
        assert!(gradient <= limits.gradient, "gradients by {gradient:.1e}: {:?}", case.config);
    }
}

/// Identical tokens have no spread, and the root of no spread has no gradient: never NaN.
#[test]
fn no_spread_gives_no_nan() {
    let mut case = Case::new(Config::preset("paper"));
    case.inputs[0] =
        Tensor::ones([TOKENS, WIDTH], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let found = case.torch();
    (found.y_td.square().sum(None) + found.aux).backward();
    let finite = |t: &Tensor| t.isfinite().all().int64_value(&[]) == 1;
    assert!(finite(&found.y_td) && finite(&case.inputs[0].grad()));
}
