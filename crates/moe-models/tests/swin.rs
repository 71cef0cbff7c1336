//! Laws of the hierarchical image classifier.
//!
//! Axis letters: `b` batch, `c` channels, `h` height, `w` width, `v` classes, `l` sparse layers.

use moe_models::{ImageClassifier, ImageSpec, LayerTrace, LmConfig, Rules, Swin, SwinConfig};
use moe_routers::residual::residual_config;
use moe_routers::tolerance::tolerance;
use moe_routers::{
    ParamStore, Phase, Role, RouteCx, RouterConfig, SeededNoise, Settings, router_config, routers,
};
use tch::{Device, Kind, Tensor};

/// A map of 6 x 8 tokens, then one of 3 x 4.
const SPEC: ImageSpec = ImageSpec { chw: [3, 12, 16], classes: 5 };
const PATCH: i64 = 2;
const BATCH: i64 = 4;

fn first() -> LmConfig {
    LmConfig { width: 8, experts: 4, active_hidden: 16, ..LmConfig::default() }
}

fn config() -> SwinConfig {
    let (depths, heads, moe_stages) = (vec![2, 4], vec![2, 4], vec![1, 2]);
    SwinConfig { depths, heads, window: 4, moe_stages, drop_path: 0.0 }
}

fn router(name: &str, settings: serde_json::Value) -> Box<dyn RouterConfig> {
    let serde_json::Value::Object(settings) = settings else { panic!("a table") };
    router_config(name, &settings).unwrap()
}

fn plain(name: &str) -> Box<dyn RouterConfig> {
    router_config(name, &Settings::new()).unwrap()
}

fn build(config: &SwinConfig, rules: &Rules<'_>) -> (ParamStore, Swin) {
    let store = ParamStore::new(3, Device::Cpu, Kind::Float);
    let swin = Swin::new(&store, (config, PATCH), &first(), rules, SPEC).unwrap();
    wake(&store);
    (store, swin)
}

fn images() -> Tensor {
    let store = ParamStore::new(9, Device::Cpu, Kind::Float);
    store.root().matrix("x", &[BATCH, 3, 12, 16], 1.0).detach()
}

/// The classifier starts at zero; with values in it, its gradient reaches the blocks.
fn wake(store: &ParamStore) {
    for param in store.entries().iter().filter(|p| p.name.starts_with("head.")) {
        let _ = tch::no_grad(|| param.tensor.shallow_clone().uniform_(-1.0, 1.0));
    }
}

fn tokens_l(traces: &[LayerTrace]) -> Vec<i64> {
    traces.iter().map(|trace| trace.routing.logits_gte.size()[..2].iter().product()).collect()
}

