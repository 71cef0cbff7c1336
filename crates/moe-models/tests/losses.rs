//! Losses that a recipe adds: their weights, their gradients, and their refusal.

use moe_models::{DecoderLm, LmConfig, LossWeights, Rules};
use moe_routers::config::Part;
use moe_routers::{
    ParamStore, Phase, RouteCx, Routing, SeededNoise, Settings, router_config, routers,
};
use tch::{Device, Kind, Tensor};

const ALL: LossWeights = LossWeights { balance: Some(0.5), importance: Some(0.25), z: Some(0.125) };

fn config() -> LmConfig {
    LmConfig {
        width: 16,
        layers: 2,
        heads: 2,
        context: 8,
        experts: 4,
        active_hidden: 32,
        ..LmConfig::default()
    }
}

/// The routing of the only sparse layer of a tiny model.
fn routing(router: &str, losses: LossWeights) -> (ParamStore, Routing) {
    let router = router_config(router, &Settings::new()).unwrap();
    let store = ParamStore::new(2, Device::Cpu, Kind::Float);
    let rules = Rules { losses, ..Rules::new(router.as_ref()) };
    let model = DecoderLm::new(&store, &config(), &rules, 11).unwrap();
    let noise = SeededNoise::train(0, 0);
    let x_bt = Tensor::arange(24, (Kind::Int64, Device::Cpu)).remainder(11).view([3, 8]);
    let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
    let mut output = model.forward(&x_bt, &cx).unwrap();
    (store, output.traces.remove(0).routing)
}

fn weights(routing: &Routing) -> Vec<(&'static str, f64)> {
    routing.aux.iter().map(|aux| (aux.name, aux.weight)).collect()
}

#[test]
fn a_loss_that_is_there_gets_the_weight_and_one_that_is_not_is_added() {
    let (_, own) = routing("smoe", LossWeights::default());
    assert_eq!(weights(&own), [("balance", 0.01)]);
    let (_, more) = routing("smoe", ALL);
    assert_eq!(weights(&more), [("balance", 0.5), ("importance", 0.25), ("z", 0.125)]);
    assert_eq!(own.aux[0].value, more.aux[0].value, "the value is the router's");
}

#[test]
fn every_loss_that_is_not_refused_reaches_the_router() {
    for paper in routers() {
        let router = router_config(paper.id, &Settings::new()).unwrap();
        let parts =
            [Part::Balance, Part::Balance, Part::ZLoss].map(|p| router.refuses(p).is_none());
        let [balance, importance, z] = parts;
        let asked = LossWeights {
            balance: ALL.balance.filter(|_| balance),
            importance: ALL.importance.filter(|_| importance),
            z: ALL.z.filter(|_| z),
        };
        asked.check(router.as_ref()).unwrap();
        for (name, wanted) in [("balance", balance), ("importance", importance), ("z", z)] {
            let (store, routing) = routing(paper.id, asked);
            let Some(aux) = routing.aux.into_iter().find(|a| a.name == name && wanted) else {
                assert!(!wanted, "{}: {name} is missing", paper.id);
                continue;
            };
            aux.value.backward();
            let reached = |p: &moe_routers::Param| {
                let grad = p.tensor.grad();
                grad.defined() && grad.abs().max().double_value(&[]) > 0.0
            };
            let entries = store.entries();
            let mut router = entries.iter().filter(|p| p.name.contains("router"));
            assert!(router.any(reached), "{}: {name} moves no parameter of the router", paper.id);
        }
    }
}

#[test]
fn what_a_router_refuses_is_refused_with_the_key() {
    for paper in routers() {
        let router = router_config(paper.id, &Settings::new()).unwrap();
        for (part, weights, key) in [
            (Part::Balance, LossWeights { balance: Some(1.0), ..Default::default() }, "balance"),
            (Part::ZLoss, LossWeights { z: Some(1.0), ..Default::default() }, "z"),
        ] {
            match (router.refuses(part), weights.check(router.as_ref())) {
                (None, Ok(())) => {}
                (Some(reason), Err((named, said))) => {
                    assert!(named == key && said.contains(reason), "{named}: {said}");
                }
                (refused, checked) => panic!("{}: {refused:?}, but {checked:?}", paper.id),
            }
        }
    }
}
