//! The file system as a save uses it: every operation passes one place, so that a test can end the
//! process before each of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Operations that change a directory of checkpoints.
pub struct Disk<'a> {
    before: &'a dyn Fn(&'static str, &Path),
}

impl std::fmt::Debug for Disk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl<'a> Disk<'a> {
    /// The disk, and nothing else.
    pub const PLAIN: Disk<'static> = Disk { before: &|_, _| {} };

    /// The disk, with `before` told the name and the path of every operation ahead of it: crash
    /// injection. A file is written in two halves, so that half a file is among the outcomes.
    pub fn watched(before: &'a dyn Fn(&'static str, &Path)) -> Self {
        Self { before }
    }

    pub(crate) fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        (self.before)("make directory", path);
        fs::create_dir_all(path)
    }

    /// Writes a file and waits until it is on the disk.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        (self.before)("create", path);
        let mut file = File::create(path)?;
        for half in bytes.chunks(bytes.len().div_ceil(2).max(1)) {
            (self.before)("write half of", path);
            file.write_all(half)?;
        }
        (self.before)("flush", path);
        file.sync_all()
    }

    /// Waits until a directory's entries are on the disk.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        (self.before)("flush directory", path);
        File::open(path)?.sync_all()
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.before)("rename", from);
        fs::rename(from, to)
    }

    /// Removes a directory of files, one by one.
    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            (self.before)("remove", &file);
            fs::remove_file(&file)?;
        }
        (self.before)("remove directory", path);
        fs::remove_dir(path)
    }
}