#[test]
fn every_parameter_of_every_router_receives_a_gradient() {
    let noise = SeededNoise::train(0, 0);
    let cx = RouteCx::new(Phase::Train { step: 0 }, &noise);
    for paper in routers().filter(|paper| paper.id != "hash" && paper.id != "stable-moe") {
        let router = plain(paper.id);
        if router.reads_attention() {
            continue;
        }
        let (store, swin) = build(&config(), &Rules::new(router.as_ref()));
        let (logits_bv, traces) = swin.forward(&images(), &cx).unwrap();
        assert_eq!(logits_bv.size(), [BATCH, 5], "{}", paper.id);
        let aux = traces.iter().flat_map(|trace| &trace.routing.aux);
        let aux: Vec<Tensor> = aux.map(|aux| &aux.value * aux.weight).collect();
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

/// Every second block of both stages is sparse: blocks 1 of 2, and 3 and 5 of 4 more. Width doubles.
#[test]
fn stages_have_their_maps_widths_and_sparse_blocks() {
    let (store, swin) = build(&config(), &Rules::new(plain("smoe").as_ref()));
    let noise = SeededNoise::eval(0, 0);
    let (feature_bd, traces) =
        swin.features(&images(), &RouteCx::new(Phase::Eval, &noise)).unwrap();
    assert_eq!(feature_bd.size(), [BATCH, 16]);
    assert_eq!(tokens_l(&traces), [BATCH * 48, BATCH * 12, BATCH * 12]);
    let entries = store.entries();
    let shape = |name: &str| entries.iter().find(|p| p.name == name).map(|p| p.tensor.size());
    let sparse = (0..6).filter(|block| shape(&format!("layers.{block}.experts.w1")).is_some());
    assert_eq!(sparse.collect::<Vec<_>>(), [1, 3, 5]);
    // Two of four experts a token: half the active width each, of 16 and 32.
    assert_eq!(shape("layers.1.experts.w1").unwrap(), [4, 8, 8]);
    assert_eq!(shape("layers.3.experts.w1").unwrap(), [4, 16, 16]);
    assert_eq!(shape("merge.0.weight").unwrap(), [16, 32]);
    // Windows of 4 on the first map; of 3, its shorter side, on the second.
    assert_eq!(shape("layers.0.attention.position").unwrap(), [49, 2]);
    assert_eq!(shape("layers.5.attention.position").unwrap(), [25, 4]);
}

/// A pixel of one image changes the scores of that image and of no other, wherever it is: windows, shifts
/// and the merging leave no place out.
#[test]
fn every_place_of_an_image_counts_and_no_other_image() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let (_store, swin) = build(&config(), &Rules::new(plain("dense").as_ref()));
    let base = swin.forward(&images(), &cx).unwrap().0;
    for (row, column) in (0..6).flat_map(|row| (0..8).map(move |column| (row, column))) {
        let changed = images();
        let patch = changed.get(1).narrow(1, row * PATCH, PATCH).narrow(2, column * PATCH, PATCH);
        let _ = patch.shallow_clone().uniform_(-1.0, 1.0);
        let off_b = (swin.forward(&changed, &cx).unwrap().0 - &base).abs().amax([-1], false);
        let off_b: Vec<f64> = Vec::try_from(off_b.to_kind(Kind::Double)).unwrap();
        assert!(off_b[1] > tolerance(Kind::Float).value, "{row} {column}");
        assert_eq!((off_b[0], off_b[2]), (0.0, 0.0));
    }
}

/// ACMoE scales nothing without a layer before it. So the first sparse layer of each stage routes as its
/// router does on its own, and the second of a stage does not.
#[test]
fn nothing_is_handed_on_from_stage_to_stage() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let ac_moe = router("ac-moe", serde_json::json!({ "preset": "swin" }));
    let (_store, swin) = build(&config(), &Rules::new(ac_moe.as_ref()));
    let (_, traces) = swin.features(&images(), &cx).unwrap();
    let limit = tolerance(Kind::Float).value;
    for (trace, first_of_stage) in traces.iter().zip([true, true, false]) {
        let layer = swin.sparse_layers()[trace.layer];
        let x_gtd = trace.input_gtd.as_ref().unwrap();
        let alone = layer.router.route(x_gtd, &cx).unwrap();
        let same = trace.routing.logits_gte.allclose(&alone.logits_gte, limit, limit, false);
        assert_eq!(same, first_of_stage, "layer {}", trace.layer);
    }
}

/// Momentum begins anew in every stage: the width is another. It is another model than the plain residual.
#[test]
fn residuals_carry_within_a_stage() {
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let smoe = plain("smoe");
    let features = |name: &str| {
        let residual = residual_config(name, &Settings::new()).unwrap();
        let rules = Rules { residual: residual.as_ref(), ..Rules::new(smoe.as_ref()) };
        let (_store, swin) = build(&config(), &rules);
        swin.features(&images(), &cx).unwrap().0
    };
    let (with, without) = (features("robust-momentum"), features("plain"));
    assert_eq!(with.size(), without.size());
    assert!(!with.allclose(&without, tolerance(Kind::Float).value, 0.0, false));
}

/// Stochastic depth leaves out whole sublayers of an image, in training alone.
#[test]
fn paths_are_dropped_in_training_and_not_at_evaluation() {
    let smoe = plain("smoe");
    let rules = Rules::new(smoe.as_ref());
    let features = |drop_path: f64, phase: Phase, step: u64| {
        let (_store, swin) = build(&SwinConfig { drop_path, ..config() }, &rules);
        let noise = SeededNoise::train(7, step);
        swin.features(&images(), &RouteCx::new(phase, &noise)).unwrap().0
    };
    let train = Phase::Train { step: 0 };
    assert_eq!(features(0.5, Phase::Eval, 0), features(0.0, Phase::Eval, 0));
    assert_eq!(features(0.5, train, 0), features(0.5, train, 0));
    assert_ne!(features(0.5, train, 0), features(0.5, train, 1));
    assert_ne!(features(0.5, train, 0), features(0.0, train, 0));
}

