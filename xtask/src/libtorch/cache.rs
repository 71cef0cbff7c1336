//! The directory that all checkouts of a user share, and who may write to it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

use super::VERSION;
use crate::env::Env;
use crate::problem::{Problem, problem};
use crate::progress::size;
use crate::say::tell;

/// The head of the names of what is being made.
const SCRATCH: &str = ".setup-";

/// The cache of a user.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// The right to write to the cache, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// The operating system lets go of the lock when this closes, be it by a crash.
    _file: File,
    waited: bool,
}

impl Lock {
    /// Whether another run held the lock before.
    pub(crate) fn waited(&self) -> bool {
        self.waited
    }
}

impl Cache {
    /// `$XDG_CACHE_HOME/moe` or `$HOME/.cache/moe`.
    pub(crate) fn of(env: &Env) -> Result<Self> {
        let home = || env.path("HOME").map(|home| home.join(".cache"));
        // The XDG specification has relative paths ignored.
        match env.path("XDG_CACHE_HOME").filter(|path| path.is_absolute()).or_else(home) {
            Some(caches) => Ok(Self { root: caches.join("moe") }),
            None => problem(
                "neither XDG_CACHE_HOME (an absolute path) nor HOME is set, so there is no place \
                 for libtorch",
                "XDG_CACHE_HOME=/path/to/caches cargo xtask setup",
            ),
        }
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The downloaded libtorch, which is its own view.
    pub(crate) fn libtorch(&self) -> PathBuf {
        self.root.join(format!("libtorch-{VERSION}-linux-x86_64"))
    }

    /// The downloaded run-time compiler for CUDA.
    pub(crate) fn nvrtc(&self) -> PathBuf {
        self.root.join(format!("nvrtc-{}-linux-x86_64", super::nvrtc::VERSION))
    }

    /// The views of libtorches that are not ours.
    pub(crate) fn views(&self) -> PathBuf {
        self.root.join("views")
    }

    /// Waits until no other run writes, and clears away what dead runs left.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let file = self.lock_file().map_err(|error| self.explain(error, 0))?;
        let waited = acquire(&file).context("locking the cache")?;
        self.sweep()?;
        Ok(Lock { _file: file, waited })
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.root.join("setup.lock");
        let opened = fs::create_dir_all(&self.root).and_then(|()| File::create(&path));
        opened.with_context(|| format!("making {}", path.display()))
    }

    /// A directory for what is being made; it goes when dropped, and what is left of a killed run
    /// goes at the next [`Cache::lock`].
    pub(crate) fn scratch(&self, _lock: &Lock) -> Result<TempDir> {
        let made = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&self.root);
        made.with_context(|| format!("making a directory in {}", self.root.display()))
    }

    /// Puts a finished directory in its place; what was there goes with the scratch directory.
    pub(crate) fn install(&self, made: &Path, place: &Path, scratch: &TempDir) -> Result<()> {
        let replace = || {
            fs::create_dir_all(place.parent().unwrap_or(&self.root))?;
            if fs::symlink_metadata(place).is_ok() {
                fs::rename(place, scratch.path().join("replaced"))?;
            }
            fs::rename(made, place)
        };
        replace().with_context(|| format!("putting {} in place", place.display()))
    }

    /// Refuses to start what the disk cannot hold.
    pub(crate) fn require_space(&self, needed: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.root)
            .with_context(|| format!("asking for the space at {}", self.root.display()))?;
        let free = disk.f_bavail * disk.f_frsize;
        if free >= needed { Ok(()) } else { Err(self.full(needed, Some(free))) }
    }

    /// Says what to do about a full disk or a cache that cannot be written.
    pub(crate) fn explain(&self, error: anyhow::Error, needed: u64) -> anyhow::Error {
        match error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
        {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                self.full(needed, None)
            }
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                anyhow!(Problem::new(
                    format!("the cache {} cannot be written: {error:#}", self.root.display()),
                    ELSEWHERE,
                ))
            }
            _ => error,
        }
    }

    fn full(&self, needed: u64, free: Option<u64>) -> anyhow::Error {
        let needs = match (needed, free) {
            (0, _) => String::new(),
            (needed, None) => format!(": setup needs {} there", size(needed)),
            (needed, Some(free)) => {
                format!(": setup needs {} there, {} are free", size(needed), size(free))
            }
        };
        let what = format!("the disk of {} is too full{needs}", self.root.display());
        anyhow!(Problem::new(what, ELSEWHERE))
    }

    fn sweep(&self) -> Result<()> {
        let context = || format!("listing {}", self.root.display());
        for entry in fs::read_dir(&self.root).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes()) {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("clearing away {}", entry.path().display()))?;
            }
        }
        Ok(())
    }
}

const ELSEWHERE: &str = "XDG_CACHE_HOME=/path/on/another/disk cargo xtask setup";

/// Takes the lock; says whether another run had it.
fn acquire(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => {
            tell("another setup is running, waiting…");
            file.lock().map(|()| true)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path) -> Cache {
        Cache::of(&Env::from([("XDG_CACHE_HOME", dir.to_str().unwrap())])).unwrap()
    }

    #[test]
    fn the_place_follows_the_environment() {
        let both = Env::from([("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me")]);
        assert_eq!(Cache::of(&both).unwrap().root(), Path::new("/xdg/moe"));
        let relative = Env::from([("XDG_CACHE_HOME", "xdg"), ("HOME", "/home/me")]);
        assert_eq!(Cache::of(&relative).unwrap().root(), Path::new("/home/me/.cache/moe"));
        let error = Cache::of(&Env::from([])).unwrap_err().to_string();
        assert!(error.contains("mend: XDG_CACHE_HOME=/path/to/caches"), "{error}");
    }

    #[test]
    fn leftovers_of_dead_runs_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("moe/.setup-dead/wheels");
        fs::create_dir_all(&left).unwrap();
        fs::create_dir_all(dir.path().join("moe/views")).unwrap();
        cache(dir.path()).lock().unwrap();
        assert!(!left.exists());
        assert!(dir.path().join("moe/views").exists());
    }

    #[test]
    fn a_full_disk_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull));
        let shown =
            cache(dir.path()).explain(error.context("unpacking"), 1_000_000_000).to_string();
        assert!(shown.contains("is too full: setup needs 1.00 GB there"), "{shown}");
        assert!(shown.contains("mend: XDG_CACHE_HOME="), "{shown}");
    }

    #[test]
    fn too_little_space_is_said_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("moe")).unwrap();
        assert!(cache(dir.path()).require_space(1).is_ok());
        let shown = cache(dir.path()).require_space(u64::MAX).unwrap_err().to_string();
        assert!(shown.contains("are free"), "{shown}");
    }

    #[test]
    fn installing_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let lock = cache.lock().unwrap();
        for text in ["one", "two"] {
            let scratch = cache.scratch(&lock).unwrap();
            let made = scratch.path().join("made");
            fs::create_dir(&made).unwrap();
            fs::write(made.join("file"), text).unwrap();
            cache.install(&made, &cache.libtorch(), &scratch).unwrap();
            assert_eq!(fs::read_to_string(cache.libtorch().join("file")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(cache.root()).unwrap().count(), 2, "only the lock and the tree");
    }
}
