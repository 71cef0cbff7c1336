//! Laws of the image classifier.
//!
//! Axis letters: `b` batch, `c` channels, `h` height, `w` width, `v` classes.

use moe_models::{ImageClassifier, ImageSpec, LmConfig, Pool, RoutingGroup, Rules, Vit, VitConfig};
use moe_routers::tolerance::tolerance;
use moe_routers::v_moe::Placement;
use moe_routers::{
    ParamStore, Phase, Role, RouteCx, RouterConfig, SeededNoise, Settings, router_config, routers,
};
use tch::{Device, Kind, Tensor};

const SPEC: ImageSpec = ImageSpec { chw: [3, 8, 12], classes: 5 };
const BATCH: i64 = 4;

fn blocks() -> LmConfig {
    LmConfig { width: 8, layers: 4, heads: 2, experts: 4, active_hidden: 16, ..LmConfig::default() }
}

fn config(pool: Pool) -> VitConfig {
    VitConfig { patch: 4, pool, placement: None }
}

fn router(name: &str, settings: serde_json::Value) -> Box<dyn RouterConfig> {
    let serde_json::Value::Object(settings) = settings else { panic!("a table") };
    router_config(name, &settings).unwrap()
}

fn plain(name: &str) -> Box<dyn RouterConfig> {
    router_config(name, &Settings::new()).unwrap()
}

fn build(config: &VitConfig, blocks: &LmConfig, router: &dyn RouterConfig) -> (ParamStore, Vit) {
    let store = ParamStore::new(3, Device::Cpu, Kind::Float);
    let vit = Vit::new(&store, config, blocks, &Rules::new(router), SPEC).unwrap();
    (store, vit)
}

fn images() -> Tensor {
    let store = ParamStore::new(9, Device::Cpu, Kind::Float);
    store.root().matrix("x", &[BATCH, 3, 8, 12], 1.0).detach()
}

/// The classifier starts at zero; with values in it, its gradient reaches the blocks.
fn wake(store: &ParamStore) {
    for param in store.entries().iter().filter(|p| p.name.starts_with("head.")) {
        let _ = tch::no_grad(|| param.tensor.shallow_clone().uniform_(-1.0, 1.0));
    }
}

fn rows(traces: &[moe_models::LayerTrace]) -> Vec<f64> {
    let load = |trace: &moe_models::LayerTrace| trace.routing.plan.load_e().sum(Kind::Double);
    traces.iter().map(|trace| load(trace).double_value(&[]) / BATCH as f64).collect()
}

#[test]
fn every_parameter_of_every_router_receives_a_gradient() {
    let noise = SeededNoise::train(0, 0);
    let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
    for paper in routers().filter(|paper| paper.id != "hash" && paper.id != "stable-moe") {
        let (store, vit) = build(&config(Pool::ClassToken), &blocks(), plain(paper.id).as_ref());
        wake(&store);
        let (logits_bv, traces) = vit.forward(&images(), &cx).unwrap();
        assert_eq!(logits_bv.size(), [BATCH, 5], "{}", paper.id);
        let aux: Vec<Tensor> = traces
            .iter()
            .flat_map(|trace| trace.routing.aux.iter().map(|aux| &aux.value * aux.weight))
            .collect();
        let loss = aux.into_iter().fold(logits_bv.sin().square().sum(Kind::Float), |a, b| a + b);
        loss.backward();
        let outer = |name: &str| !name.contains(".router.") && !name.contains(".experts.");
        for param in store.entries().iter().filter(|p| p.role != Role::Buffer && outer(&p.name)) {
            let grad = param.tensor.grad();
            let reached = grad.defined() && grad.abs().max().double_value(&[]) > 0.0;
            assert!(reached, "{}: {}", paper.id, param.name);
        }
    }
}

