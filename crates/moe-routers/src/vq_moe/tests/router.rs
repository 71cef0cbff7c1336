//! The router in a model: its losses, its parameters, what it refuses, padding and capacity.

use super::assert_near;
use crate::config::{Part, Preset, RouterConfig, Settings};
use crate::convert::to_host;
use crate::noise::SeededNoise;
use crate::norm::HostNorm;
use crate::params::{ParamStore, Role};
use crate::router::{Dims, Phase, RouteCx, Router};
use crate::tolerance::{relative_error, tolerance};
use crate::vq_moe::host::HostVqMoe;
use crate::vq_moe::{Block, CodeMap, Config, Mode};
use moe_core::{CapacityPolicy, CapacityRule, DropOrder, HostInput, Limit, Reference};
use ndarray::{Array2, ArrayView2, array};
use tch::{Device, Kind, Tensor};

const DIMS: Dims = Dims { width: 3, experts: 4 };

fn built(config: &Config) -> (ParamStore, Box<dyn Router>) {
    config.check(DIMS.experts as usize).unwrap();
    let store = ParamStore::new(3, Device::Cpu, Kind::Double);
    let router = config.build(&store.root(), DIMS);
    (store, router)
}

/// Token (1, 2); codes (9, 9), (1, 4) of expert 0 and (9, -9), (-9, 9) of expert 1: code 1, q = (1, 4),
/// expert 0. Router rows (0, 0), (1, 0): expert 1 with weight 1. Branch gates softmax(ln 3, 0) =
/// (3/4, 1/4). Experts E_0(x) = x, E_1(x) = 10 x: y = 3/4 (10, 20) + 1/4 (1, 4) = (7.75, 16).
/// L_vq = 1.25 (0 + 4) / 2 = 2.5. Balance at temperature 1/2: f = (0, 1), P = softmax(0, 2), 2 P_1 =
/// 2 e^2 / (1 + e^2); with k = 2, f = (1/2, 1/2) and 2 (1/2) / 2 = 1/2. One code in use.
#[test]
fn a_token_by_hand() {
    let layer = |mode, top_k| HostVqMoe {
        config: Config { mode, top_k, balance_temperature: 0.5, ..Config::preset("paper") },
        codebook_cd: array![[9.0, 9.0], [1.0, 4.0], [9.0, -9.0], [-9.0, 9.0]],
        expert_c: CodeMap::Block.expert_c(4, 2).unwrap(),
        router: Some((array![[0.0, 0.0], [1.0, 0.0]], Some(array![0.0, 0.0]))),
        gate: Some((Array2::zeros((2, 2)), Some(array![3f64.ln(), 0.0]))),
        norm: HostNorm::default(),
        experts: 2,
    };
    let expert = |e: usize, rows: ArrayView2<'_, f64>| rows.mapv(|v| [v, 10.0 * v][e]);
    let x_td = array![[1.0, 2.0]];
    let input = HostInput::new(x_td.view());
    let (y_td, routing) = layer(Mode::Pretrain, 1).layer(&input, &expert).unwrap();
    assert_near("y", &y_td, &array![[7.75, 16.0]]);
    assert_eq!(routing.plan.combine_te(), array![[0.0, 1.0]]);
    let e = 2f64.exp();
    let want = [("vq", 2.5), ("balance", 2.0 * e / (1.0 + e)), ("code_perplexity", 1.0)];
    for ((name, got), (known, want)) in routing.aux.into_iter().zip(want) {
        assert_eq!(name, known);
        assert_near(name, &array![[got]], &array![[want]]);
    }
    let two = layer(Mode::Pretrain, 2).route(&input).unwrap();
    assert_near("balance", &array![[two.aux("balance").unwrap()]], &array![[0.5]]);
    let (y_td, routing) = layer(Mode::Discrete, 1).layer(&input, &expert).unwrap();
    assert_near("discrete", &y_td, &array![[1.0, 4.0]]);
    assert_eq!(routing.plan.combine_te(), array![[1.0, 0.0]]);
    assert_eq!(routing.aux.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["code_perplexity"]);
}

