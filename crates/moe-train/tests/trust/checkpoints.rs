//! Checkpoints: every kind of damage refused, nothing else touched, the right ones kept.

use crate::common;
use crate::common::{config, names, train, trainer, trainer_with};
use moe_train::{CheckpointError, TrainConfig, Trainer, checkpoint};
use std::fs;
use std::path::{Path, PathBuf};

/// A saved checkpoint of one step, its directory, and a trainer that could resume from it.
fn saved() -> (tempfile::TempDir, PathBuf, Trainer) {
    let dir = tempfile::tempdir().unwrap();
    let mut first = trainer("smoe");
    train(&mut first, 1);
    first.save(dir.path()).unwrap();
    let step = checkpoint::directory(dir.path(), 1);
    (dir, step, trainer("smoe"))
}

/// The error of a checkpoint whose file `path` is `bytes`; it names the file, and nothing was loaded.
fn refusal(path: &Path, bytes: &[u8]) -> CheckpointError {
    fs::write(path, bytes).unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    let error = checkpoint::verify(path.parent().unwrap()).expect_err(&format!("{name} loaded"));
    assert!(error.to_string().contains(&*name), "{error} does not name {name}");
    error
}

/// Every byte changed and every length cut, of every file.
#[test]
fn no_damaged_byte_and_no_truncation_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut tiny = trainer_with("random", "plain", 2, config());
    train(&mut tiny, 1);
    tiny.save(dir.path()).unwrap();
    let step = checkpoint::directory(dir.path(), 1);
    let (mut flipped, mut cut) = (0, 0);
    for name in names(&step) {
        let path = step.join(&name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        for at in 0..whole.len() {
            bytes[at] ^= 1 << (at % 8);
            refusal(&path, &bytes);
            bytes[at] = whole[at];
            refusal(&path, &whole[..at]);
            (flipped, cut) = (flipped + 1, cut + 1);
        }
        fs::write(&path, whole).unwrap();
    }
    println!("{flipped} bytes changed, {cut} lengths cut, 0 loaded");
    assert!(flipped > 10_000 && checkpoint::verify(&step).is_ok());
}

/// What refuses a checkpoint also refuses to resume and to evaluate from it, without a change.
#[test]
fn a_damaged_file_changes_nothing_in_the_trainer() {
    let (_dir, step, mut trainer) = saved();
    let before = tempfile::tempdir().unwrap();
    trainer.save(before.path()).unwrap();
    // The optimiser's last: evaluation does not read it.
    for name in ["model.safetensors", "state.json", "optimizer.safetensors"] {
        let path = step.join(name);
        let whole = fs::read(&path).unwrap();
        refusal(&path, &whole[..whole.len() - 1]);
        assert!(trainer.resume(&step).is_err());
        assert!(trainer.load_weights(&step).is_err() || name == "optimizer.safetensors");
        fs::write(&path, whole).unwrap();
        if name != "optimizer.safetensors" {
            let after = tempfile::tempdir().unwrap();
            trainer.save(after.path()).unwrap();
            assert!(common::files(before.path(), 0) == common::files(after.path(), 0), "{name}");
        }
    }
    assert_eq!(trainer.resume(&step).unwrap().progress.step, 1);
}

#[test]
fn a_missing_or_foreign_manifest_is_refused() {
    let (_dir, step, mut trainer) = saved();
    let path = step.join("state.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("moe.checkpoint/2", "moe.checkpoint/9")).unwrap();
    let error = trainer.resume(&step).unwrap_err().to_string();
    assert!(error.contains("schema is moe.checkpoint/9, expected moe.checkpoint/2"), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(trainer.resume(&step), Err(CheckpointError::Io { .. })));
}

#[test]
fn the_manifest_says_what_is_in_the_files() {
    let (_dir, step, _) = saved();
    let text = fs::read_to_string(step.join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    let up = &state["tensors"]["model.safetensors"]["model.layers.1.mlp.experts.3.up_proj.weight"];
    assert_eq!((&up["dtype"], up["shape"].to_string()), (&"F32".into(), "[8,8]".into()));
    let moment = "model.layers.1.mlp.experts.0.down_proj.bias.v";
    assert!(state["tensors"]["optimizer.safetensors"][moment].is_object(), "{text}");
    assert!(
        state["versions"]["libtorch"].is_string()
            && state["hashes"]["model.safetensors"].is_string()
    );
}

#[test]
fn another_model_is_refused_with_a_list_of_differences() {
    let (_dir, step, _) = saved();
    let error = trainer("x-moe").resume(&step).unwrap_err().to_string();
    assert!(error.contains("missing tensor model.layers.1.router.proj"), "{error}");
    assert!(error.contains("unexpected tensor model.layers.1.router.gate"), "{error}");
    let mut wide = trainer_with("smoe", "plain", 16, config());
    let error = wide.resume(&step).unwrap_err().to_string();
    assert!(error.contains("model.embedding is F32 [256, 8], expected F32 [256, 16]"), "{error}");
}

#[test]
fn loading_writes_nothing() {
    let (dir, step, mut trainer) = saved();
    let look = || {
        let stamp = |name: &String| fs::metadata(step.join(name)).unwrap().modified().unwrap();
        let names = names(&step);
        (names.iter().map(stamp).collect::<Vec<_>>(), names, common::names(dir.path()))
    };
    let before = look();
    trainer.resume(&step).unwrap();
    trainer.load_weights(&step).unwrap();
    checkpoint::verify(&step).unwrap();
    assert_eq!(look(), before);
}

#[test]
fn saving_again_replaces_and_leaves_no_scratch() {
    let (dir, _, mut trainer) = saved();
    train(&mut trainer, 1);
    trainer.save(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["step-000001"]);
    assert_eq!(checkpoint::latest(&dir.path().join("nowhere")).unwrap(), None);
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let kept = |keep_last: usize, keep_best: bool| {
        let dir = tempfile::tempdir().unwrap();
        let train = TrainConfig { keep_last, keep_best, ..config() };
        let mut trainer = trainer_with("dense", "plain", 8, train);
        // Step 2 is the best; a loss that is none is never the best.
        for loss in [3.0, 2.0, f64::NAN, 2.5] {
            common::train(&mut trainer, 1);
            trainer.note_evaluation(loss);
            trainer.save(dir.path()).unwrap();
        }
        names(dir.path()).iter().map(|n| n[n.len() - 1..].to_owned()).collect::<String>()
    };
    assert_eq!(kept(0, false), "1234");
    assert_eq!(kept(1, false), "4");
    assert_eq!(kept(2, false), "34");
    assert_eq!(kept(1, true), "24");
    assert_eq!(kept(3, true), "234");
}

/// A file where the scratch directory should be: the save fails, and the checkpoint before stands.
#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let (dir, step, mut trainer) = saved();
    let before = common::files(dir.path(), 1);
    train(&mut trainer, 2);
    fs::write(dir.path().join("step-000002.partial"), "in the way").unwrap();
    let error = trainer.save(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
    assert!(error.to_string().contains("step-000002.partial"), "{error}");
    assert_eq!(checkpoint::latest(dir.path()).unwrap(), Some(step));
    assert!(common::files(dir.path(), 1) == before);
}