#[test]
fn a_token_attends_to_all_patches_and_to_their_places() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    for pool in [Pool::ClassToken, Pool::Mean] {
        let (store, vit) = build(&config(pool), &blocks(), plain("dense").as_ref());
        wake(&store);
        let base = vit.forward(&images(), &cx).unwrap().0;
        // Each of the six patches of image 1 changes the scores of that image and of no other.
        for (row, column) in (0..2).flat_map(|row| (0..3).map(move |column| (row, column))) {
            let changed = images();
            let patch = changed.get(1).narrow(1, row * 4, 4).narrow(2, column * 4, 4);
            let _ = patch.shallow_clone().g_add_scalar_(1.0);
            let off_b = (vit.forward(&changed, &cx).unwrap().0 - &base).abs().amax([-1], false);
            let off_b: Vec<f64> = Vec::try_from(off_b.to_kind(Kind::Double)).unwrap();
            assert!(off_b[1] > tolerance(Kind::Float).value, "{pool:?} {row} {column}");
            assert_eq!((off_b[0], off_b[2]), (0.0, 0.0));
        }
        // Two patches exchanged are another image: positions count.
        let halves = images().chunk(2, 2);
        let upside_down = Tensor::cat(&[&halves[1], &halves[0]], 2);
        let other = vit.forward(&upside_down, &cx).unwrap().0;
        assert!(!other.allclose(&base, tolerance(Kind::Float).value, 0.0, false), "{pool:?}");
    }
}

/// Patch (row 1, column 2) of the image is token 6 (after the class token and five patches), and its
/// values come channel by channel, row by row: the map that reads its first green value.
#[test]
fn patches_become_tokens_in_reading_order() {
    let (store, vit) =
        build(&config(Pool::Mean), &LmConfig { layers: 2, ..blocks() }, plain("dense").as_ref());
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let weight =
        store.entries().iter().find(|p| p.name == "patch.weight").unwrap().tensor.shallow_clone();
    assert_eq!(weight.size(), [8, 48]);
    // With a weight that reads only value 16 (channel 1, row 0, column 0), only those pixels matter.
    tch::no_grad(|| {
        let _ = weight.shallow_clone().zero_();
        let _ = weight.select(1, 16).fill_(1.0);
    });
    wake(&store);
    let base = vit.forward(&images(), &cx).unwrap().0;
    let moved = |c: i64, y: i64, x: i64| {
        let changed = images();
        let _ = changed.get(0).get(c).get(y).get(x).g_add_scalar_(1.0);
        let off = (vit.forward(&changed, &cx).unwrap().0 - &base).abs().max();
        off.double_value(&[]) > 0.0
    };
    assert!(moved(1, 0, 0) && moved(1, 4, 8));
    assert!(!moved(0, 0, 0) && !moved(1, 1, 0) && !moved(1, 0, 1) && !moved(2, 4, 8));
}

/// An even guess before training: all scores are 0.
#[test]
fn the_first_scores_are_zero() {
    let (_store, vit) = build(&config(Pool::ClassToken), &blocks(), plain("v-moe").as_ref());
    let noise = SeededNoise::eval(0, 0);
    let (logits_bv, traces) = vit.forward(&images(), &RouteCx::new(Phase::Eval, &noise)).unwrap();
    assert_eq!(logits_bv.abs().max().double_value(&[]), 0.0);
    assert_eq!(traces.len(), 2);
}

#[test]
fn placements_are_those_of_v_moe() {
    for placement in
        [Placement::Every(3), Placement::Every(1), Placement::Last(2), Placement::Last(9)]
    {
        let config = VitConfig { placement: Some(placement), ..config(Pool::Mean) };
        let blocks = LmConfig { layers: 7, ..blocks() };
        let (store, vit) = build(&config, &blocks, plain("smoe").as_ref());
        let sparse = |layer: &usize| {
            let name = format!("layers.{layer}.experts.w1");
            store.entries().iter().any(|p| p.name == name)
        };
        let found: Vec<usize> = (0..7).filter(sparse).collect();
        assert_eq!(found, placement.sparse_layers(7), "{placement:?}");
        assert_eq!(vit.sparse_layers().len(), found.len());
    }
    for (placement, said) in [
        (Placement::Every(0), "placement: 0 must be at least 1"),
        (Placement::Every(9), "placement: no sparse block among 4"),
    ] {
        let config = VitConfig { placement: Some(placement), ..config(Pool::Mean) };
        assert_eq!(config.trunk(&blocks()).unwrap_err().to_string(), said);
    }
    let error = VitConfig { patch: 5, ..config(Pool::Mean) }.check([1, 10, 28]).unwrap_err();
    assert_eq!(error.to_string(), "patch: 5 does not divide images of 10 x 28");
}