/// Counted by walking over the parameters, with padded windows: 6 x 8 tokens are two by two windows of 4,
/// two rows of them padding: 64 rows; 3 x 4 tokens are two windows of 3, two columns padding: 18 rows.
#[test]
fn flops_are_the_products_of_every_matrix_with_its_rows() {
    let _guard = tch::no_grad_guard();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let (store, swin) = build(&config(), &Rules::new(plain("v-moe").as_ref()));
    let (_, traces) = swin.forward(&images(), &cx).unwrap();
    let rows = |trace: &LayerTrace| {
        trace.routing.plan.load_e().sum(Kind::Double).double_value(&[]) / BATCH as f64
    };
    let rows_l: Vec<f64> = traces.iter().map(rows).collect();
    let passes = |name: &str| -> f64 {
        let parts: Vec<&str> = name.split('.').collect();
        let first = |layer: &str| ["0", "1"].contains(&layer);
        match parts.as_slice() {
            ["patch", "weight"] => 48.0,
            ["merge", "0", "weight"] => 12.0,
            ["head", "weight"] => 1.0,
            ["layers", _, "attention", "position"] => 0.0,
            ["layers", layer, "attention", _] => {
                if first(layer) {
                    64.0
                } else {
                    18.0
                }
            }
            ["layers", layer, "dense" | "router", _] => {
                if first(layer) {
                    48.0
                } else {
                    12.0
                }
            }
            // The bank's values are those of four experts.
            ["layers", layer, "experts", _] => {
                rows_l[["1", "3", "5"].iter().position(|l| l == layer).unwrap()] / 4.0
            }
            _ => 0.0,
        }
    };
    let bias = |name: &str| name.contains(".b1") || name.contains(".b2");
    let entries = store.entries();
    let matrices = entries.iter().filter(|p| p.tensor.dim() > 1 && !bias(&p.name));
    let products: f64 = matrices.map(|p| passes(&p.name) * p.tensor.numel() as f64).sum();
    // Queries with keys, and weights with values, among 16 and 9 tokens, in two and four blocks.
    let attention = 2.0 * 2.0 * 64.0 * 16.0 * 8.0 + 4.0 * 2.0 * 18.0 * 9.0 * 16.0;
    let (want, got) = (2.0 * (products + attention), swin.flops(&rows_l));
    assert!((got - want).abs() < 1.0, "{got} {want}");
}

#[test]
fn bad_sizes_name_their_key() {
    let said = |change: &dyn Fn(&mut SwinConfig)| {
        let mut config = config();
        change(&mut config);
        config.stages(&first(), [6, 8]).unwrap_err().to_string()
    };
    assert_eq!(said(&|c| c.depths.clear()), "swin.depths: 0 stages are outside 1..=16");
    assert_eq!(said(&|c| c.depths[1] = 0), "swin.depths: 0 is outside 1..=4096");
    assert_eq!(said(&|c| c.heads[0] = 0), "swin.heads: 0 is outside 1..=4096");
    assert_eq!(said(&|c| c.heads.truncate(1)), "swin.heads: 1 values for the 2 stages of depths");
    assert_eq!(said(&|c| c.heads[1] = 3), "swin.heads: 3 does not divide width 16");
    assert_eq!(said(&|c| c.window = 0), "swin.window: 0 is outside 1..=4096");
    assert_eq!(said(&|c| c.moe_stages = vec![3]), "swin.moe_stages: 3 is no stage among 2");
    let none = "swin.moe_stages: no block is sparse with moe_every = 2";
    assert_eq!(said(&|c| c.moe_stages.clear()), none);
    assert_eq!(said(&|c| c.drop_path = 1.0), "swin.drop_path: 1 is outside 0..1");

    let store = ParamStore::new(3, Device::Cpu, Kind::Float);
    let attentive = router("token-graph", serde_json::json!({ "graph": "attention" }));
    assert!(attentive.reads_attention());
    let rules = Rules::new(attentive.as_ref());
    let error = Swin::new(&store, (&config(), PATCH), &first(), &rules, SPEC).unwrap_err();
    let want = "swin.window: this router reads attention over the whole image";
    assert_eq!(error.to_string(), want);
    let smoe = plain("smoe");
    let error = Swin::new(&store, (&config(), 5), &first(), &Rules::new(smoe.as_ref()), SPEC);
    assert_eq!(error.unwrap_err().to_string(), "patch: 5 does not divide images of 12 x 16");
}
