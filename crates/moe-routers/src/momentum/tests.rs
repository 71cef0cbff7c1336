//! Worked examples, laws, and the tensor form against the plain one.

use super::*;
use crate::config::{Preset, Settings};
use crate::convert::{to_host, to_tensor};
use crate::norm::{HostNorm, TorchNorm};
use crate::residual::{HostNorms, Norm, Norms, ResidualConfig, residual_config, short_names};
use crate::tolerance::{relative_error, tolerance};
use ndarray::{Array2, ArrayView2, array};
use serde_json::Value;
use std::convert::Infallible;
use tch::{Device, Kind, Tensor};

fn like() -> Tensor {
    Tensor::zeros([1], (Kind::Double, Device::Cpu))
}

#[track_caller]
fn assert_near(name: &str, got: &Array2<f64>, want: &Array2<f64>, bound: f64) {
    for (got, want) in got.iter().zip(want) {
        assert!(relative_error(*got, *want) <= bound, "{name}: {got} is not {want}");
    }
}

/// One token of width 1 at `x` = 1 with `f` = 2, `p` = 4, `q` = 1.
fn one_step(config: &Config) -> (f64, host::State) {
    let mut state = host::State::zeros((1, 1));
    (state.p_td, state.q_td) = (array![[4.0]], array![[1.0]]);
    let (x_td, state) = host::update(config, 0, array![[1.0]].view(), array![[2.0]].view(), &state);
    (x_td[[0, 0]], state)
}

/// momentum, mu .7, minus: p = 2.8 + 2 = 4.8, x = 1 - 4.8 = -3.8.
/// robust, mu .2, kappa 1.25, plus: a = 1.25 * .008 / .25 = .04, b = 1.25 * .64 * 1.2 = .96,
/// p = 2 + .16 = 2.16, x = 1 + .96 * 2.16 = 3.0736; e = .008 / (.25 * .64 * 1.2) = 1/24.
/// complex, mu .7 + .1i, minus: p = 2.8 - .1 + 2 = 4.7, q = .7 + .4 = 1.1, x = 1 - 4.7 = -3.7.
/// adam, b1 .9, b2 .999, minus, without x: p = 3.6 + .2 = 3.8, v = .004, x = -3.8 / sqrt(.004).
#[test]
fn by_hand() {
    let bound = tolerance(Kind::Double).value;
    let cases = [
        ("reference", -3.8, 4.8, 1.0),
        ("robust_paper", 3.0736, 2.16, 1.0),
        ("complex", -3.7, 4.7, 1.1),
        ("adam", -3.8 / (0.004f64 + 1e-8).sqrt(), 3.8, 1.0),
        ("plain", 3.0, 4.0, 1.0),
    ];
    for (preset, x, p, q) in cases {
        let (got, state) = one_step(&Config::preset(preset));
        assert!(relative_error(got, x) <= bound, "{preset}: {got}");
        assert!(relative_error(state.p_td[[0, 0]], p) <= bound, "{preset}: {state:?}");
        assert!(relative_error(state.q_td[[0, 0]], q) <= bound, "{preset}: {state:?}");
    }
    let robust = Robust::new(0.2, 1.25, 1.0).unwrap();
    assert!(relative_error(robust.e, 1.0 / 24.0) <= bound);
}

/// Roots of z^2 - (1.7 - 3.5) z + .7 are (-1.8 +- sqrt(3.24 - 2.8)) / 2: the larger is 1.2316…
#[test]
fn the_edge_of_stability() {
    let radius = spectral_radius(0.7, 3.5);
    assert!(relative_error(radius, (1.8 + 0.44f64.sqrt()) / 2.0) <= tolerance(Kind::Double).value);
    assert!(!is_stable(0.7, 3.5) && is_stable(0.7, 3.39) && spectral_radius(0.7, 3.39) < 1.0);
}

