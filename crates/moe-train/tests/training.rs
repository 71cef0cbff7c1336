//! The step and the evaluation.

use moe_data::{Corpus, Split, TokenStream, TokenizerSpec};
use moe_models::{DecoderLm, LmConfig, Rules};
use moe_routers::{ParamStore, Settings, router_config};
use moe_train::{LmTask, TrainConfig, TrainError, Trainer};
use std::sync::Arc;
use tch::{Device, Kind};

fn trainer(change: impl FnOnce(&mut TrainConfig)) -> Trainer {
    trainer_of(None, change)
}

fn trainer_of(span: Option<i64>, change: impl FnOnce(&mut TrainConfig)) -> Trainer {
    let text = b"abcabcabc ".repeat(60);
    let corpus = Corpus::from_bytes("abc", &text, &text, &text).unwrap();
    let data = Arc::new(TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap());
    let model = LmConfig {
        width: 16,
        layers: 2,
        heads: 2,
        context: 16,
        experts: 4,
        active_hidden: 32,
        span,
        ..LmConfig::default()
    };
    let mut train = TrainConfig {
        steps: 60,
        batch: 4,
        sequence: 16,
        lr: 1e-2,
        warmup: 4,
        ..TrainConfig::default()
    };
    change(&mut train);
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let router = router_config("smoe", &Settings::new()).unwrap();
    let model = DecoderLm::new(&store, &model, &Rules::new(router.as_ref()), 256).unwrap();
    let task = LmTask::new(model, data, (train.batch, train.sequence), Device::Cpu);
    Trainer::new(Box::new(task), store, train, 0)
}

#[test]
fn training_learns_and_evaluation_changes_nothing() {
    let mut trainer = trainer(|_| {});
    let before = trainer.evaluate(Split::Valid, None).unwrap();
    // 256 bytes, small initial logits: close to a uniform guess.
    assert!((before.loss - 256f64.ln()).abs() < 0.2, "{}", before.loss);
    assert_eq!(before.layers[0].load_e.iter().sum::<f64>() as usize, 2 * before.tokens);
    let same = trainer.evaluate(Split::Valid, None).unwrap();
    assert_eq!((before.loss, &before.layers), (same.loss, &same.layers));
    for step in 1..=60 {
        let report = trainer.train_step().unwrap();
        assert_eq!(report.step, step);
        assert_eq!(report.aux.len(), 1);
        assert_eq!(report.aux[0].0, "layer0/balance");
    }
    let after = trainer.evaluate(Split::Valid, None).unwrap();
    // Without context: 0.3 ln(1/0.3) for each letter and 0.1 ln(10) for the blank, 1.31 nats.
    assert!(after.loss < 1.0, "no use made of context: {}", after.loss);
}

/// Without learning, one pass of steps is one evaluation, memory and all; the next pass begins again
/// without memory.
#[test]
fn texts_side_by_side_are_read_to_their_end_and_again() {
    let mut trainer = trainer_of(Some(20), |t| t.lr = 0.0);
    let whole = trainer.evaluate(Split::Train, None).unwrap();
    let stretches = whole.tokens / 64;
    assert_eq!(stretches, 9, "600 bytes, four texts of 149, stretches of 16");
    let mut pass =
        || -> Vec<f64> { (0..stretches).map(|_| trainer.train_step().unwrap().loss).collect() };
    let (first, second) = (pass(), pass());
    assert_eq!(first, second);
    let mean = first.iter().sum::<f64>() / stretches as f64;
    assert!((mean - whole.loss).abs() < 1e-5, "{mean} in training, {} evaluated", whole.loss);
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update() {
    let mut trainer = trainer(|t| t.lr = 1e30);
    let error =
        (0..20).find_map(|_| trainer.train_step().err()).expect("this learning rate diverges");
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    let taken = trainer.steps_taken();
    assert!(trainer.train_step().is_err() && trainer.steps_taken() == taken);
}

#[test]
fn settings_out_of_range_name_their_key() {
    let refused = |change: fn(&mut TrainConfig)| {
        let mut config = TrainConfig::default();
        change(&mut config);
        config.check().unwrap_err().0
    };
    assert_eq!(refused(|c| c.batch = 0), "batch");
    assert_eq!(refused(|c| c.lr = f64::NAN), "lr");
    assert_eq!(refused(|c| c.adamw.beta2 = 1.0), "adamw.beta2");
    assert_eq!(refused(|c| c.clip = -1.0), "clip");
}
