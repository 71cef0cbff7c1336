//! The checkpoints of a run side by side: which is the newest, which are kept, and what an
//! interrupted save left behind.
//!
//! ```text
//! step-000040             whole
//! step-000040.partial     being written; never read
//! step-000040.replaced    the former one of the same step, until the new one stands
//! step-000040.removing    no longer kept, being removed; never read
//! ```

use crate::checkpoint::CheckpointError;
use crate::disk::Disk;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const PARTIAL: &str = "partial";
pub(crate) const REPLACED: &str = "replaced";
const REMOVING: &str = "removing";

/// The directory of step `step` below `checkpoints`.
pub fn directory(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:06}"))
}

/// Every whole checkpoint below `checkpoints` with its step, oldest first; none if there is no such
/// directory.
///
/// # Errors
/// If the directory exists and cannot be listed.
pub fn all(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let steps = entries(checkpoints)?.into_iter().filter_map(|path| {
        let step = path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok()?;
        Some((step, path))
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort();
    Ok(steps)
}

/// The newest whole checkpoint below `checkpoints`, if there is one.
///
/// # Errors
/// As [`all`].
pub fn latest(checkpoints: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    Ok(all(checkpoints)?.pop().map(|(_, path)| path))
}

fn entries(checkpoints: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let io = |e| CheckpointError::io(checkpoints)(e);
    fs::read_dir(checkpoints).map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path())).collect()
}

/// Removes all checkpoints but the newest `last` (0 keeps all) and that of step `best`.
///
/// # Errors
/// The file system's.
pub fn retain(
    disk: &Disk<'_>,
    checkpoints: &Path,
    last: usize,
    best: Option<u64>,
) -> Result<(), CheckpointError> {
    let all = all(checkpoints)?;
    let beyond = if last == 0 { 0 } else { all.len().saturating_sub(last) };
    for (step, dir) in &all[..beyond] {
        if best != Some(*step) {
            // Under another name first: half a directory must not look like a checkpoint.
            let away = dir.with_extension(REMOVING);
            let remove = || disk.rename(dir, &away).and_then(|()| disk.remove_dir(&away));
            remove().map_err(CheckpointError::io(dir))?;
        }
    }
    Ok(())
}

/// Clears what a save that was cut off left below `checkpoints`, and says so in a sentence each.
///
/// # Errors
/// The file system's.
pub fn sweep(disk: &Disk<'_>, checkpoints: &Path) -> Result<Vec<String>, CheckpointError> {
    let mut said = Vec::new();
    for path in entries(checkpoints)? {
        let Some(extension) = path.extension().and_then(|e| e.to_str()) else { continue };
        let whole = path.with_extension("");
        let (show, remove) = (path.display(), || disk.remove_dir(&path));
        let done = match extension {
            PARTIAL => {
                said.push(format!("{show}: half-written when a save was cut off; removed"));
                remove()
            }
            REPLACED if !whole.exists() => {
                said.push(format!("{show}: its successor was not finished; put back in its place"));
                disk.rename(&path, &whole)
            }
            REPLACED | REMOVING => {
                said.push(format!("{show}: half-removed when a save was cut off; removed"));
                remove()
            }
            _ => Ok(()),
        };
        done.map_err(CheckpointError::io(&path))?;
    }
    Ok(said)
}