#[test]
fn refusals_name_their_key() {
    let robust = Config::preset("robust");
    for (config, key) in [
        (Config { kappa: 1.0, mu: 0.0, ..robust.clone() }, "kappa"),
        (Config { mu: -1.0, ..robust.clone() }, "mu"),
        (Config { lipschitz: 0.0, ..robust.clone() }, "lipschitz"),
        (Config { beta1: 1.0, ..robust.clone() }, "beta1"),
        (Config { beta2: -0.1, ..robust.clone() }, "beta2"),
        (Config { mu: f64::NAN, ..robust.clone() }, "mu"),
        (Config { gamma: f64::INFINITY, ..robust }, "gamma"),
    ] {
        let error = config.check_values().unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
}

/// 0 / sqrt(0 + 0) would be NaN, in the step or in its gradient.
#[test]
fn adam_without_force_stays_where_it_is() {
    let config = Config { eps: 0.0, ..Config::preset("adam_paper") };
    let f = like().set_requires_grad(true);
    let (x, state) = torch::update(&config, 0, &(like() + 2.0), &f, &torch::State::zeros_like(&f));
    (&x + &state.v).sum(Kind::Double).backward();
    assert_eq!((x.double_value(&[0]), state.v.double_value(&[0])), (2.0, 0.0));
    assert!(f.grad().double_value(&[0]).is_finite());
}

/// A preset for models follows the model's norm and has no second residual; a published one stays as
/// it was published; a setting of one's own wins over both.
#[test]
fn norms_stand_where_the_model_or_the_preset_says() {
    let stands = |settings: &[(&str, Value)], norm| {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let config: Config = resolve(&settings.collect()).unwrap();
        (config.norm.in_model(norm), config.outer)
    };
    for preset in Config::PRESETS {
        let at = |norm| stands(&[("preset", (*preset).into())], norm);
        match *preset {
            "paper" | "adam_paper" | "robust_paper" => {
                assert_eq!(at(Norm::Pre), (NormPlace::None, false), "{preset}");
            }
            "vmoe" => assert_eq!(at(Norm::Pre), (NormPlace::Vmoe, false)),
            _ if preset.ends_with("model") => {
                assert_eq!(at(Norm::Pre), (NormPlace::Pre, false), "{preset}");
                assert_eq!(at(Norm::Post), (NormPlace::Post, false), "{preset}");
            }
            _ => assert_eq!(at(Norm::Pre), (NormPlace::Post, true), "{preset}"),
        }
    }
    assert_eq!(stands(&[], Norm::Post), (NormPlace::Post, false));
    assert_eq!(stands(&[("norm", "none".into())], Norm::Pre), (NormPlace::None, false));
    let own = [("preset", "reference".into()), ("norm", "model".into()), ("outer", false.into())];
    assert_eq!(stands(&own, Norm::Pre), (NormPlace::Pre, false));
}

/// In the model's own residual stream the rules add, and an Adam layer must not lose the stream.
#[test]
fn presets_for_models_are_the_published_rules_in_the_models_place() {
    let rules = ["adam", "robust", "complex", "negative"];
    let pairs = rules.map(|rule| (format!("{rule}_model"), rule.to_owned()));
    for (model, published) in pairs.into_iter().chain([("model".into(), "reference".into())]) {
        let want = Config {
            norm: NormPlace::Model,
            outer: false,
            sign: Sign::Plus,
            cancel_residual: false,
            ..Config::preset(&published)
        };
        assert_eq!(Config::preset(&model), want, "{model}");
    }
}

/// One sparse layer hands nothing on; the plain rule does not want to.
#[test]
fn a_rule_that_would_carry_nothing_is_refused() {
    for preset in Config::PRESETS {
        let config = Config::preset(preset);
        assert!(ResidualConfig::check(&config, 2).is_ok(), "{preset}");
        let alone = ResidualConfig::check(&config, 1);
        assert_eq!(alone.is_ok(), config.rule == Rule::Plain, "{preset}");
        let Err(error) = alone else { continue };
        let error = error.to_string();
        assert!(error.starts_with("rule: nothing would be carried"), "{error}");
    }
    let sharp = Config { sam_rho: 0.1, ..Config::preset("plain") };
    assert!(ResidualConfig::check(&sharp, 1).is_ok());
    let bad = Config { kappa: 1.0, ..Config::preset("robust_model") };
    assert!(ResidualConfig::check(&bad, 2).unwrap_err().to_string().starts_with("kappa"));
}

#[test]
fn every_short_name_is_a_preset_for_models() {
    for (name, preset) in short_names("momentum") {
        let settings = residual_config(name, &Settings::new()).unwrap().settings();
        assert_eq!(settings, Config::preset(preset).settings(), "{name}");
        assert_eq!(settings["norm"], "model", "{name}");
    }
}

fn weight() -> Array2<f64> {
    array![[0.3, -0.5, 0.2], [0.7, 0.1, -0.4], [-0.2, 0.6, 0.9]]
}

/// Three layers, the middle one dense in between, every state alive, `f(u) = tanh(u W)`.
fn host_stack(config: &Config, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
    let norms = HostNorms {
        inner: HostNorm { weight_d: Some(array![1.2, 0.8, 1.1]), bias_d: None },
        outer: HostNorm { weight_d: None, bias_d: Some(array![0.1, -0.2, 0.3]) },
    };
    let f = |u_td: ArrayView2<'_, f64>| u_td.dot(&weight()).mapv(f64::tanh);
    let mask_td = array![[1.25, 0.0, 1.25], [1.25, 1.25, 1.25]];
    let (mut x_td, mut state) = (x_td.to_owned(), host::State::zeros((2, 3)));
    for layer in 0..3 {
        let layered = |u: ArrayView2<'_, f64>| Ok::<_, Infallible>((f(u), ()));
        let mask = Some(mask_td.view());
        let Ok(step) = host::block(config, layer, &norms, mask, x_td.view(), &state, layered);
        (x_td, state) = (step.x_td, step.state);
        let dense = |u: ArrayView2<'_, f64>| Ok::<_, Infallible>(f(u));
        let Ok(behind) = host::dense(config, &norms, x_td.view(), &state, dense);
        x_td = behind;
    }
    x_td
}

fn torch_stack(config: &Config, x: &Tensor) -> Tensor {
    let row = |values: [f64; 3]| Some(Tensor::from_slice(&values));
    let norms = Norms {
        inner: TorchNorm { weight_d: row([1.2, 0.8, 1.1]), bias_d: None },
        outer: TorchNorm { weight_d: None, bias_d: row([0.1, -0.2, 0.3]) },
    };
    let w = to_tensor(weight().view(), &like());
    let f = |u: &Tensor| u.matmul(&w).tanh();
    let mask = Tensor::from_slice(&[1.25, 0.0, 1.25, 1.25, 1.25, 1.25]).view([2, 3]);
    let (mut x, mut state) = (x.shallow_clone(), torch::State::zeros_like(x));
    for layer in 0..3 {
        let layered = |u: &Tensor| Ok::<_, Infallible>((f(u), ()));
        let Ok(step) = torch::block(config, layer, &norms, Some(&mask), &x, &state, layered);
        (x, state) = (step.x, step.state);
        let Ok(behind) = torch::dense(config, &norms, &x, &state, |u| Ok::<_, Infallible>(f(u)));
        x = behind;
    }
    x
}

/// Every published preset with every norm, with and without the sharpness-aware evaluation. Presets
/// for models differ from them in their norms only.
fn variants() -> Vec<(String, Config)> {
    let mut all = Vec::new();
    for preset in Config::PRESETS.iter().filter(|preset| !preset.ends_with("model")) {
        for norm in [NormPlace::None, NormPlace::Post, NormPlace::Pre, NormPlace::Vmoe] {
            for sam_rho in [0.0, 0.05] {
                let config = Config { norm, sam_rho, ..Config::preset(preset) };
                all.push((format!("{preset} {norm:?} {sam_rho}"), config));
            }
        }
    }
    all
}

#[test]
fn values_and_gradients_match_the_plain_form() {
    let x_td = array![[0.9, -0.3, 0.5], [-0.7, 0.4, 1.1]];
    let cot_td = array![[0.3, -1.0, 0.6], [0.8, 0.2, -0.5]];
    let bounds = tolerance(Kind::Double);
    for (name, config) in variants() {
        let x = to_tensor(x_td.view(), &like()).set_requires_grad(true);
        let y = torch_stack(&config, &x);
        assert_near(&name, &to_host(&y), &host_stack(&config, x_td.view()), bounds.value);
        (y * to_tensor(cot_td.view(), &like())).sum(Kind::Double).backward();
        let objective = |x_td: &Array2<f64>| (host_stack(&config, x_td.view()) * &cot_td).sum();
        let difference = Array2::from_shape_fn((2, 3), |at| {
            let moved = |by: f64| {
                let mut x_td = x_td.clone();
                x_td[at] += by;
                objective(&x_td)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        });
        assert_near(&name, &to_host(&x.grad()), &difference, bounds.gradient);
    }
}
