//! Every residual with different routers, layouts and norms.

use moe_models::{DecoderLm, LmConfig, Norm, Output, RoutingGroup, Rules};
use moe_routers::residual::{names, residual_config};
use moe_routers::tolerance::tolerance;
use moe_routers::{
    Method, PAPERS, ParamStore, Phase, ResidualConfig, Role, RouteCx, SeededNoise, Settings,
    router_config,
};
use serde_json::Value;
use tch::{Kind, Tensor};

const ROUTERS: [&str; 3] = ["smoe", "soft-moe", "x-moe"];

/// Two sparse layers: all of two, or in GLaM's layout every other one of four.
fn tiny(moe_every: i64, norm: Norm) -> LmConfig {
    LmConfig {
        width: 16,
        layers: 2 * moe_every,
        moe_every,
        heads: 2,
        context: 8,
        experts: 4,
        active_hidden: 32,
        norm,
        routing_group: RoutingGroup::Sequence,
        ..LmConfig::default()
    }
}

fn read(name: &str, settings: &[(&str, Value)]) -> Box<dyn ResidualConfig> {
    let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    residual_config(name, &settings.collect()).unwrap()
}

fn model(
    router: &str,
    residual: &dyn ResidualConfig,
    config: &LmConfig,
) -> (ParamStore, DecoderLm) {
    residual.check(config.sparse_layers()).unwrap();
    let store = ParamStore::new(2, tch::Device::Cpu, Kind::Float);
    let router = router_config(router, &Settings::new()).unwrap();
    let rules = Rules { residual, ..Rules::new(router.as_ref()) };
    let model = DecoderLm::new(&store, config, &rules, 11).unwrap();
    (store, model)
}

fn tokens() -> Tensor {
    (Tensor::arange(24, (Kind::Int64, tch::Device::Cpu)) * 7).remainder(11).view([3, 8])
}

fn run(model: &DecoderLm, x_bt: &Tensor, phase: Phase) -> Output {
    let noise = SeededNoise::train(0, 0);
    model.forward(x_bt, &RouteCx::new(phase, &noise)).unwrap()
}

/// Trains once and says which parameters no gradient reaches.
fn unreached(store: &ParamStore, model: &DecoderLm) -> Vec<String> {
    let noise = SeededNoise::train(0, 0);
    let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
    let (loss, traces) = model.loss(&tokens(), &tokens(), &cx).unwrap();
    let aux = traces.iter().flat_map(|trace| &trace.routing.aux);
    aux.fold(loss, |sum, a| sum + &a.value).backward();
    assert_eq!(traces.len(), 2, "one trace per sparse layer, however often it is called");
    let reached = |t: &Tensor| t.grad().defined() && t.grad().abs().max().double_value(&[]) > 0.0;
    let entries = store.entries();
    let learned = entries.iter().filter(|p| p.role != Role::Buffer);
    learned.filter(|p| !reached(&p.tensor)).map(|p| p.name.clone()).collect()
}

#[test]
fn every_parameter_gets_a_gradient_beside_every_router() {
    for (moe_every, norm) in [(1, Norm::Pre), (1, Norm::Post), (2, Norm::Pre), (2, Norm::Post)] {
        let config = tiny(moe_every, norm);
        for (router, name) in
            ROUTERS.into_iter().flat_map(|r| names().into_iter().map(move |n| (r, n)))
        {
            let (store, model) = model(router, read(name, &[]).as_ref(), &config);
            let unreached = unreached(&store, &model);
            assert!(unreached.is_empty(), "{router}+{name} {norm:?} {moe_every}: {unreached:?}");
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient_in_every_preset() {
    let residuals = PAPERS.iter().filter(|paper| matches!(paper.method, Method::Residual(_)));
    for (paper, preset) in residuals.flat_map(|p| p.presets.iter().map(move |s| (p, *s))) {
        let residual = read(paper.id, &[("preset", preset.into())]);
        let (store, model) = model("smoe", residual.as_ref(), &tiny(2, Norm::Pre));
        let unreached = unreached(&store, &model);
        assert!(unreached.is_empty(), "{}:{preset}: {unreached:?}", paper.id);
    }
}

/// Heavy ball without memory is the plain residual, and so is the plain rule: bit for bit, with the
/// same parameters under the same names.
#[test]
fn without_momentum_a_model_is_the_plain_one() {
    for (moe_every, norm) in [(1, Norm::Pre), (2, Norm::Post)] {
        let config = tiny(moe_every, norm);
        let logits = |residual: &dyn ResidualConfig| {
            let (store, model) = model("smoe", residual, &config);
            let names: Vec<_> = store.entries().iter().map(|p| p.name.clone()).collect();
            (run(&model, &tokens(), Phase::Eval).logits_btv, names)
        };
        let plain = logits(read("plain", &[]).as_ref());
        let router = router_config("smoe", &Settings::new()).unwrap();
        assert_eq!(logits(Rules::new(router.as_ref()).residual), plain);
        assert_eq!(logits(read("momentum", &[("mu", 0.0.into())]).as_ref()), plain);
        assert_eq!(logits(read("momentum", &[("rule", "plain".into())]).as_ref()), plain);
        assert_ne!(logits(read("momentum", &[]).as_ref()).0, plain.0);
    }
}

/// What is carried reaches the next sparse layer through a dense one: the second sparse layer's step
/// depends on mu, the first one's does not.
#[test]
fn momentum_begins_in_the_second_sparse_layer() {
    let first_two = |mu: f64| {
        let (_, model) =
            model("smoe", read("momentum", &[("mu", mu.into())]).as_ref(), &tiny(2, Norm::Pre));
        let output = run(&model, &tokens(), Phase::Eval);
        let [a, b] = output.traces.as_slice() else { panic!("two sparse layers") };
        (a.routing.logits_gte.copy(), b.routing.logits_gte.copy(), output.logits_btv)
    };
    let (with, without) = (first_two(0.7), first_two(0.0));
    // Both layers are reached by streams that no momentum has touched yet.
    assert_eq!((&with.0, &with.1), (&without.0, &without.1));
    assert_ne!(with.2, without.2);
}

#[test]
fn causal_routers_stay_causal_with_causal_residuals() {
    for (router, name) in
        ["smoe", "x-moe"].into_iter().flat_map(|r| names().into_iter().map(move |n| (r, n)))
    {
        let residual = read(name, &[]);
        let (_, model) = model(router, residual.as_ref(), &tiny(2, Norm::Pre));
        let logits = |x_bt: &Tensor| run(&model, x_bt, Phase::Eval).logits_btv;
        let (x_bt, half) = (tokens(), 4);
        let late = x_bt.narrow(1, half, half).remainder(5) + 5;
        let other = Tensor::cat(&[x_bt.narrow(1, 0, half), late], 1);
        let gap = (logits(&x_bt) - logits(&other)).narrow(1, 0, half).abs().max();
        let same = gap.double_value(&[]) < tolerance(Kind::Float).value;
        assert!(same || !residual.causal(), "{router}+{name}: the model sees the future");
    }
}
