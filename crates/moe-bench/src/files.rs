//! Files of a run or a comparison: whole or not there at all, and written by one process at a time.

use crate::error::Misuse;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Puts `bytes` in the place of a file: who reads it, or is killed meanwhile, finds the file before or
/// the file after.
///
/// # Errors
/// The file system's, naming the file.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = || -> io::Result<()> {
        let partial = partial(path);
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

fn partial(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// A directory that no other process of this program writes to while the value lives. The lock is the
/// system's and ends with the process, however it ends; no file is left.
#[derive(Debug)]
pub struct Held {
    _lock: File,
}

impl Held {
    /// Takes a directory; `None` where the file system knows no locks.
    ///
    /// # Errors
    /// Another process has it, or it cannot be opened.
    pub fn take(dir: &Path) -> Result<Option<Self>> {
        let lock = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { _lock: lock })),
            Err(TryLockError::WouldBlock) => {
                let message = "another process is writing this run; wait for it, stop it, or choose another --out";
                Err(Misuse::new(format!("{}: {message}", dir.display())).into())
            }
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        replace(&path, b"long enough").unwrap();
        replace(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        let error = format!("{:#}", replace(&dir.path().join("no/b"), b"").unwrap_err());
        assert!(error.contains("no/b"), "{error}");
    }

    #[test]
    fn a_directory_is_held_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::take(dir.path()).unwrap().expect("locks");
        let error = Held::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another process is writing this run"), "{error}");
        drop(held);
        assert!(Held::take(dir.path()).unwrap().is_some());
        assert!(Held::take(&dir.path().join("no")).is_err());
    }
}
