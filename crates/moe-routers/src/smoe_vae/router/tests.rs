//! The gate by hand, and what only the trainable one shows.

use super::*;
use crate::SeededNoise;
use crate::params::ParamStore;
use crate::router::Phase;
use crate::tolerance::{relative_error, tolerance};
use ndarray::{Array1, Array2, array};
use tch::{Device, Kind, Tensor};

/// Two experts whose logits are `(relu(x) ln 3, 0)`, through one unit a layer.
fn by_hand(preset: &str) -> HostVaeGate {
    let one = || (array![[1.0]], Array1::zeros(1));
    let last = (array![[3f64.ln()], [0.0]], Array1::zeros(2));
    HostVaeGate { layers: [one(), one(), last], config: GateConfig::preset(preset) }
}

#[track_caller]
fn assert_near(got: f64, want: f64) {
    assert!(relative_error(got, want) < tolerance(Kind::Double).value, "{got} is not {want}");
}

#[track_caller]
fn assert_combine(routing: &HostRouting, want_te: &Array2<f64>) {
    let got_te = routing.plan.combine_te();
    assert_eq!(got_te.dim(), want_te.dim());
    got_te.iter().zip(want_te).for_each(|(got, want)| assert_near(*got, *want));
}

/// Rows 1 and -1: logits `(ln 3, 0)` and `(0, 0)`, p = (3/4, 1/4) and (1/2, 1/2). Training weighs by
/// p, evaluation takes expert 0 twice, the lower of equals. pbar = (5/8, 3/8), so
/// `L_lb = 2 (1/64 + 1/64) = 1/16`.
#[test]
fn unsupervised_by_hand() {
    let (gate, x_td) = (by_hand("paper"), array![[1.0], [-1.0]]);
    let train = gate.route(&HostInput::new(x_td.view()).train(true)).unwrap();
    assert_combine(&train, &array![[0.75, 0.25], [0.5, 0.5]]);
    assert_near(train.aux("balance").unwrap(), 0.0625);
    let entropy = |p: f64| -p * (p + super::super::LOG_EPS).ln();
    let want = (entropy(0.75) + entropy(0.25) + 2.0 * entropy(0.5)) / 2.0;
    assert_near(train.aux("entropy").unwrap(), want);
    let eval = gate.route(&HostInput::new(x_td.view())).unwrap();
    assert_combine(&eval, &array![[1.0, 0.0], [1.0, 0.0]]);
}

/// The same rows with labels 2 and 3, experts 0 and 1: `CE = -ln(3/4) - ln(1/2)`, but for the
/// 1e-8. The best expert runs alone in training too.
#[test]
fn supervised_by_hand() {
    let (gate, x_td) = (by_hand("supervised"), array![[1.0], [-1.0]]);
    let input = HostInput::new(x_td.view());
    let train = gate.route(&input.train(true).tokens(Some(&[2, 3]))).unwrap();
    assert_combine(&train, &array![[1.0, 0.0], [1.0, 0.0]]);
    let log = |p: f64, q: f64| {
        let with_eps = |p: f64| p + super::super::LOG_EPS;
        (with_eps(p) / (with_eps(p) + with_eps(q))).ln()
    };
    assert_near(train.aux("cross_entropy").unwrap(), -log(0.75, 0.25) - log(0.5, 0.5));
    let error = gate.route(&input.train(true)).unwrap_err().to_string();
    assert_eq!(error, "labels (token ids) is missing");
    assert!(gate.route(&input).unwrap().aux.is_empty());
}

/// What the trainable gate makes of `rows` rows in one group.
fn routed(config: &GateConfig, phase: Phase, labels_gt: Option<&Tensor>, rows: i64) -> Routing {
    let store = ParamStore::new(1, Device::Cpu, Kind::Double);
    let router = config.build(&store.root(), Dims { width: 3, experts: 4 });
    let x_gtd = store.root().matrix("x", &[1, rows, 3], 1.0);
    let noise = SeededNoise::train(0, 0);
    let cx = RouteCx { token_gt: labels_gt, ..RouteCx::new(phase, &noise) };
    router.route(&x_gtd, &cx).unwrap()
}

/// 200/128 and 400/128, whatever the group; 200/rows for the sum of (7).
#[test]
fn coefficients_stand_beside_a_mean() {
    let train = Phase::Train { step: 0 };
    let weights = |config: &GateConfig, labels: Option<&Tensor>, rows: i64| -> Vec<f64> {
        routed(config, train, labels, rows).aux.iter().map(|aux| aux.weight).collect()
    };
    let paper = GateConfig::preset("paper");
    assert_eq!(weights(&paper, None, 5), [1.5625, 3.125]);
    assert_eq!(weights(&GateConfig { batch: 1, ..paper }, None, 5), [200.0, 400.0]);
    let labels_gt = Tensor::zeros([1, 5], (Kind::Int64, Device::Cpu));
    assert_eq!(weights(&GateConfig::preset("supervised"), Some(&labels_gt), 5), [40.0]);
}

#[test]
fn all_experts_run_only_where_the_reconstruction_teaches() {
    let visits = |preset: &str, phase| {
        let labels_gt = Tensor::zeros([1, 6], (Kind::Int64, Device::Cpu));
        let routing = routed(&GateConfig::preset(preset), phase, Some(&labels_gt), 6);
        routing.plan.load_e().sum(Kind::Int64).int64_value(&[]) / 6
    };
    let train = Phase::Train { step: 0 };
    assert_eq!([visits("paper", train), visits("paper", Phase::Eval)], [4, 1]);
    assert_eq!([visits("supervised", train), visits("supervised", Phase::Eval)], [1, 1]);
    let active = |preset| GateConfig::preset(preset).active_experts(4);
    assert_eq!([active("paper"), active("supervised")], [4.0, 1.0]);
}

/// As many parameters as the release's gate has.
#[test]
fn the_gate_has_the_size_of_the_release() {
    let store = ParamStore::new(0, Device::Cpu, Kind::Double);
    let dims = Dims { width: 32, experts: 5 };
    let _ = GateConfig::preset("paper").build(&store.root(), dims);
    assert_eq!(store.trainable_count() as u128, super::super::count::gate(32, 5));
}

#[test]
fn settings_out_of_range_name_their_key() {
    let refused = |config: GateConfig| config.check(4).unwrap_err().to_string();
    let paper = || GateConfig::preset("paper");
    assert_eq!(refused(GateConfig { batch: 0, ..paper() }), "batch: 0 must be at least 1");
    let refusal = refused(GateConfig { entropy_coeff: -1.0, ..paper() });
    assert!(refusal.starts_with("entropy_coeff"), "{refusal}");
}
