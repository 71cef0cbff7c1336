//! What the suite does not try: variants beyond the presets, several sequences in a group, padding,
//! capacity, the cost of a step, refusals.

use super::router::{EPS1, EPS2};
use super::*;
use crate::config::{ConfigError, RouterConfig, Settings};
use crate::convert::{to_host, to_host_i64, to_host1};
use crate::noise::{Noise as _, SeededNoise, Site};
use crate::params::ParamStore;
use crate::plan::TensorPlan;
use crate::router::{Aux, Dims, Phase, RouteCx, Router};
use crate::suite::check;
use crate::tolerance::{relative_error, tolerance};
use moe_core::{CapacityPolicy, DropOrder, HostInput, Limit};
use ndarray::{Array2, ArrayView2, s};
use std::cell::RefCell;
use tch::{Device, Kind};

const TOKENS: i64 = 7;
const WIDTH: i64 = 4;
const EXPERTS: i64 = 3;
/// Central differences in doubles.
const STEP: f64 = 1e-5;

/// Settings that no preset has, as presets of a paper for the suite.
const VARIANTS: Paper = Paper {
    id: "s2-moe-variants",
    presets: &["scaled", "features", "reuse", "outputs", "norm", "held", "held_norm", "single"],
    method: Method::Router(|settings| Ok(Box::new(variant(settings)?))),
    ..PAPER
};

fn variant(settings: &Settings) -> Result<Config, ConfigError> {
    let paper = || Config::preset("paper");
    let normed =
        || Config { noise: Noise::InstanceNorm, scale_mul: 0.5, scale_add: 0.2, ..paper() };
    Ok(match settings.get("preset").and_then(|name| name.as_str()) {
        Some("scaled") => Config { unbiased: false, noise_scale: 0.4, ..paper() },
        Some("features") => Config { stats_axis: StatsAxis::Features, ..paper() },
        Some("reuse") => Config { reroute: false, bias: false, ..paper() },
        Some("outputs") => Config { nce_on: NceOn::Outputs, tau: 0.5, ..paper() },
        Some("norm") => normed(),
        Some("held") => Config { detach_stats: true, ..paper() },
        Some("held_norm") => Config { detach_stats: true, ..normed() },
        _ => Config { top_k: 1, top_k_infer: 2, ..paper() },
    })
}

#[test]
fn every_variant_keeps_the_contract() {
    for variant in VARIANTS.presets {
        let report = check(&VARIANTS, variant).unwrap();
        assert_eq!(report.violations, [""; 0], "{variant}");
    }
}

fn normal(name: &'static str, shape: &[i64]) -> Tensor {
    let like = Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    SeededNoise::train(3, 0).normal(Site { layer: 0, name }, &like)
}

/// Several sequences in a group, one of a single token, padding, and the affine of the instance
/// norm, none of which a router of the suite meets: tokens, draws, weight and shift.
fn perturbed() -> [Tensor; 5] {
    let (t, d) = (TOKENS, WIDTH);
    let shapes: [(_, &[i64]); 5] = [
        ("tokens", &[1, t, d]),
        ("eps1", &[1, t, d]),
        ("eps2", &[1, t, d]),
        ("weight", &[d]),
        ("shift", &[d]),
    ];
    shapes.map(|(name, shape)| normal(name, shape).set_requires_grad(true))
}

const SEQUENCE_T: [i64; 7] = [1, 0, 1, 0, 0, 1, 2];
const PADDING_T: [bool; 7] = [false, false, false, false, true, false, false];

fn torch_copy(config: &Config, [x, eps1, eps2, weight, shift]: &[Tensor; 5]) -> Tensor {
    let sequence_gt = Tensor::from_slice(&SEQUENCE_T).unsqueeze(0);
    let given = Perturbation {
        eps1_gtd: Some(eps1),
        eps2_gtd: Some(eps2),
        sequence_gt: Some(&sequence_gt),
        in_weight_d: Some(weight),
        in_bias_d: Some(shift),
    };
    let padding_gt = Tensor::from_slice(&PADDING_T).unsqueeze(0);
    augment(config, x, &given, Some(&padding_gt)).x_gtd.get(0)
}

