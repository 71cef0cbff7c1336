//! The gradient of a step: whole, or from one micro batch after another.

use moe_data::{Corpus, TokenStream, TokenizerSpec};
use moe_models::{DecoderLm, LmConfig, LossWeights, Rules};
use moe_routers::tolerance::tolerance;
use moe_routers::{ParamStore, Role, Settings, router_config};
use moe_train::{LmTask, TrainConfig, Trainer};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A trainer of a tiny model of `router`, without a balance loss.
fn trainer(router: &str, accumulate: usize) -> Trainer {
    let text = b"abcabdabe ".repeat(60);
    let corpus = Corpus::from_bytes("abc", &text, &text, &text).unwrap();
    let data = Arc::new(TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap());
    let config = LmConfig {
        width: 16,
        layers: 2,
        heads: 2,
        context: 16,
        experts: 4,
        active_hidden: 32,
        ..LmConfig::default()
    };
    let train = TrainConfig { batch: 4, accumulate, sequence: 16, ..TrainConfig::default() };
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let router = router_config(router, &Settings::new()).unwrap();
    let losses = LossWeights { balance: Some(0.0), ..LossWeights::default() };
    let rules = Rules { losses, ..Rules::new(router.as_ref()) };
    let model = DecoderLm::new(&store, &config, &rules, 256).unwrap();
    let task = LmTask::new(model, data, (train.batch, train.sequence), Device::Cpu);
    Trainer::new(Box::new(task), store, train, 0)
}

/// Every parameter's gradient after a first step.
fn gradients(trainer: &Trainer) -> Vec<Tensor> {
    let entries = trainer.store().entries();
    entries.iter().filter(|p| p.role != Role::Buffer).map(|p| p.tensor.grad().copy()).collect()
}

#[test]
fn micro_batches_have_the_gradient_and_the_loss_of_the_whole_batch() {
    let mut whole = trainer("smoe", 1);
    let want = whole.train_step().unwrap();
    let limits = tolerance(Kind::Float);
    for parts in [2, 4] {
        let mut cut = trainer("smoe", parts);
        let got = cut.train_step().unwrap();
        assert!((got.loss - want.loss).abs() < limits.value, "{} for {}", got.loss, want.loss);
        assert!((got.grad_norm - want.grad_norm).abs() < limits.gradient);
        for (a, b) in gradients(&cut).iter().zip(&gradients(&whole)) {
            let off = (a - b).abs().max().double_value(&[]);
            assert!(off < limits.gradient, "{parts} parts: {off}");
        }
    }
}

/// A selection bias moves by the sign of a step's loads: those of all micro batches together.
#[test]
fn routers_see_the_loads_of_the_whole_step() {
    let bias = |parts: usize| {
        let mut trainer = trainer("deepseek-v3", parts);
        trainer.train_step().unwrap();
        let entries = trainer.store().entries();
        let buffers = entries.iter().filter(|p| p.role == Role::Buffer);
        buffers.map(|p| p.tensor.copy()).collect::<Vec<_>>()
    };
    let whole = bias(1);
    assert!(!whole.is_empty() && whole[0].abs().max().double_value(&[]) > 0.0);
    assert_eq!(bias(4), whole);
}

#[test]
fn a_batch_that_cannot_be_cut_is_refused() {
    for accumulate in [0, 3] {
        let config = TrainConfig { batch: 4, accumulate, ..TrainConfig::default() };
        let (key, reason) = config.check().unwrap_err();
        assert_eq!((key, reason), ("accumulate", format!("{accumulate} does not divide batch 4")));
    }
}

#[test]
fn the_parts_of_a_step_are_timed() {
    let report = trainer("smoe", 2).train_step().unwrap();
    let phases = report.phases;
    assert!(phases.forward > 0.0 && phases.backward > 0.0 && phases.update > 0.0);
    assert!(phases.forward + phases.backward + phases.update <= report.seconds);
}
