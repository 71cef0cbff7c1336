//! The model with sliding attention and a memory.

use moe_models::{DecoderLm, LmConfig, Memory, Rules};
use moe_routers::tolerance::tolerance;
use moe_routers::{Norm, ParamStore, Phase, RouteCx, SeededNoise, Settings, router_config};
use tch::{Device, Kind, Tensor};

fn model(config: LmConfig) -> (ParamStore, DecoderLm) {
    let store = ParamStore::new(3, Device::Cpu, Kind::Double);
    let sizes = LmConfig {
        width: 8,
        layers: 4,
        heads: 2,
        context: 12,
        experts: 4,
        active_hidden: 16,
        norm: Norm::Post,
        ..config
    };
    let router = router_config("smoe", &Settings::new()).unwrap();
    let model = DecoderLm::new(&store, &sizes, &Rules::new(router.as_ref()), 11).unwrap();
    (store, model)
}

fn with_span() -> LmConfig {
    LmConfig { span: Some(5), ..LmConfig::default() }
}

fn tokens() -> Tensor {
    (Tensor::arange(24, (Kind::Int64, Device::Cpu)) * 7).remainder(11).view([2, 12])
}

fn loss(model: &DecoderLm, memory: &mut Memory, [first, count]: [i64; 2], phase: Phase) -> f64 {
    let noise = SeededNoise::train(0, 0);
    let x_bt = tokens().narrow(1, first, count);
    let cx = RouteCx::new(phase, &noise);
    model.loss_after(memory, &x_bt, &x_bt, &cx).unwrap().0.double_value(&[])
}

/// The router drops nobody, so a text is the same text however it is cut.
#[test]
fn a_text_in_pieces_has_the_loss_of_the_whole() {
    let (_store, model) = model(with_span());
    let whole = loss(&model, &mut model.no_memory(2), [0, 12], Phase::Eval);
    for cut in [1, 4, 7, 11] {
        let mut memory = model.no_memory(2);
        let first = loss(&model, &mut memory, [0, cut], Phase::Eval) * cut as f64;
        let second = loss(&model, &mut memory, [cut, 12 - cut], Phase::Eval) * (12 - cut) as f64;
        let pieces = (first + second) / 12.0;
        assert!((whole - pieces).abs() < tolerance(Kind::Double).value, "{cut}: {whole}, {pieces}");
        let forgotten = loss(&model, &mut model.no_memory(2), [cut, 12 - cut], Phase::Eval);
        assert!((forgotten * (12 - cut) as f64 - second).abs() > 1e-6, "the memory says nothing");
    }
}

#[test]
fn relative_positions_take_the_place_of_absolute_ones() {
    let (store, model) = model(with_span());
    assert!(model.remembers());
    let names: Vec<_> = store.entries().iter().map(|p| p.name.clone()).collect();
    assert!(!names.contains(&"position".to_owned()));
    assert!(names.contains(&"layers.0.attention.position".to_owned()), "{names:?}");
}

/// Masks are a function of the step, do nothing in evaluation, and keep the mean.
#[test]
fn dropout_acts_in_training_alone() {
    let (_a, without) = model(with_span());
    let (_b, with) = model(LmConfig { dropout: 0.3, ..with_span() });
    let of = |model: &DecoderLm, phase| loss(model, &mut model.no_memory(2), [0, 12], phase);
    let train = Phase::Train { step: 0 };
    assert_eq!(of(&with, Phase::Eval), of(&without, Phase::Eval));
    assert_ne!(of(&with, train), of(&without, train));
    assert_eq!(of(&with, train), of(&with, train));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let refused = |config: LmConfig, router: &str| {
        let store = ParamStore::new(3, Device::Cpu, Kind::Float);
        let given = router.split_once(':').map(|(_, preset)| ("preset".into(), preset.into()));
        let name = router.split(':').next().unwrap();
        let router = router_config(name, &Settings::from_iter(given)).unwrap();
        let built = DecoderLm::new(&store, &config, &Rules::new(router.as_ref()), 11);
        built.expect_err("refused").to_string()
    };
    let config = LmConfig { span: Some(0), ..LmConfig::default() };
    assert_eq!(refused(config, "smoe"), "span: 0 is outside 1..=16777216");
    let config = LmConfig { dropout: 1.0, ..LmConfig::default() };
    assert_eq!(refused(config, "smoe"), "dropout: 1 is outside 0..1");
    let why = "span: this router reads attention over the whole sequence";
    assert_eq!(refused(with_span(), "token-graph:attention"), why);
}
