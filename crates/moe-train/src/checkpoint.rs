//! Checkpoints: a directory of safetensors files and a manifest with their hashes.
//!
//! ```text
//! checkpoints/step-000040/model.safetensors      weights and buffers
//!                         optimizer.safetensors  moments
//!                         state.json             step, seed, tensor layouts, BLAKE3 of each file
//! ```
//!
//! A checkpoint appears whole or not at all: files are written to a sibling directory, flushed to
//! the disk, and the directory is renamed. Loading compares hashes, names, shapes and types before it
//! changes anything.

use crate::tensors::{self, Layout};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// Version of the layout of a checkpoint directory.
const SCHEMA: &str = "moe.checkpoint/1";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// A checkpoint that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system said no.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file is not the one that was saved.
    #[error("{path}: damaged: {bytes} bytes with BLAKE3 {found}, but {expected} was saved; use another checkpoint", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Bytes that were read.
        bytes: usize,
        /// Hash of what was read.
        found: String,
        /// Hash in the manifest.
        expected: String,
    },
    /// The file holds other tensors than the model.
    #[error("{path}: does not fit this model: {}", differences.join("; "), path = path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Missing, unexpected and mismatched tensors.
        differences: Vec<String>,
    },
}

impl CheckpointError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Always the version of this layout.
    schema: String,
    /// Version of the crate that wrote it.
    version: String,
    /// Optimiser steps taken.
    pub step: u64,
    /// Seed of weights, data order and noise.
    pub seed: u64,
    /// BLAKE3 of each file.
    hashes: BTreeMap<String, String>,
    /// Layout of each tensor by file.
    tensors: BTreeMap<String, BTreeMap<String, Layout>>,
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Contents {
    /// Weights and buffers by name.
    pub model: Vec<(String, Tensor)>,
    /// Moments by name.
    pub optimizer: Vec<(String, Tensor)>,
}

/// The directory of step `step` below `checkpoints`.
pub fn directory(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:06}"))
}

/// The newest complete checkpoint below `checkpoints`, if there is one.
///
/// # Errors
/// If the directory exists and cannot be listed.
pub fn latest(checkpoints: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    if !checkpoints.exists() {
        return Ok(None);
    }
    let entries = fs::read_dir(checkpoints).map_err(CheckpointError::io(checkpoints))?;
    let steps = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok()?;
        Some((step, path))
    });
    Ok(steps.max().map(|(_, path)| path))
}

/// Writes a checkpoint; an existing one of the same step is replaced.
///
/// # Errors
/// The file system's.
pub fn save(dir: &Path, step: u64, seed: u64, contents: &Contents) -> Result<(), CheckpointError> {
    let scratch = dir.with_extension("partial");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).map_err(CheckpointError::io(&scratch))?;
    }
    fs::create_dir_all(&scratch).map_err(CheckpointError::io(&scratch))?;
    let mut state = State {
        schema: SCHEMA.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        step,
        seed,
        hashes: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    for (name, tensors) in [(MODEL, &contents.model), (OPTIMIZER, &contents.optimizer)] {
        let path = scratch.join(name);
        let bytes = tensors::to_bytes(&path, tensors)?;
        write(&path, &bytes)?;
        state.hashes.insert(name.into(), blake3::hash(&bytes).to_hex().to_string());
        let layouts = tensors.iter().map(|(name, t)| (name.clone(), Layout::of(t)));
        state.tensors.insert(name.into(), layouts.collect());
    }
    let json = serde_json::to_vec_pretty(&state).expect("a state is plain data");
    write(&scratch.join(STATE), &json)?;
    publish(&scratch, dir)
}

/// Writes a file and waits until it is on the disk.
fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let save = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    save().map_err(CheckpointError::io(path))
}

/// Renames `scratch` to `dir` and waits until the directory above knows it.
fn publish(scratch: &Path, dir: &Path) -> Result<(), CheckpointError> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(CheckpointError::io(dir))?;
    }
    let swap = || {
        File::open(scratch)?.sync_all()?;
        fs::rename(scratch, dir)?;
        File::open(dir.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    swap().map_err(CheckpointError::io(dir))
}

/// Reads a checkpoint into `contents`, whose tensors must be exactly those that were saved.
///
/// # Errors
/// A missing or damaged file, or tensors that do not fit; then nothing of that file was changed.
pub fn load(dir: &Path, contents: &Contents) -> Result<State, CheckpointError> {
    let state = read_state(dir)?;
    let model = read_checked(dir, MODEL, &state)?;
    let optimizer = read_checked(dir, OPTIMIZER, &state)?;
    tensors::restore(&dir.join(MODEL), &model, &contents.model)?;
    tensors::restore(&dir.join(OPTIMIZER), &optimizer, &contents.optimizer)?;
    Ok(state)
}

/// Reads the weights alone, as evaluation needs them.
///
/// # Errors
/// As [`load`].
pub fn load_model(dir: &Path, model: &[(String, Tensor)]) -> Result<State, CheckpointError> {
    let state = read_state(dir)?;
    let bytes = read_checked(dir, MODEL, &state)?;
    tensors::restore(&dir.join(MODEL), &bytes, model)?;
    Ok(state)
}

fn read_state(dir: &Path) -> Result<State, CheckpointError> {
    let path = dir.join(STATE);
    let bytes = fs::read(&path).map_err(CheckpointError::io(&path))?;
    let format = |reason: String| CheckpointError::Format { path: path.clone(), reason };
    let state: State = serde_json::from_slice(&bytes).map_err(|e| format(e.to_string()))?;
    if state.schema != SCHEMA {
        return Err(format(format!("schema is {}, expected {SCHEMA}", state.schema)));
    }
    Ok(state)
}

fn read_checked(dir: &Path, name: &str, state: &State) -> Result<Vec<u8>, CheckpointError> {
    let path = dir.join(name);
    let bytes = fs::read(&path).map_err(CheckpointError::io(&path))?;
    let found = blake3::hash(&bytes).to_hex().to_string();
    let expected = state.hashes.get(name).cloned().unwrap_or_default();
    if found != expected {
        return Err(CheckpointError::Damaged { path, bytes: bytes.len(), found, expected });
    }
    Ok(bytes)
}