fn host_copy(config: &Config, [x, eps1, eps2, weight, shift]: &[Tensor; 5]) -> Array2<f64> {
    let given = reference::Perturbation {
        eps1_td: Some(to_host(&eps1.get(0))),
        eps2_td: Some(to_host(&eps2.get(0))),
        sequence_t: Some(SEQUENCE_T.map(|q| q as usize).to_vec()),
        in_weight_d: Some(to_host1(weight)),
        in_bias_d: Some(to_host1(shift)),
        held: None,
    };
    reference::augment(config, to_host(&x.get(0)).view(), &given, Some(&PADDING_T)).x_td
}

fn matrix_error(got: &Tensor, want: &Array2<f64>) -> f64 {
    let got = to_host(got);
    assert_eq!(got.dim(), want.dim());
    got.iter().zip(want).map(|(got, want)| relative_error(*got, *want)).fold(0.0, f64::max)
}

/// Worst error of the gradients of the summed squares of the copy.
fn copy_gradient_error(config: &Config, inputs: &[Tensor; 5]) -> f64 {
    torch_copy(config, inputs).square().sum(None).backward();
    let objective = || host_copy(config, inputs).iter().map(|v| v * v).sum::<f64>();
    let mut worst = 0f64;
    for input in inputs.iter().filter(|input| input.grad().defined()) {
        let grad = input.grad().contiguous().view([-1]);
        for i in 0..input.numel() as i64 {
            let at = |h: f64| {
                let _ = input.detach().view([-1]).get(i).g_add_scalar_(h);
                let objective = objective();
                let _ = input.detach().view([-1]).get(i).g_add_scalar_(-h);
                objective
            };
            let central = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            worst = worst.max(relative_error(grad.double_value(&[i]), central));
        }
    }
    worst
}

#[test]
fn sequences_padding_and_affine_match_the_reference() {
    let limits = tolerance(Kind::Double);
    for preset in ["scaled", "features", "norm"] {
        let settings = [("preset".to_owned(), preset.into())].into_iter().collect();
        let (config, inputs) = (variant(&settings).unwrap(), perturbed());
        let value = matrix_error(&torch_copy(&config, &inputs), &host_copy(&config, &inputs));
        let gradient = copy_gradient_error(&config, &inputs);
        assert!(value <= limits.value, "{preset}: values differ by {value:.1e}");
        assert!(gradient <= limits.gradient, "{preset}: gradients differ by {gradient:.1e}");
    }
}

fn expert(e: usize, rows: &Tensor) -> Tensor {
    rows.sin() * (e as f64 + 1.0)
}

fn host_expert(e: usize, rows: ArrayView2<'_, f64>) -> Array2<f64> {
    rows.mapv(|v| v.sin() * (e as f64 + 1.0))
}

/// A router of these settings with parameters wide enough to tell experts apart.
fn router(config: &Config) -> Box<dyn Router> {
    let store = ParamStore::new(7, Device::Cpu, Kind::Double);
    let router = config.build(&store.root(), Dims { width: WIDTH, experts: EXPERTS });
    for param in store.entries().iter() {
        let spread = normal("parameters", &param.tensor.size());
        tch::no_grad(|| param.tensor.shallow_clone().copy_(&spread));
    }
    router
}

fn presets() -> impl Iterator<Item = Config> {
    PAPER.presets.iter().map(|preset| Config::preset(preset))
}

/// Output of group 0, unweighted losses, and the rows of each expert in every call of the experts.
type Ran = (Tensor, Vec<Aux>, Vec<Vec<i64>>);

