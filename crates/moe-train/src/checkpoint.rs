//! Checkpoints: a directory of safetensors files and a manifest with their hashes.
//!
//! ```text
//! checkpoints/step-000040/model.safetensors      weights and buffers
//!                         optimizer.safetensors  moments
//!                         state.json             manifest: step, seed, best evaluation, configuration,
//!                                                versions, layout of every tensor, BLAKE3 of each file
//! ```
//!
//! A checkpoint appears whole or not at all: files are written to a sibling directory, flushed to
//! the disk, and the directory is renamed. Loading compares hashes, names, shapes and types before it
//! changes anything, and writes nothing.

use crate::disk::Disk;
use crate::manifest::STATE;
pub use crate::manifest::{Best, Progress, State};
use crate::names;
use crate::shelf::{PARTIAL, REPLACED};
pub use crate::shelf::{all, directory, latest, retain, sweep};
use crate::tensors::{self, Stored};
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// A checkpoint that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system said no.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why. Not a source: the message has it.
        error: std::io::Error,
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
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |error| Self::Io { path: path.to_owned(), error }
    }
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Contents {
    /// Weights and buffers by name.
    pub model: Vec<(String, Tensor)>,
    /// Moments by name.
    pub optimizer: Vec<(String, Tensor)>,
}

/// Writes a checkpoint; an existing one of the same step is replaced.
///
/// # Errors
/// The file system's; then earlier checkpoints are as they were and nothing half-written is left.
pub fn save(
    disk: &Disk<'_>,
    dir: &Path,
    progress: Progress,
    contents: &Contents,
) -> Result<(), CheckpointError> {
    let scratch = dir.with_extension(PARTIAL);
    let saved = write_all(disk, &scratch, progress, contents)
        .and_then(|()| publish(disk, &scratch, dir).map_err(CheckpointError::io(dir)));
    if saved.is_err() {
        // The first error is the one to tell; where this fails too, the next start sweeps.
        let _ = fs::remove_dir_all(&scratch);
    }
    saved
}

/// Writes every file to `scratch`.
fn write_all(
    disk: &Disk<'_>,
    scratch: &Path,
    progress: Progress,
    contents: &Contents,
) -> Result<(), CheckpointError> {
    if scratch.exists() {
        disk.remove_dir(scratch).map_err(CheckpointError::io(scratch))?;
    }
    disk.create_dir_all(scratch).map_err(CheckpointError::io(scratch))?;
    let mut state = State::new(progress);
    for (name, tensors) in [(MODEL, &contents.model), (OPTIMIZER, &contents.optimizer)] {
        let (path, tensors) = (scratch.join(name), names::in_files(tensors));
        let bytes = tensors::to_bytes(&path, &tensors)?;
        disk.write(&path, &bytes).map_err(CheckpointError::io(&path))?;
        state.hashes.insert(name.into(), blake3::hash(&bytes).to_hex().to_string());
        state.tensors.insert(name.into(), tensors::layouts(&tensors));
    }
    let path = scratch.join(STATE);
    disk.write(&path, &state.to_bytes()).map_err(CheckpointError::io(&path))
}

/// Renames `scratch` to `dir` and waits until the directories above know it.
fn publish(disk: &Disk<'_>, scratch: &Path, dir: &Path) -> std::io::Result<()> {
    disk.sync_dir(scratch)?;
    let former = dir.with_extension(REPLACED);
    let replaces = dir.exists();
    if replaces {
        disk.rename(dir, &former)?;
    }
    disk.rename(scratch, dir)?;
    // The directory of checkpoints may be as new as its first checkpoint, and a run's as new as both.
    for above in dir.ancestors().skip(1).take(3).filter(|above| above.is_dir()) {
        disk.sync_dir(above)?;
    }
    if replaces { disk.remove_dir(&former) } else { Ok(()) }
}

/// Reads a checkpoint into `contents`, whose tensors must be exactly those that were saved.
///
/// # Errors
/// A missing or damaged file, or tensors that do not fit; then nothing was changed.
pub fn load(dir: &Path, contents: &Contents) -> Result<State, CheckpointError> {
    let all = [(MODEL, contents.model.as_slice()), (OPTIMIZER, contents.optimizer.as_slice())];
    load_files(dir, &all)
}

/// Reads the weights alone, as evaluation needs them.
///
/// # Errors
/// As [`load`].
pub fn load_model(dir: &Path, model: &[(String, Tensor)]) -> Result<State, CheckpointError> {
    load_files(dir, &[(MODEL, model)])
}

/// Reads the weights of another model that begins like this one: all of `model` must be there, and what the
/// file holds besides must be `spare` by its name in the store.
///
/// # Errors
/// As [`load`].
pub fn load_part(
    dir: &Path,
    model: &[(String, Tensor)],
    spare: &dyn Fn(&str) -> bool,
) -> Result<State, CheckpointError> {
    let state = manifest(dir)?;
    let bytes = read_checked(dir, MODEL, &state)?;
    let targets = names::in_files(model);
    let stored = Stored::parse(&dir.join(MODEL), &bytes)?;
    let stored = stored.without(|name| spare(name.strip_prefix("model.").unwrap_or(name)));
    stored.check(&tensors::layouts(&targets))?;
    stored.copy_to(&targets);
    Ok(state)
}

/// What a checkpoint says of itself; its tensors are not read.
///
/// # Errors
/// A manifest that is missing, or is none.
pub fn manifest(dir: &Path) -> Result<State, CheckpointError> {
    load_files(dir, &[])
}

/// Checks a checkpoint without a model: every file, hash and layout.
///
/// # Errors
/// The first file that is missing, damaged, or not as the manifest says.
pub fn verify(dir: &Path) -> Result<State, CheckpointError> {
    let state = manifest(dir)?;
    for name in [MODEL, OPTIMIZER] {
        Stored::parse(&dir.join(name), &read_checked(dir, name, &state)?)?
            .check(state.tensors.get(name).unwrap_or(&Default::default()))?;
    }
    Ok(state)
}

fn load_files(
    dir: &Path,
    wanted: &[(&str, &[(String, Tensor)])],
) -> Result<State, CheckpointError> {
    let path = dir.join(STATE);
    let bytes = fs::read(&path).map_err(CheckpointError::io(&path))?;
    let state = State::from_bytes(&path, &bytes)?;
    let mut files = Vec::new();
    for (name, targets) in wanted {
        files.push((dir.join(name), read_checked(dir, name, &state)?, names::in_files(targets)));
    }
    let mut stored = Vec::new();
    for (path, bytes, targets) in &files {
        let file = Stored::parse(path, bytes)?;
        file.check(&tensors::layouts(targets))?;
        stored.push((file, targets));
    }
    // Everything fits: only now is anything changed.
    stored.iter().for_each(|(file, targets)| file.copy_to(targets));
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
