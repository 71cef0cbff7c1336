//! The token graph by hand.

use super::*;
use crate::convert::{to_host, to_tensor};
use crate::tolerance::{relative_error, tolerance};
use moe_core::HostInput;
use ndarray::{Array2, array};
use tch::{Device, Kind, Tensor};

/// Tokens (1, 0), (0, 1), identity router scaled by ln 3: r = (3/4, 1/4), (1/4, 3/4). Similarity at
/// tau = 1/ln 3: products 1 and 0, so S = [[3/4, 1/4], [1/4, 3/4]] and pi_0 = (9 + 1, 3 + 3) / 16 =
/// (5/8, 3/8). Causal: token 0 sees itself only.
#[test]
fn similarity_by_hand() {
    let ln3 = 3f64.ln();
    for (causal, first) in [(false, [0.625, 0.375]), (true, [0.75, 0.25])] {
        let config = Config { tau: 1.0 / ln3, causal, ..Config::preset("paper") };
        let (router_ed, x_td) = (Array2::eye(2) * ln3, Array2::eye(2));
        let host = HostTokenGraph { router_ed, bias_e: None, w_s_dd: None, config };
        let input = HostInput::new(x_td.view());
        let found = host.decide(&input, &HostSources::default()).unwrap().routing.gate_te;
        let want = array![first, [0.375, 0.625]];
        let error =
            found.iter().zip(&want).map(|(g, w)| relative_error(*g, *w)).fold(0.0, f64::max);
        assert!(error < tolerance(Kind::Double).value, "{found}");
    }
}

/// Two tokens, one cached column with 1/2 of the mass. Dropped: the rest doubles. Causal on top: row 1
/// of current mass (0, 0) becomes the token itself.
#[test]
fn cached_columns_by_hand() {
    let graph_tn = Some(array![[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]);
    let sources = HostSources { graph_tn, ..HostSources::default() };
    let config = Config { causal: true, ..Config::preset("given") };
    let x_td = Array2::<f64>::eye(2);
    assert_eq!(host_graph(&config, x_td.view(), None, &sources).unwrap(), Array2::<f64>::eye(2));
}

/// The same column in use, causal: row 0 loses token 1 and (1/2, 1/4) becomes (2/3, 1/3); row 1 reads
/// all. Either side.
#[test]
fn cached_columns_in_use_stay_open() {
    let given_tn = array![[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]];
    let want_tn = array![[2.0 / 3.0, 1.0 / 3.0, 0.0], [0.5, 0.25, 0.25]];
    let config = Config { causal: true, cache: Cache::Use, ..Config::preset("given") };
    let x_td = Array2::<f64>::eye(2);
    let host_sources = HostSources { graph_tn: Some(given_tn.clone()), ..HostSources::default() };
    let host_tn = host_graph(&config, x_td.view(), None, &host_sources).unwrap();
    let x_gtd = Tensor::eye(2, (Kind::Double, Device::Cpu)).unsqueeze(0);
    let graph_gtn = Some(to_tensor(given_tn.view(), &x_gtd).unsqueeze(0));
    let sources = Sources { graph_gtn, ..Sources::default() };
    let torch_tn = to_host(&graph(&config, &x_gtd, None, &sources).unwrap().get(0));
    for found_tn in [host_tn, torch_tn] {
        let errors = found_tn.iter().zip(&want_tn).map(|(got, want)| relative_error(*got, *want));
        assert!(errors.fold(0.0, f64::max) < tolerance(Kind::Double).value, "{found_tn}");
    }
}

/// One expert of two changes places with the other: the first differs, the set does not.
#[test]
fn fluctuation_by_hand() {
    let (before, after) = (array![[[0, 1], [1, 2]]], array![[[1, 0], [1, 2]]]);
    assert_eq!(fluctuation(before.view(), after.view(), false), [0.5]);
    assert_eq!(fluctuation(before.view(), after.view(), true), [0.0]);
}
