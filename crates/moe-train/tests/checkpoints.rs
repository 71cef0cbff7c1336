//! Checkpoints: exact resume, and every kind of damage refused.

use moe_data::{Corpus, TokenStream, TokenizerSpec};
use moe_models::{DecoderLm, LmConfig, Rules};
use moe_routers::{ParamStore, Settings, residual, residual_config, router_config, routers};
use moe_train::{CheckpointError, LmTask, TrainConfig, Trainer, checkpoint};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind};

fn data() -> Arc<TokenStream> {
    let text = b"the quick brown fox jumps over the lazy dog. ".repeat(20);
    let corpus = Corpus::from_bytes("fox", &text, &text, &text).unwrap();
    Arc::new(TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap())
}

fn trainer_with(router: &str, residual: &str, width: i64) -> Trainer {
    trainer_of(router, residual, LmConfig { width, ..LmConfig::default() })
}

fn trainer_of(router: &str, residual: &str, model: LmConfig) -> Trainer {
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
    let train =
        TrainConfig { steps: 8, batch: 2, sequence: 8, warmup: 2, ..TrainConfig::default() };
    let store = ParamStore::new(5, Device::Cpu, Kind::Float);
    let router = router_config(router, &Settings::new()).unwrap();
    let residual = residual_config(residual, &Settings::new()).unwrap();
    let rules = Rules { residual: residual.as_ref(), ..Rules::new(router.as_ref()) };
    let model = DecoderLm::new(&store, &model, &rules, 256).unwrap();
    let task = LmTask::new(model, data(), (train.batch, train.sequence), Device::Cpu);
    Trainer::new(Box::new(task), store, train, 5)
}

fn trainer(router: &str) -> Trainer {
    trainer_with(router, "plain", 8)
}

fn train(trainer: &mut Trainer, steps: usize) {
    (0..steps).for_each(|_| drop(trainer.train_step().unwrap()));
}

fn model_file(checkpoints: &Path, step: u64) -> Vec<u8> {
    fs::read(checkpoint::directory(checkpoints, step).join("model.safetensors")).unwrap()
}

/// Four steps at once, and two and two with a checkpoint between them: the same weights.
fn resumes_to_the_same_bytes(what: &str, fresh: &dyn Fn() -> Trainer) {
    let dir = tempfile::tempdir().unwrap();
    let mut straight = fresh();
    train(&mut straight, 4);
    straight.save(&dir.path().join("straight")).unwrap();

    let halves = dir.path().join("halves");
    let mut first = fresh();
    train(&mut first, 2);
    first.save(&halves).unwrap();
    let mut second = fresh();
    second.resume(&checkpoint::latest(&halves).unwrap().unwrap()).unwrap();
    assert_eq!(second.steps_taken(), 2);
    train(&mut second, 2);
    second.save(&halves).unwrap();
    let same = model_file(&dir.path().join("straight"), 4) == model_file(&halves, 4);
    assert!(same, "{what}: resuming changed the weights");
}

#[test]
fn resuming_gives_the_same_bytes_for_every_router() {
    for paper in routers() {
        resumes_to_the_same_bytes(paper.id, &|| trainer(paper.id));
    }
}

#[test]
fn resuming_gives_the_same_bytes_for_every_residual() {
    for name in residual::names() {
        resumes_to_the_same_bytes(name, &|| trainer_with("smoe", name, 8));
    }
}

/// A memory of the text before the step, and masks drawn in it.
#[test]
fn resuming_gives_the_same_bytes_with_a_memory_and_dropout() {
    let model = LmConfig { width: 8, span: Some(5), dropout: 0.1, ..LmConfig::default() };
    resumes_to_the_same_bytes("span", &|| trainer_of("smoe", "plain", model.clone()));
}

/// A saved checkpoint of one step, its directory, and a trainer that could resume from it.
fn saved() -> (tempfile::TempDir, std::path::PathBuf, Trainer) {
    let dir = tempfile::tempdir().unwrap();
    let mut first = trainer("smoe");
    train(&mut first, 1);
    first.save(dir.path()).unwrap();
    let step = checkpoint::directory(dir.path(), 1);
    (dir, step, trainer("smoe"))
}

#[test]
fn every_truncation_and_flipped_byte_is_refused() {
    let (_dir, step, mut trainer) = saved();
    for name in ["model.safetensors", "optimizer.safetensors"] {
        let path = step.join(name);
        let whole = fs::read(&path).unwrap();
        let damaged = (0..whole.len()).step_by(whole.len() / 40).flat_map(|at| {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            [whole[..at].to_vec(), flipped]
        });
        for bytes in damaged {
            fs::write(&path, bytes).unwrap();
            let error = trainer.resume(&step).unwrap_err();
            assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(trainer.resume(&step).unwrap().step, 1);
}

#[test]
fn a_missing_or_foreign_manifest_is_refused() {
    let (_dir, step, mut trainer) = saved();
    let path = step.join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("moe.checkpoint/1", "moe.checkpoint/9")).unwrap();
    let error = trainer.resume(&step).unwrap_err().to_string();
    assert!(error.contains("schema is moe.checkpoint/9"), "{error}");
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert!(matches!(trainer.resume(&step), Err(CheckpointError::Format { .. })));
    fs::remove_file(&path).unwrap();
    assert!(matches!(trainer.resume(&step), Err(CheckpointError::Io { .. })));
}

#[test]
fn another_model_is_refused_with_a_list_of_differences() {
    let (_dir, step, _) = saved();
    let error = trainer("x-moe").resume(&step).unwrap_err().to_string();
    assert!(error.contains("missing tensor layers.1.router.proj"), "{error}");
    assert!(error.contains("unexpected tensor layers.1.router.gate"), "{error}");
    let error = trainer_with("smoe", "plain", 16).resume(&step).unwrap_err().to_string();
    assert!(error.contains("embedding is F32 [256, 8], expected F32 [256, 16]"), "{error}");
}

#[test]
fn saving_again_replaces_and_leaves_no_scratch() {
    let (dir, _, mut trainer) = saved();
    train(&mut trainer, 1);
    trainer.save(dir.path()).unwrap();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["step-000001"]);
    assert_eq!(checkpoint::latest(&dir.path().join("nowhere")).unwrap(), None);
}
