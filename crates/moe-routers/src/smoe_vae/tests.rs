//! Worked examples, and gradients against central differences of the plain form.

use super::*;
use crate::config::Preset;
use crate::convert::{to_host, to_tensor};
use crate::tolerance::{relative_error, tolerance};
use ndarray::{Array2, Array3, array};
use tch::{Device, Kind, Tensor};

#[track_caller]
fn assert_near(name: &str, got: f64, want: f64, bound: f64) {
    assert!(relative_error(got, want) <= bound, "{name}: {got} is not {want}");
}

/// Two experts at p = (3/4, 1/4), images of one pixel 1 and 0, x = 1/2, mu = 1, logvar = 0.
/// Training: xhat = 3/4, recon = 1/16. Evaluation: xhat = 1, recon = 1/4. KL = -(1 + 0 - 1 - 1)/2 = 1/2.
/// L_lb = 2 (1/16 + 1/16) = 1/4. L_ent = ln 4 - 3/4 ln 3, but for the 1e-8.
#[test]
fn by_hand() {
    let logits_bn = array![[3f64.ln(), 0.0]];
    let decoded_bnp = array![[[1.0], [0.0]]];
    for (mode, xhat, recon) in [(Mode::Train, 0.75, 0.0625), (Mode::Eval, 1.0, 0.25)] {
        let config = Config { mode, ..Config::preset("debug") };
        let gate = host::gate(config.dense(), logits_bn.view());
        let losses = host::loss(
            &config,
            &gate,
            &host::Batch {
                decoded_bnp: decoded_bnp.view(),
                x_bp: array![[0.5]].view(),
                mu_bz: array![[1.0]].view(),
                logvar_bz: array![[0.0]].view(),
                labels_b: None,
            },
        );
        let bound = tolerance(Kind::Double).value;
        assert_near("xhat", losses.xhat_bp[[0, 0]], xhat, bound);
        assert_near("recon", losses.recon, recon, bound);
        assert_near("kl", losses.kl, 0.5, bound);
        let p: [f64; 2] = [0.75, 0.25];
        let entropy = -p.iter().map(|p| p * (p + 1e-8).ln()).sum::<f64>();
        assert_near("gating", losses.gating, 0.25 + entropy, bound);
        assert_near("entropy", entropy, 4f64.ln() - 0.75 * 3f64.ln(), 1e-7);
    }
}

/// Section 1 of the release: encoder 494,144 or 26,472, decoders 14,249, 88,993, 371,201, gate 4,357.
#[test]
fn parameters_are_those_of_the_release() {
    let encoders = ["medium", "lite"].map(|name| count::encoder(name, 32).unwrap());
    assert_eq!(encoders, [494_144, 26_472]);
    let decoders = ["lite", "medium", "full"].map(|name| count::decoder(name, 32).unwrap());
    assert_eq!(decoders, [14_249, 88_993, 371_201]);
    assert_eq!(count::gate(32, 5), 4_357);
}

fn logits() -> Array2<f64> {
    array![[0.4, -0.2, 1.1], [2.0, 0.3, -0.5], [0.0, 0.9, 0.7]]
}

fn decoded() -> Array3<f64> {
    Array3::from_shape_fn((3, 3, 2), |(b, n, p)| ((b * 7 + n * 3 + p * 5) % 11) as f64 / 11.0)
}

fn images() -> Array2<f64> {
    array![[0.1, 0.8], [0.5, 0.3], [0.9, 0.2]]
}

const LABELS: [i64; 3] = [4, 0, 2];

fn host_total(config: &Config, logits_bn: &Array2<f64>, mu_bz: &Array2<f64>) -> f64 {
    let labels = LABELS.map(|label| label as usize);
    host::loss(
        config,
        &host::gate(config.dense(), logits_bn.view()),
        &host::Batch {
            decoded_bnp: decoded().view(),
            x_bp: images().view(),
            mu_bz: mu_bz.view(),
            logvar_bz: (mu_bz * 0.5).view(),
            labels_b: (config.objective == Objective::Supervised).then_some(&labels[..]),
        },
    )
    .total
}

fn torch_total(config: &Config, logits_bn: &Tensor, mu_bz: &Tensor) -> Tensor {
    let flat: Vec<f64> = decoded().iter().copied().collect();
    let labels = Tensor::from_slice(&LABELS);
    torch::loss(
        config,
        &torch::gate(config.dense(), logits_bn),
        &torch::Batch {
            decoded_bnp: &Tensor::from_slice(&flat).view([3, 3, 2]),
            x_bp: &to_tensor(images().view(), logits_bn),
            mu_bz,
            logvar_bz: &(mu_bz * 0.5),
            labels_b: (config.objective == Objective::Supervised).then_some(&labels),
        },
    )
    .total
}

/// Central differences of `f` at `at`.
fn difference(at: &Array2<f64>, f: impl Fn(&Array2<f64>) -> f64) -> Array2<f64> {
    Array2::from_shape_fn(at.dim(), |cell| {
        let moved = |by: f64| {
            let mut at = at.clone();
            at[cell] += by;
            f(&at)
        };
        (moved(1e-5) - moved(-1e-5)) / 2e-5
    })
}

#[test]
fn values_and_gradients_match_the_plain_form() {
    let mu_bz = array![[0.3, -0.8], [1.1, 0.2], [-0.4, 0.6]];
    let bounds = tolerance(Kind::Double);
    for preset in Config::PRESETS {
        for mode in [Mode::Train, Mode::Eval] {
            let config = Config { mode, ..Config::preset(preset) };
            let like = Tensor::zeros([1], (Kind::Double, Device::Cpu));
            let leaf = |a: &Array2<f64>| to_tensor(a.view(), &like).set_requires_grad(true);
            let (logits, mu) = (leaf(&logits()), leaf(&mu_bz));
            let total = torch_total(&config, &logits, &mu);
            let want = host_total(&config, &self::logits(), &mu_bz);
            assert_near(preset, total.double_value(&[]), want, bounds.value);
            total.backward();
            let by_logits = difference(&self::logits(), |l| host_total(&config, l, &mu_bz));
            let by_mu = difference(&mu_bz, |mu| host_total(&config, &self::logits(), mu));
            for (got, want) in [(logits.grad(), by_logits), (mu.grad(), by_mu)] {
                for (got, want) in to_host(&got).iter().zip(&want) {
                    assert_near(preset, *got, *want, bounds.gradient);
                }
            }
        }
    }
}
