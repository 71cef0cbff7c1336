//! The token graph in a model: it reads the attention of its own block, of one sequence.

use moe_models::{DecoderLm, LmConfig, Rules};
use moe_routers::tolerance::tolerance;
use moe_routers::{
    Paper, ParamStore, Phase, Role, RouteCx, RouterConfig, SeededNoise, Settings, token_graph,
};
use tch::{Device, Kind, Tensor};

const PAPER: &Paper = &token_graph::PAPER;
const HEADS: i64 = 2;
const VOCAB: i64 = 11;

fn settings(preset: &str, more: &[(&str, &str)]) -> Settings {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).into());
    [("preset", preset)].iter().chain(more).map(pair).collect()
}

fn config(preset: &str, more: &[(&str, &str)]) -> Box<dyn RouterConfig> {
    PAPER.router(&settings(preset, more)).unwrap()
}

/// Every preset that a block can serve, and ways to pool attention.
fn served() -> Vec<(String, Box<dyn RouterConfig>)> {
    let pools = ["mean", "single", "lowest_entropy"];
    let presets = PAPER.presets.iter().map(|preset| (preset.to_string(), config(preset, &[])));
    let pooled = pools.map(|pool| (pool.to_owned(), config("attention", &[("pool", pool)])));
    let all = presets.chain(pooled);
    all.filter(|(_, config)| config.check_block(HEADS as usize).is_ok()).collect()
}

/// A tiny model whose parameters are large enough that routes matter.
fn model(router: &dyn RouterConfig) -> (ParamStore, DecoderLm) {
    let config = LmConfig {
        width: 16,
        layers: 2,
        heads: HEADS,
        context: 8,
        experts: 4,
        active_hidden: 32,
        ..LmConfig::default()
    };
    let store = ParamStore::new(2, Device::Cpu, Kind::Double);
    let model = DecoderLm::new(&store, &config, &Rules::new(router), VOCAB).unwrap();
    for param in store.entries().iter().filter(|p| p.tensor.dim() > 1) {
        tch::no_grad(|| {
            let _ = param.tensor.shallow_clone().g_mul_scalar_(4.0);
        });
    }
    (store, model)
}

/// Three sequences of eight tokens.
fn tokens() -> Tensor {
    (Tensor::arange(24, (Kind::Int64, Device::Cpu)) * 7).remainder(VOCAB).view([3, 8])
}

fn logits(model: &DecoderLm, x_bt: &Tensor) -> Tensor {
    let noise = SeededNoise::eval(0, 0);
    model.forward(x_bt, &RouteCx::new(Phase::Eval, &noise)).unwrap().logits_btv
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let limit = tolerance(Kind::Double).value;
    a.allclose(b, limit, limit, false)
}

#[test]
fn every_preset_that_a_block_serves_trains() {
    let served = served();
    let names: Vec<_> = served.iter().map(|(name, _)| name.as_str()).collect();
    let presets = ["similarity", "paper", "attention", "paper_attention", "none"];
    assert_eq!(names, [&presets[..], &["mean", "single", "lowest_entropy"]].concat());
    for (name, config) in &served {
        let (store, model) = model(config.as_ref());
        let noise = SeededNoise::train(0, 0);
        let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
        let (loss, traces) = model.loss(&tokens(), &tokens(), &cx).unwrap();
        let aux = traces.iter().flat_map(|t| &t.routing.aux);
        aux.fold(loss, |sum, a| sum + &a.value).backward();
        for param in store.entries().iter().filter(|p| p.role != Role::Buffer) {
            let grad = param.tensor.grad();
            let reached = grad.defined() && grad.abs().max().double_value(&[]) > 0.0;
            assert!(reached, "{name}: no gradient reaches {}", param.name);
        }
    }
}

#[test]
fn a_model_is_as_causal_as_its_preset_says() {
    for (name, config) in served() {
        let (_, model) = model(config.as_ref());
        let (x_bt, half) = (tokens(), 4);
        let late_bt = (x_bt.narrow(1, half, half) + 5).remainder(VOCAB);
        let other_bt = Tensor::cat(&[x_bt.narrow(1, 0, half), late_bt], 1);
        let early = |x_bt: &Tensor| logits(&model, x_bt).narrow(1, 0, half);
        assert_eq!(same(&early(&x_bt), &early(&other_bt)), config.causal(), "{name}");
    }
}

/// Sequences meet nowhere, though the recipe routes the batch as a whole.
#[test]
fn a_graph_ends_with_its_sequence() {
    for (name, config) in served() {
        let (_, model) = model(config.as_ref());
        let together = logits(&model, &tokens()).narrow(0, 0, 1);
        let alone = logits(&model, &tokens().narrow(0, 0, 1));
        assert!(same(&together, &alone), "{name}");
    }
}

/// The attention's graph is not the identity: choices differ from those of the router without one.
#[test]
fn attention_bears_on_the_choice() {
    let of = |preset: &str| logits(&model(config(preset, &[]).as_ref()).1, &tokens());
    assert!(!same(&of("attention"), &of("none")));
}

#[test]
fn what_no_block_hands_in_is_refused_by_key() {
    let reason = |preset: &str, more: &[(&str, &str)]| {
        config(preset, more).check_block(HEADS as usize).unwrap_err().to_string()
    };
    assert_eq!(reason("given", &[]), "graph: no block hands in a graph for `given`");
    for (pool, what) in [("weighted", "weights"), ("posterior", "values")] {
        let want = format!("pool: no block hands in the head {what} of `{pool}`");
        assert_eq!(reason("attention", &[("pool", pool)]), want);
    }
    let mut single = settings("attention", &[("pool", "single")]);
    single.insert("head".into(), HEADS.into());
    let error = PAPER.router(&single).unwrap().check_block(HEADS as usize).unwrap_err();
    assert_eq!(error.to_string(), "head: 2 is out of range 0..2 (model.heads)");
}