#[test]
fn the_release_does_not_balance_and_nothing_pays_for_the_perplexity() {
    let weights = |preset: &str| {
        let (_store, router) = built(&Config::preset(preset));
        let noise = SeededNoise::eval(0, 0);
        let x_gtd = Tensor::ones([1, 2, 3], (Kind::Double, Device::Cpu));
        let routing = router.route(&x_gtd, &RouteCx::new(Phase::Eval, &noise)).unwrap();
        routing.aux.iter().map(|a| (a.name, a.weight)).collect::<Vec<_>>()
    };
    let weighed = |balance| vec![("vq", 0.08), ("balance", balance), ("code_perplexity", 0.0)];
    assert_eq!(weights("reference"), weighed(0.0));
    assert_eq!(weights("paper"), weighed(0.01));
    assert_eq!(weights("paper_finetune"), [("code_perplexity", 0.0)]);
}

/// So that the weights of one mode load into the other.
#[test]
fn discrete_mode_has_the_parameters_of_pretraining_and_learns_the_norm_alone() {
    let entries = |preset: &str, mode| {
        let (store, _) = built(&Config { mode, ..Config::preset(preset) });
        let layout = |p: &crate::Param| (p.name.clone(), p.tensor.size());
        let learned = |p: &&crate::Param| p.role != Role::Buffer;
        let entries = store.entries();
        let names: Vec<String> = entries.iter().filter(learned).map(|p| p.name.clone()).collect();
        (entries.iter().map(layout).collect::<Vec<_>>(), names)
    };
    for (preset, learned) in [("reference", &["ln_weight", "ln_bias"][..]), ("paper", &[])] {
        let (before, all) = entries(preset, Mode::Pretrain);
        let (after, left) = entries(preset, Mode::Discrete);
        assert_eq!(before, after, "{preset}");
        assert_eq!(all.len(), before.len(), "{preset}");
        assert_eq!(left, learned, "{preset}");
    }
}

#[test]
fn pretraining_costs_one_expert_more_than_its_choices_and_serving_one_in_all() {
    let experts = |mode, top_k| {
        let config = Config { mode, top_k, ..Config::preset("reference") };
        (config.active_experts(8), config.trained_experts(8))
    };
    assert_eq!(experts(Mode::Pretrain, 1), (2.0, 2.0));
    assert_eq!(experts(Mode::Pretrain, 2), (3.0, 3.0));
    assert_eq!(experts(Mode::Discrete, 2), (1.0, 3.0));
}

#[test]
fn frozen_codes_refuse_what_would_do_nothing() {
    let refused = |preset: &str| {
        let config = Config::preset(preset);
        [Part::Capacity, Part::Balance, Part::ZLoss].map(|part| config.refuses(part).is_some())
    };
    assert_eq!(refused("paper"), [false; 3]);
    assert_eq!(refused("paper_finetune"), [true; 3]);
}

type Change = fn(&mut Config);

#[test]
fn settings_out_of_range_name_their_key() {
    let refused = |preset: &str, change: Change| {
        let mut config = Config::preset(preset);
        change(&mut config);
        config.check(4).unwrap_err().to_string()
    };
    let cases: &[(&str, Change, &str)] = &[
        ("reference", |c| c.codes = 3, "codes: 3 is outside 4.."),
        ("reference", |c| c.codes = usize::MAX, "codes: 18446744073709551615 is outside 4.."),
        ("paper", |c| c.codes = 6, "codes: 6 is not a multiple of 4 (experts)"),
        ("reference", |c| c.top_k = 5, "top_k: 5 is outside 1..=4"),
        ("reference", |c| c.top_k = 0, "top_k: 0 is outside 1..=4"),
        ("reference", |c| c.mix_rate = 1.5, "mix_rate: 1.5 is outside 0..=1"),
        ("reference", |c| c.mix_rate = f64::NAN, "mix_rate: NaN"),
        ("reference", |c| c.beta = -0.1, "beta: -0.1 must be"),
        ("reference", |c| c.vq_weight = -1.0, "vq_weight: -1 must be"),
        ("reference", |c| c.balance_weight = f64::INFINITY, "balance_weight: inf must be"),
        ("reference", |c| c.balance_temperature = 0.0, "balance_temperature: 0 must be"),
        ("reference", |c| c.block = Block::Post, "block: must be `none`"),
    ];
    for (preset, change, want) in cases {
        let error = refused(preset, *change);
        assert!(error.starts_with(want), "{error}");
    }
    let codes = |preset: &str| Config { codes: 6, ..Config::preset(preset) }.check(4);
    assert!(codes("reference").is_ok());
    let unknown = Settings::from_iter([("code".to_owned(), 16.into())]);
    let error = super::PAPER.router(&unknown).unwrap_err().to_string();
    assert!(error.starts_with("code: unknown key") && error.contains("codes"), "{error}");
}

