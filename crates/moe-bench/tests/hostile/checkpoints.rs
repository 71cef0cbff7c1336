//! Damaged checkpoints of a small run.

use crate::{Target, attack};
use assert_cmd::Command;
use moe_bench::run::load;
use moe_bench::which::Which;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use tch::Device;

const TINY: &str = "[model]\nwidth = 4\nlayers = 1\nheads = 1\nmoe_every = 1\ncontext = 8\nexperts = 2\n\
    active_hidden = 4\n[train]\nsteps = 1\nbatch = 1\nsequence = 8\neval_batches = 1\n";

/// A run and the directory that it lies in. One target at a time damages its files.
static RUN: LazyLock<Mutex<tempfile::TempDir>> = LazyLock::new(|| Mutex::new(trained()));

fn trained() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (text, recipe) = (dir.path().join("text.txt"), dir.path().join("tiny.toml"));
    fs::write(&text, "a line of text\n".repeat(40)).unwrap();
    fs::write(&recipe, format!("data = {{ source = '{}' }}\n{TINY}", text.display())).unwrap();
    let mut train = Command::cargo_bin("moe").unwrap();
    train.arg("train").arg(&recipe).args(["--threads", "1", "--out"]).arg(dir.path().join("run"));
    train.assert().success();
    dir
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join("run/checkpoints/step-000001").join(name)
}

/// Whether the run can be evaluated with these bytes in the place of a file of its checkpoint, and
/// whether they are the file's own.
fn replaced(name: &str, bytes: &[u8]) -> (bool, bool) {
    let dir = RUN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = file(dir.path(), name);
    let own = fs::read(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let loaded = load((&dir.path().join("run"), Which::Newest), &[], Device::Cpu, &Arc::default());
    fs::write(&path, &own).unwrap();
    (loaded.is_ok(), own == bytes)
}

fn target(name: &'static str, stored: &str, read: fn(&[u8]) -> bool) -> Target {
    let valid = fs::read(file(RUN.lock().unwrap().path(), stored)).unwrap();
    Target { name, valid, read }
}

#[test]
fn weights() {
    attack(&target("weights", "model.safetensors", read_weights), bolero::check!());
}

/// Bytes that differ are never loaded.
fn read_weights(bytes: &[u8]) -> bool {
    let (loaded, own) = replaced("model.safetensors", bytes);
    assert_eq!(loaded, own);
    loaded
}

#[test]
fn state() {
    attack(&target("state", "state.json", read_state), bolero::check!());
}

/// The manifest is sealed: bytes that say the same in another way are not loaded either.
fn read_state(bytes: &[u8]) -> bool {
    let (loaded, own) = replaced("state.json", bytes);
    assert_eq!(loaded, own);
    loaded
}
