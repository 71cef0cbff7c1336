//! A small run that takes a moment, for every router and residual.

use moe_data::{Corpus, TokenStream, TokenizerSpec};
use moe_models::{DecoderLm, LmConfig, Rules};
use moe_routers::{ParamStore, Settings, residual_config, router_config};
use moe_train::{LmTask, TrainConfig, Trainer, checkpoint};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind};

pub(crate) fn data() -> Arc<TokenStream> {
    let text = b"the quick brown fox jumps over the lazy dog. ".repeat(20);
    let corpus = Corpus::from_bytes("fox", &text, &text, &text).unwrap();
    Arc::new(TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap())
}

/// Eight steps of a model of two blocks.
pub(crate) fn config() -> TrainConfig {
    TrainConfig { steps: 8, batch: 2, sequence: 8, warmup: 2, ..TrainConfig::default() }
}

/// The model's task and its parameters.
pub(crate) fn task(router: &str, residual: &str, model: LmConfig) -> (LmTask, ParamStore) {
    let model = LmConfig {
        layers: 2,
        // Residuals want two sparse layers.
        moe_every: if residual == "plain" { 2 } else { 1 },
        heads: 2,
        context: 8,
        experts: 4,
        active_hidden: 16,
        ..model
    };
    let store = ParamStore::new(5, Device::Cpu, Kind::Float);
    let router = router_config(router, &Settings::new()).unwrap();
    let residual = residual_config(residual, &Settings::new()).unwrap();
    let rules = Rules { residual: residual.as_ref(), ..Rules::new(router.as_ref()) };
    let model = DecoderLm::new(&store, &model, &rules, 256).unwrap();
    (LmTask::new(model, data(), (2, 8), Device::Cpu), store)
}

pub(crate) fn trainer_with(
    router: &str,
    residual: &str,
    width: i64,
    train: TrainConfig,
) -> Trainer {
    let (task, store) = task(router, residual, LmConfig { width, ..LmConfig::default() });
    Trainer::new(Box::new(task), store, train, 5)
}

pub(crate) fn trainer(router: &str) -> Trainer {
    trainer_with(router, "plain", 8, config())
}

pub(crate) fn train(trainer: &mut Trainer, steps: usize) {
    (0..steps).for_each(|_| drop(trainer.train_step().unwrap()));
}

/// Every file of a checkpoint, by name.
pub(crate) fn files(checkpoints: &Path, step: u64) -> Vec<(String, Vec<u8>)> {
    let dir = checkpoint::directory(checkpoints, step);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|p| (name(p), fs::read(p).unwrap())).collect()
}

/// Names of everything in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|n| n.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
