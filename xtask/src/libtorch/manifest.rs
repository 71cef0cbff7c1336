//! Size and hash of every file of the downloaded libtorch, as it was unpacked.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::ProgressBar;

use crate::hash;
use crate::progress::Watched;

/// The name of the file that holds the manifest.
const FILE: &str = "MANIFEST";

/// What the manifest says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    sha256: String,
    size: u64,
    /// Relative to the directory of the manifest.
    path: String,
}

/// What every file should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest(Vec<Entry>);

/// A difference between manifest and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The manifest itself cannot be read.
    Manifest,
    /// A file is gone.
    Missing(String),
    /// A file is shorter or longer.
    Size {
        /// The file.
        path: String,
        /// Its size.
        found: u64,
        /// The size in the manifest.
        expected: u64,
    },
    /// A file has the size, but not the content.
    Altered(String),
    /// A file that is not in the manifest.
    Extra(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest => write!(out, "{FILE} is missing or unreadable"),
            Self::Missing(path) => write!(out, "{path} is missing"),
            Self::Size { path, found, expected } => {
                write!(out, "{path} has {found} bytes instead of {expected}")
            }
            Self::Altered(path) => write!(out, "{path} is altered"),
            Self::Extra(path) => write!(out, "{path} does not belong there"),
        }
    }
}

impl Manifest {
    /// Notes a file.
    pub(crate) fn push(&mut self, path: impl Into<String>, size: u64, sha256: String) {
        self.0.push(Entry { sha256, size, path: path.into() });
    }

    /// Notes files that lie in `dir` already.
    pub(crate) fn push_files(&mut self, dir: &Path, paths: &[&str]) -> Result<()> {
        for path in paths {
            let file = File::open(dir.join(path)).with_context(|| format!("opening {path}"))?;
            let (size, sha256) = hash::copy(file, io::sink())?;
            self.push(*path, size, sha256);
        }
        Ok(())
    }

    /// The number of files.
    pub(crate) fn files(&self) -> usize {
        self.0.len()
    }

    /// The size of all files together.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|entry| entry.size).sum()
    }

    /// Writes the manifest beside its files.
    pub(crate) fn write(&mut self, dir: &Path) -> Result<()> {
        self.0.sort_by(|left, right| left.path.cmp(&right.path));
        let line = |entry: &Entry| format!("{}  {}  {}\n", entry.sha256, entry.size, entry.path);
        let text: String = self.0.iter().map(line).collect();
        fs::write(dir.join(FILE), text).with_context(|| format!("writing the {FILE}"))
    }

    /// Reads the manifest of a directory.
    pub(crate) fn read(dir: &Path) -> Result<Self, Damage> {
        let text = fs::read_to_string(dir.join(FILE)).map_err(|_| Damage::Manifest)?;
        let entries: Option<Vec<_>> = text.lines().map(parse).collect();
        match entries {
            Some(entries) if !entries.is_empty() && text.ends_with('\n') => Ok(Self(entries)),
            _ => Err(Damage::Manifest),
        }
    }

    /// Whether a directory has a manifest, in order or not.
    pub(crate) fn is_in(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// The cheap check: presence and sizes.
    pub(crate) fn quick(&self, dir: &Path) -> Vec<Damage> {
        self.0.iter().filter_map(|entry| entry.size_damage(dir)).collect()
    }

    /// The full check: sizes, hashes, and files that do not belong there. Moves `bar` by the bytes
    /// it reads.
    pub(crate) fn full(&self, dir: &Path, bar: &ProgressBar) -> Result<Vec<Damage>> {
        let mut damages = self.extra(dir)?;
        for entry in &self.0 {
            match entry.size_damage(dir) {
                None => damages.extend(entry.content_damage(dir, bar)?),
                damage => damages.extend(damage),
            }
        }
        Ok(damages)
    }

    fn extra(&self, dir: &Path) -> Result<Vec<Damage>> {
        let known: BTreeSet<&str> = self.0.iter().map(|entry| entry.path.as_str()).collect();
        let mut found = Vec::new();
        list(dir, "", &mut found)?;
        let extra = |path: &String| path != FILE && !known.contains(path.as_str());
        Ok(found.into_iter().filter(extra).map(Damage::Extra).collect())
    }
}

impl Entry {
    fn size_damage(&self, dir: &Path) -> Option<Damage> {
        match fs::symlink_metadata(dir.join(&self.path)) {
            Ok(file) if file.is_file() && file.len() == self.size => None,
            Ok(file) if file.is_file() => Some(Damage::Size {
                path: self.path.clone(),
                found: file.len(),
                expected: self.size,
            }),
            _ => Some(Damage::Missing(self.path.clone())),
        }
    }