fn normal(name: &'static str, shape: &[i64]) -> Tensor {
    let store = ParamStore::new(9, Device::Cpu, Kind::Double);
    store.root().matrix(name, shape, 1.0).detach()
}

/// Two groups, of which one has padding, under a capacity of one row: trainable form and reference
/// agree, and what a padded token holds changes no loss and no other token.
#[test]
fn padding_and_capacity_match_the_plain_form() {
    let policy = CapacityPolicy {
        limit: Limit::Factor { factor: 0.5, rule: CapacityRule::Megatron, min: None },
        order: DropOrder::Arrival,
    };
    let padding = [[false, true, false, false], [false; 4]];
    let padding_gt = Tensor::from_slice(&padding.concat()).view([2, 4]);
    let expert = |e: usize, rows: &Tensor| rows.sin() * (e as f64 + 1.0);
    let host_expert =
        |e: usize, rows: ArrayView2<'_, f64>| rows.mapv(|v| v.sin() * (e as f64 + 1.0));
    for preset in Config::PRESETS {
        let (_store, router) = built(&Config { top_k: 2, ..Config::preset(preset) });
        let noise = SeededNoise::eval(0, 0);
        let cx = RouteCx {
            padding_gt: Some(&padding_gt),
            capacity: Some(&policy),
            ..RouteCx::new(Phase::Eval, &noise)
        };
        let run = |x_gtd: &Tensor| {
            let (y_gtd, routing) =
                router.layer(x_gtd, &cx, &|x, plan| plan.apply(x, expert)).unwrap();
            (y_gtd, routing.aux.iter().map(|a| a.value.double_value(&[])).collect::<Vec<_>>())
        };
        let x_gtd = normal("x", &[2, 4, 3]);
        let (y_gtd, aux) = run(&x_gtd);
        let mut mean = vec![0.0; aux.len()];
        for (g, padding_t) in padding.iter().enumerate() {
            let x_td = to_host(&x_gtd.get(g as i64));
            let input = HostInput::new(x_td.view()).padding(Some(padding_t));
            let input = input.capacity(Some(&policy));
            let (y_td, routing) = router.reference().layer(&input, &host_expert).unwrap();
            assert_near(preset, &to_host(&y_gtd.get(g as i64)), &y_td);
            mean.iter_mut().zip(&routing.aux).for_each(|(sum, (_, v))| *sum += v / 2.0);
        }
        let limit = tolerance(Kind::Double).value;
        let near =
            |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| relative_error(*a, *b) < limit);
        assert!(near(&aux, &mean), "{preset}: {aux:?} is not {mean:?}");
        let other = x_gtd.copy();
        other.get(0).get(1).copy_(&normal("other", &[3]));
        let (other_gtd, other_aux) = run(&other);
        assert!(near(&aux, &other_aux), "{preset}: {aux:?} became {other_aux:?}");
        let rest = |y_gtd: &Tensor| to_host(&y_gtd.get(0).narrow(0, 2, 2));
        assert_near(preset, &rest(&other_gtd), &rest(&y_gtd));
    }
}
