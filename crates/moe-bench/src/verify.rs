//! `moe checkpoint verify`: every file, hash and layout, without a model.

use crate::error::Misuse;
use crate::run::RunDir;
use crate::say::say_line;
use anyhow::{Result, ensure};
use moe_train::checkpoint;
use std::path::{Path, PathBuf};

/// Checks what `dir` holds and prints a line for each checkpoint.
///
/// # Errors
/// No checkpoint there, or one that is damaged; all of them are looked at first.
pub fn run(dir: &Path) -> Result<()> {
    let found = checkpoints(dir)?;
    let mut damaged = 0;
    for path in &found {
        match checkpoint::verify(path) {
            Ok(state) => {
                let step = state.progress.step;
                say_line(format_args!("{}: whole, step {step}", path.display()))?;
            }
            Err(error) => {
                damaged += 1;
                say_line(error)?;
            }
        }
    }
    ensure!(damaged == 0, "{damaged} of {} checkpoints are damaged", found.len());
    Ok(())
}

/// The checkpoint itself, or all below a run or a directory of checkpoints.
fn checkpoints(dir: &Path) -> Result<Vec<PathBuf>> {
    let none = || Misuse::new(format!("{}: no checkpoint here", dir.display()));
    if !dir.is_dir() {
        return Err(none().into());
    }
    for place in [RunDir(dir.to_owned()).checkpoints(), dir.to_owned()] {
        let all = checkpoint::all(&place)?;
        if !all.is_empty() {
            return Ok(all.into_iter().map(|(_, path)| path).collect());
        }
    }
    if dir.join("state.json").exists() {
        return Ok(vec![dir.to_owned()]);
    }
    Err(none().into())
}