    fn content_damage(&self, dir: &Path, bar: &ProgressBar) -> Result<Option<Damage>> {
        let path = dir.join(&self.path);
        let found = File::open(&path)
            .and_then(|file| hash::of_reader(Watched::new(file, bar)))
            .with_context(|| format!("reading {}", path.display()))?;
        Ok((found != self.sha256).then(|| Damage::Altered(self.path.clone())))
    }
}

fn parse(line: &str) -> Option<Entry> {
    let (sha256, rest) = line.split_once("  ")?;
    let (size, path) = rest.split_once("  ")?;
    let whole = sha256.len() == 64 && !path.is_empty();
    whole.then_some(Entry { sha256: sha256.into(), size: size.parse().ok()?, path: path.into() })
}

/// Collects the files under a directory; links are not followed and do not count.
fn list(dir: &Path, prefix: &str, found: &mut Vec<String>) -> Result<()> {
    let context = || format!("listing {}", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type().with_context(context)? {
            kind if kind.is_dir() => list(&entry.path(), &format!("{path}/"), found)?,
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with two files and their manifest.
    fn written() -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join("lib/libc10.so"), "machine code").unwrap();
        fs::write(dir.path().join("build-version"), "2.11.0\n").unwrap();
        let mut manifest = Manifest::default();
        manifest.push_files(dir.path(), &["lib/libc10.so", "build-version"]).unwrap();
        manifest.write(dir.path()).unwrap();
        let read = Manifest::read(dir.path()).unwrap();
        assert_eq!(read, manifest);
        (dir, read)
    }

    fn full(manifest: &Manifest, dir: &Path) -> Vec<Damage> {
        manifest.full(dir, &ProgressBar::hidden()).unwrap()
    }

    #[test]
    fn an_intact_directory_passes() {
        let (dir, manifest) = written();
        assert_eq!((manifest.files(), manifest.bytes()), (2, 19));
        assert_eq!(manifest.quick(dir.path()), []);
        assert_eq!(full(&manifest, dir.path()), []);
    }

    #[test]
    fn a_flipped_byte_is_found_by_the_full_check_alone() {
        let (dir, manifest) = written();
        fs::write(dir.path().join("lib/libc10.so"), "machine code".replace('m', "M")).unwrap();
        assert_eq!(manifest.quick(dir.path()), []);
        assert_eq!(full(&manifest, dir.path()), [Damage::Altered("lib/libc10.so".into())]);
    }

    #[test]
    fn a_truncated_file_is_found_by_both_checks() {
        let (dir, manifest) = written();
        fs::write(dir.path().join("lib/libc10.so"), "machine").unwrap();
        let damage = Damage::Size { path: "lib/libc10.so".into(), found: 7, expected: 12 };
        assert_eq!(damage.to_string(), "lib/libc10.so has 7 bytes instead of 12");
        assert_eq!(manifest.quick(dir.path()), std::slice::from_ref(&damage));
        assert_eq!(full(&manifest, dir.path()), [damage]);
    }

    #[test]
    fn a_missing_file_is_found() {
        let (dir, manifest) = written();
        fs::remove_file(dir.path().join("build-version")).unwrap();
        assert_eq!(manifest.quick(dir.path()), [Damage::Missing("build-version".into())]);
    }

    #[test]
    fn an_extra_file_is_found_and_a_link_is_not_counted() {
        let (dir, manifest) = written();
        std::os::unix::fs::symlink("lib", dir.path().join("run")).unwrap();
        fs::write(dir.path().join("lib/libtorch_cuda.so"), "").unwrap();
        assert_eq!(full(&manifest, dir.path()), [Damage::Extra("lib/libtorch_cuda.so".into())]);
    }

    #[test]
    fn a_damaged_manifest_is_no_manifest() {
        let (dir, _) = written();
        for text in ["", "abc  12  lib/libc10.so\n", "no manifest at all\n"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(Manifest::read(dir.path()), Err(Damage::Manifest), "{text}");
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(Manifest::read(dir.path()), Err(Damage::Manifest));
    }

    #[test]
    fn a_cut_manifest_is_no_manifest() {
        let (dir, _) = written();
        let whole = fs::read_to_string(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(FILE), &whole[..whole.len() - 4]).unwrap();
        assert_eq!(Manifest::read(dir.path()), Err(Damage::Manifest));
    }
}
