//! The gradient of a step: whole, or from one micro batch after another.

use moe_data::{Corpus, TokenStream, TokenizerSpec};
use moe_models::{DecoderLm, LmConfig, LossWeights, Precision, Recompute, Rules};
use moe_routers::tolerance::tolerance;
use moe_routers::{ParamStore, Role, Settings, router_config};
use moe_train::{LmTask, TrainConfig, Trainer, checkpoint};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A trainer of a tiny model of `router`, without a balance loss.
fn trainer(router: &str, accumulate: usize) -> Trainer {
    in_precision(router, accumulate, Precision::Fp32)
}

fn in_precision(router: &str, accumulate: usize, precision: Precision) -> Trainer {
    with(router, TrainConfig { batch: 4, accumulate, precision, ..TrainConfig::default() })
}

fn with(router: &str, train: TrainConfig) -> Trainer {
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
    let train = TrainConfig { sequence: 16, ..train };
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let router = router_config(router, &Settings::new()).unwrap();
    let losses = LossWeights { balance: Some(0.0), ..LossWeights::default() };
    let rules = Rules { losses, ..Rules::new(router.as_ref()) };
    let model = DecoderLm::new(&store, &config, &rules, 256).unwrap();
    let model = model.with_precision(train.precision).with_recompute(train.recompute);
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

/// Whether the backward pass finds the hidden layers or computes them again: the same bits, step by step,
/// and for as few tokens as decoding takes without a graph.
#[test]
fn computing_experts_again_changes_no_bit() {
    for (precision, batch) in [(Precision::Fp32, 4), (Precision::Bf16, 4), (Precision::Fp32, 1)] {
        let run = |recompute| {
            let train = TrainConfig { precision, recompute, batch, ..TrainConfig::default() };
            let mut trainer = with("smoe", train);
            let losses: Vec<f64> = (0..3).map(|_| trainer.train_step().unwrap().loss).collect();
            (losses, gradients(&trainer))
        };
        let ((want, want_grads), (got, grads)) = (run(Recompute::None), run(Recompute::Experts));
        assert_eq!(got, want, "{precision:?}");
        assert!(grads.iter().zip(&want_grads).all(|(a, b)| a.equal(b)), "{precision:?}");
    }
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

#[test]
fn bf16_learns_as_f32_does_and_goes_on_bit_for_bit() {
    let losses = |trainer: &mut Trainer, steps: usize| -> Vec<f64> {
        (0..steps).map(|_| trainer.train_step().unwrap().loss).collect()
    };
    let wide = losses(&mut trainer("smoe", 1), 24);
    let mut straight = in_precision("smoe", 1, Precision::Bf16);
    let narrow = losses(&mut straight, 24);
    assert!(narrow[23] < 0.9 * narrow[0], "it learns: {narrow:?}");
    for (a, b) in wide.iter().zip(&narrow) {
        assert!((a - b).abs() < 2.0 * tolerance(Kind::BFloat16).gradient, "{a} and {b}");
    }
    let place = tempfile::tempdir().unwrap();
    let mut half = in_precision("smoe", 1, Precision::Bf16);
    let _ = losses(&mut half, 8);
    half.save(place.path()).unwrap();
    let mut resumed = in_precision("smoe", 1, Precision::Bf16);
    let newest = checkpoint::latest(place.path()).unwrap().unwrap();
    resumed.resume(&newest).unwrap();
    assert_eq!(losses(&mut resumed, 16), narrow[8..]);
    for (a, b) in resumed.store().entries().iter().zip(straight.store().entries().iter()) {
        assert_eq!(a.tensor, b.tensor, "{}", a.name);
    }
    // Parameters and moments stay wide.
    assert!(straight.store().entries().iter().all(|p| p.tensor.kind() != Kind::BFloat16));
}