/// Capacity and batch priority span a group: with groups of two images, what images 2 and 3 are like
/// changes nothing for images 0 and 1; with the whole batch as a group it does.
#[test]
fn groups_of_images_do_not_see_each_other() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let tight =
        router("v-moe", serde_json::json!({ "preset": "paper_bpr", "capacity_factor": 0.3 }));
    for (group, alone) in [
        (RoutingGroup::Sequences(2), true),
        (RoutingGroup::Sequence, true),
        (RoutingGroup::Batch, false),
        // Three does not divide four: one group.
        (RoutingGroup::Sequences(3), false),
    ] {
        let blocks = LmConfig { routing_group: group, ..blocks() };
        let (store, vit) = build(&config(Pool::ClassToken), &blocks, tight.as_ref());
        for param in store.entries().iter().filter(|p| p.name.contains("router.gate")) {
            let _ = tch::no_grad(|| param.tensor.shallow_clone().g_mul_scalar_(50.0));
        }
        let base = vit.features(&images(), &cx).unwrap().0;
        let scaled = images();
        let _ = scaled.narrow(0, 2, 2).shallow_clone().g_mul_scalar_(-3.0);
        let off = (vit.features(&scaled, &cx).unwrap().0 - base).narrow(0, 0, 2).abs().max();
        assert_eq!(off.double_value(&[]) == 0.0, alone, "{group:?}");
    }
}

/// Counted by walking over the parameters: every value of a matrix is one multiplication and one
/// addition for each row that passes through it.
#[test]
fn flops_are_the_products_of_every_matrix_with_its_rows() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    for (pool, patches, tokens) in [(Pool::ClassToken, 6.0, 7.0), (Pool::Mean, 6.0, 6.0)] {
        for factor in [1.05, 0.4] {
            let settings = serde_json::json!({ "capacity_factor": factor });
            let (store, vit) = build(&config(pool), &blocks(), router("v-moe", settings).as_ref());
            let (_, traces) = vit.forward(&images(), &cx).unwrap();
            let rows_l = rows(&traces);
            let passes = |name: &str| -> f64 {
                let of_layer = |l: &str| rows_l[if l == "1" { 0 } else { 1 }] / 4.0;
                let parts: Vec<&str> = name.split('.').collect();
                match parts.as_slice() {
                    ["patch", "weight"] => patches,
                    ["head", "weight"] => 1.0,
                    ["layers", _, "attention" | "dense" | "router", _] => tokens,
                    // The bank's values are those of four experts.
                    ["layers", layer, "experts", _] => of_layer(layer),
                    _ => 0.0,
                }
            };
            let bias = |name: &str| name.contains(".b1") || name.contains(".b2");
            let products: f64 = store
                .entries()
                .iter()
                .filter(|p| p.tensor.dim() > 1 && !bias(&p.name))
                .map(|p| passes(&p.name) * p.tensor.numel() as f64)
                .sum();
            // Queries with keys, and weights with values, in four layers of width 8.
            let attention = 4.0 * 2.0 * tokens * tokens * 8.0;
            let (want, got) = (2.0 * (products + attention), vit.flops(&rows_l));
            assert!((got - want).abs() < 1.0, "{pool:?} {factor}: {got} {want}");
        }
    }
}

/// k = 2 of 4 experts, 7 tokens of 4 images in one group: without drops 14 rows an image; at C = 0.4
/// every expert keeps round(2 * 28 * 0.4 / 4) = round(5.6) = 6 at most, 24 rows for 4 images.
#[test]
fn capacity_bounds_the_rows_of_an_image() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    for (factor, most) in [(1e9, 14.0), (0.4, 6.0)] {
        for preset in ["paper", "paper_bpr"] {
            let settings = serde_json::json!({ "preset": preset, "capacity_factor": factor });
            let (_store, vit) =
                build(&config(Pool::ClassToken), &blocks(), router("v-moe", settings).as_ref());
            let rows_l = rows(&vit.forward(&images(), &cx).unwrap().1);
            assert!(rows_l.iter().all(|&rows| rows <= most), "{preset} {rows_l:?}");
            assert!(factor < 1.0 || rows_l == [most, most], "{preset} {rows_l:?}");
        }
    }
}