fn run(router: &dyn Router, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Ran {
    let calls = RefCell::new(Vec::new());
    let execute = |x_gtd: &Tensor, plan: &TensorPlan| {
        calls.borrow_mut().push(to_host_i64(&plan.load_e()));
        plan.apply(x_gtd, expert)
    };
    let (y_gtd, routing) = router.layer(x_gtd, cx, &execute).unwrap();
    (y_gtd.get(0), routing.aux, calls.take())
}

const TRAIN: Phase = Phase::Train { step: 0 };

/// Padding at the end changes neither outputs nor losses, on either side.
#[test]
fn padding_is_as_if_it_were_not_there() {
    let (valid, limit) = (TOKENS - 2, tolerance(Kind::Double).value);
    let (x_gtd, noise) = (normal("tokens", &[1, TOKENS, WIDTH]), SeededNoise::train(1, 0));
    let flags: Vec<bool> = (0..TOKENS).map(|t| t >= valid).collect();
    let padding_gt = Tensor::from_slice(&flags).unsqueeze(0);
    let draws = [EPS1, EPS2]
        .map(|name| (name, to_host(&noise.normal(Site { layer: 0, name }, &x_gtd).get(0))));
    for config in presets() {
        let (router, cx) = (router(&config), RouteCx::new(TRAIN, &noise));
        let (want_td, want_aux, _) = run(router.as_ref(), &x_gtd.narrow(1, 0, valid), &cx);
        let cx = RouteCx { padding_gt: Some(&padding_gt), ..cx };
        let (got_td, got_aux, _) = run(router.as_ref(), &x_gtd, &cx);
        let x_td = to_host(&x_gtd.get(0));
        let input = HostInput::new(x_td.view()).train(true).draws(&draws).padding(Some(&flags));
        let (host_td, host) = router.reference().layer(&input, &host_expert).unwrap();
        let want_td = to_host(&want_td);
        assert!(matrix_error(&got_td.narrow(0, 0, valid), &want_td) <= limit, "{config:?}");
        assert!(matrix_error(&got_td, &host_td) <= limit, "{config:?}");
        assert!(host_td.slice(s![valid as usize.., ..]).iter().all(|y| *y == 0.0), "{config:?}");
        for (i, (got, want)) in got_aux.iter().zip(&want_aux).enumerate() {
            let [got, want] = [got, want].map(|aux| aux.value.double_value(&[]));
            assert!(relative_error(got, want) <= limit, "{config:?}");
            assert!(relative_error(host.aux[i].1, want) <= limit, "{config:?}");
        }
    }
}

/// A group of padding alone is finite on both sides, and so are its gradients.
#[test]
fn nothing_but_padding_gives_no_nan() {
    let noise = SeededNoise::train(1, 0);
    let flags = [true; TOKENS as usize];
    let padding_gt = Tensor::from_slice(&flags).unsqueeze(0);
    for config in presets() {
        let x_gtd = normal("tokens", &[1, TOKENS, WIDTH]).set_requires_grad(true);
        let cx = RouteCx { padding_gt: Some(&padding_gt), ..RouteCx::new(TRAIN, &noise) };
        let router = router(&config);
        let (y_td, aux, _) = run(router.as_ref(), &x_gtd, &cx);
        aux.iter().fold(y_td.sum(None), |sum, aux| sum + &aux.value).backward();
        assert_eq!(x_gtd.grad().isfinite().all().int64_value(&[]), 1, "{config:?}");
        let x_td = to_host(&x_gtd.get(0));
        let input = HostInput::new(x_td.view()).train(true).padding(Some(&flags));
        let (_, host) = router.reference().layer(&input, &host_expert).unwrap();
        for (got, (_, want)) in aux.iter().zip(host.aux) {
            assert_eq!(got.value.double_value(&[]), want, "{config:?}");
        }
    }
}

/// Room for one row per expert and group binds both passes, as it does the reference.
#[test]
fn the_capacity_binds_both_passes() {
    let policy = CapacityPolicy { limit: Limit::Fixed(1), order: DropOrder::Arrival };
    let (x_gtd, noise) = (normal("tokens", &[1, TOKENS, WIDTH]), SeededNoise::train(1, 0));
    let x_td = to_host(&x_gtd.get(0));
    let draws = [EPS1, EPS2]
        .map(|name| (name, to_host(&noise.normal(Site { layer: 0, name }, &x_gtd).get(0))));
    for config in presets() {
        let cx = RouteCx { capacity: Some(&policy), ..RouteCx::new(TRAIN, &noise) };
        let router = router(&config);
        let (y_td, _, calls) = run(router.as_ref(), &x_gtd, &cx);
        assert!(calls.len() == 2 && calls.concat().iter().all(|rows| *rows <= 1), "{calls:?}");
        let input = HostInput::new(x_td.view()).train(true).draws(&draws);
        let input = input.capacity(Some(&policy));
        let (want_td, _) = router.reference().layer(&input, &host_expert).unwrap();
        assert!(matrix_error(&y_td, &want_td) <= tolerance(Kind::Double).value, "{config:?}");
    }
}

/// A training step computes `2 top_k` rows per token, which is what a comparison grants; inference
/// `top_k_infer`, without losses.
#[test]
fn inference_spends_fewer_experts_than_training() {
    let (x_gtd, noise) = (normal("tokens", &[1, TOKENS, WIDTH]), SeededNoise::train(1, 0));
    for config in presets() {
        let router = router(&config);
        let rows = |phase| {
            let (_, aux, calls) = run(router.as_ref(), &x_gtd, &RouteCx::new(phase, &noise));
            (calls.concat().iter().sum::<i64>() as f64 / TOKENS as f64, aux.len())
        };
        let losses = if config.beta > 0.0 { 2 } else { 1 };
        assert_eq!(rows(TRAIN), (config.active_experts(EXPERTS as usize), losses));
        assert_eq!(rows(Phase::Eval), (1.0, 0));
    }
}

/// A probability that underflows in every token has a finite slope.
#[test]
fn an_expert_without_probability_gives_no_nan() {
    let logits_gte = Tensor::from_slice(&[0f32, 200.0, 0.0, 300.0]).view([1, 2, 2]);
    let logits_gte = logits_gte.set_requires_grad(true);
    let loss = balance(Balance::Kl, &logits_gte, None, None);
    loss.backward();
    assert_eq!(loss.double_value(&[]) as f32, 2f32.ln());
    assert_eq!(logits_gte.grad().isfinite().all().int64_value(&[]), 1);
}

/// Identical tokens have no spread, and the root of no spread has no gradient: never NaN.
#[test]
fn no_spread_gives_no_nan() {
    let mut inputs = perturbed();
    let ones_gtd = Tensor::ones([1, TOKENS, WIDTH], (Kind::Double, Device::Cpu));
    inputs[0] = ones_gtd.set_requires_grad(true);
    torch_copy(&Config::preset("paper"), &inputs).square().sum(None).backward();
    assert_eq!(inputs[0].grad().isfinite().all().int64_value(&[]), 1);
}

#[test]
fn settings_outside_their_range_name_their_key() {
    let paper = || Config::preset("paper");
    let refused = [
        (Config { top_k: 4, ..paper() }, "top_k: 4 is outside 1..=3 (experts)"),
        (Config { top_k: 0, ..paper() }, "top_k: 0 is outside 1..=3 (experts)"),
        (Config { top_k_infer: 4, ..paper() }, "top_k_infer: 4 is outside 1..=3 (experts)"),
        (Config { top_k_infer: 0, ..paper() }, "top_k_infer: 0 is outside 1..=3 (experts)"),
        (Config { tau: 0.0, ..paper() }, "tau: 0 must be finite and above 0"),
        (Config { tau: f64::NAN, ..paper() }, "tau: NaN must be finite and above 0"),
        (Config { alpha: -1.0, ..paper() }, "alpha: -1 must be finite and at least 0"),
        (Config { beta: -0.5, ..paper() }, "beta: -0.5 must be finite and at least 0"),
        (Config { noise_scale: -1.0, ..paper() }, "noise_scale: -1 must be finite and at least 0"),
        (Config { scale_mul: -1.0, ..paper() }, "scale_mul: -1 must be finite and at least 0"),
        (Config { scale_add: -1.0, ..paper() }, "scale_add: -1 must be finite and at least 0"),
        (Config { in_eps: 0.0, ..paper() }, "in_eps: 0 must be finite and above 0"),
    ];
    for (config, want) in refused {
        assert_eq!(config.check(EXPERTS as usize).unwrap_err().to_string(), want);
    }
    assert_eq!(paper().check(EXPERTS as usize), Ok(()));
}

#[test]
fn a_draw_of_another_shape_is_refused() {
    let x_td = Array2::zeros((TOKENS as usize, WIDTH as usize));
    let draws = [(EPS2, Array2::zeros((1, 2)))];
    let input = HostInput::new(x_td.view()).train(true).draws(&draws);
    let refused = router(&Config::preset("paper")).reference().layer(&input, &host_expert);
    let want = "eps2 has shape (1, 2), but (7, 4) was expected";
    assert_eq!(refused.unwrap_err().to_string(), want);
}
