//! ACMoE by hand.

use super::*;
use crate::convert::{to_host, to_tensor};
use crate::tolerance::{relative_error, tolerance};
use moe_core::{HostInput, Plan};
use ndarray::{Array2, array};
use tch::{Device, Kind, Tensor};

/// Two clusters of two tokens in the plane: cluster 0 is (1, 0), (3, 4), cluster 1 (0, 1), (4, 3).
fn tokens() -> Array2<f64> {
    array![[1.0, 0.0], [3.0, 4.0], [0.0, 1.0], [4.0, 3.0]]
}

fn labels() -> HostLabels {
    HostLabels { expert_tk: array![[0], [0], [1], [1]], score_tk: None }
}

fn assert_close(got: &Array2<f64>, want: &Array2<f64>) {
    assert_eq!(got.dim(), want.dim());
    let error = got.iter().zip(want).map(|(g, w)| relative_error(*g, *w)).fold(0.0, f64::max);
    assert!(error < tolerance(Kind::Double).value, "{got} is not {want}");
}

/// Means (2, 2) and (2, 2); deviations 1 and 2 in cluster 0, 2 and 1 in cluster 1, so
/// W = [[1, 1/2], [1/2, 1]] for eps = 0. m0 = 3/4.
/// No rescaling: W as it is. Per feature: both columns average 3/4, so W / (3/4) = [[4/3, 2/3], …].
/// Clipped at 1 m0: [[3/4, 1/2], [1/2, 3/4]] of mean 5/8; before: over 3/4, [[1, 2/3], …]; after:
/// over 5/8, [[6/5, 4/5], …].
#[test]
fn weights_by_hand() {
    let cases = [
        (0.0, Rescale::None, [1.0, 0.5]),
        (0.0, Rescale::PerFeature, [4.0 / 3.0, 2.0 / 3.0]),
        (1.0, Rescale::GlobalPre, [1.0, 2.0 / 3.0]),
        (1.0, Rescale::GlobalPost, [1.2, 0.8]),
    ];
    for (clip, rescale, [a, b]) in cases {
        let config = Config { clip, rescale, ..Config::preset("paper") };
        let scaling = host_scale(&config, tokens().view(), Some(&labels()), None).unwrap();
        assert_close(&scaling.weights_cd.unwrap(), &array![[a, b], [b, a]]);
        let want = tokens() * array![[a, b], [a, b], [b, a], [b, a]];
        assert_close(&scaling.scaled_td, &want);
        // The clip binds in no preset at the suite's size: the tensor side clips here.
        let x_gtd = to_tensor(tokens().view(), &Tensor::zeros([0], (Kind::Double, Device::Cpu)));
        let expert_gtk = Tensor::from_slice(&[0i64, 0, 1, 1]).view([1, 4, 1]);
        let labels = Labels { expert_gtk, score_gtk: None, experts: 2 };
        let scaling = scale(&config, &x_gtd.unsqueeze(0), Some(&labels), None).unwrap();
        assert_close(&to_host(&scaling.scaled_gtd.get(0)), &want);
    }
}

/// Preset `paper`, identity router. Scaled tokens are (1, 0), (3, 2), (0, 1), (2, 3), which are the
/// logits. With k = 1 every token takes its larger coordinate with gate 1: the second token, which
/// as it is would go to expert 1 (3 < 4), goes to expert 0.
#[test]
fn routing_by_hand() {
    let config = Config { top_k: 1, ..Config::preset("paper") };
    let host = HostAcMoe { matrix_ed: Array2::eye(2), bias_e: None, config };
    let x_td = tokens();
    let route = |labels: Option<&HostLabels>| {
        let decision = host.decide(&HostInput::new(x_td.view()), labels, None).unwrap();
        let Plan::Sparse(plan) = decision.routing.plan else { panic!("sparse") };
        plan.mask_te()
    };
    assert_eq!(route(Some(&labels())).column(0), array![1.0, 1.0, 0.0, 0.0]);
    assert_eq!(route(None).column(0), array![1.0, 0.0, 0.0, 1.0]);
}

/// eps 1: tokens of cluster 0 deviate by (1, 2), so 1/2 and 1/3; clusters 1 (empty) and 2 (a single
/// token) have spread 0, so 1. As in the code K is 3 and the mean is (5/6 + 4) / 6 = 29/36; neutral
/// leaves the one cluster of mean 5/12.
#[test]
fn small_clusters_by_hand() {
    let labels = HostLabels { expert_tk: array![[0], [0], [2]], score_tk: None };
    let x_td = tokens().slice_move(ndarray::s![..3, ..]);
    let weights = |empty| {
        let (eps, rescale) = (1.0, Rescale::GlobalPre);
        let config = Config { eps, rescale, empty, ..Config::preset("paper") };
        host_scale(&config, x_td.view(), Some(&labels), None).unwrap().weights_cd.unwrap()
    };
    let raw = array![[0.5, 1.0 / 3.0], [1.0, 1.0], [1.0, 1.0]];
    assert_close(&weights(Empty::AsCode), &(raw * (36.0 / 29.0)));
    assert_close(&weights(Empty::Neutral), &array![[1.2, 0.8], [1.0, 1.0], [1.0, 1.0]]);
}

/// Room is `2 floor(1.25 ceil(7 / 4)) = 2 floor(2.5) = 4`.
#[test]
fn room_by_hand() {
    let config = Config::preset("swin");
    assert_eq!(config.room(None, (7, 4)).unwrap().0, Some(4));
}

/// The weights are constants: `d sum(x') / dx = W`.
#[test]
fn no_gradient_through_the_weights() {
    let x = [1.0, 0.0, 3.0, 4.0, 0.0, 1.0, 4.0, 3.0];
    let x_gtd = Tensor::from_slice(&x).view([1, 4, 2]).set_requires_grad(true);
    let expert_gtk = Tensor::from_slice(&[0i64, 0, 1, 1]).view([1, 4, 1]);
    let labels = Labels { expert_gtk, score_gtk: None, experts: 2 };
    let scaling = scale(&Config::preset("paper"), &x_gtd, Some(&labels), None).unwrap();
    scaling.scaled_gtd.sum(Kind::Double).backward();
    assert_eq!(x_gtd.grad(), scaling.token_weights_gtd);
}
