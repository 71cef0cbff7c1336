//! Takes a set out of a tar archive that somebody else wrote.
//!
//! No entry decides where it is written: files are taken by the table of the set, and below a tree only
//! under paths of plain names. Links, devices and whatever else is no file are left out. Bytes are
//! counted against the set's limit before they are written, and the whole stream against twice that and headers.

use super::sets::{Set, Takes};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use tar::Archive;

/// Most files of a tree.
const MOST_FILES: usize = 100_000;

/// Bytes of their headers and padding.
const HEADERS: u64 = 1024 * MOST_FILES as u64;

/// Unpacks what `set` takes of `archive`, an uncompressed tar, into the directory `into`; the number of
/// files.
///
/// # Errors
/// An archive that is damaged, that leads out of the directory, that holds more than the set may have,
/// or that lacks a file or has another one in its place; each names the file.
pub fn unpack(archive: impl Read, set: &Set, into: &Path) -> Result<usize> {
    let most = set.most_bytes.saturating_mul(2).saturating_add(HEADERS);
    let mut archive = Archive::new(archive.take(most));
    let (mut left, mut hashes) = (set.most_bytes, BTreeMap::new());
    for entry in archive.entries().context("reading the archive")? {
        let mut entry = entry.context("reading the archive")?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(name) = destination(set, &path)? else { continue };
        ensure!(entry.size() <= left, "{path}: the set may have {} bytes", set.most_bytes);
        ensure!(hashes.len() < MOST_FILES, "{path}: a set may have {MOST_FILES} files");
        left -= entry.size();
        let hash = write(&mut entry, &into.join(&name)).with_context(|| path.clone())?;
        ensure!(hashes.insert(name, hash).is_none(), "{path}: stands twice in the archive");
    }
    verify(set, &hashes)?;
    Ok(hashes.len())
}

/// Where an entry goes in the set, if it belongs to it.
fn destination(set: &Set, path: &str) -> Result<Option<PathBuf>> {
    let path = path.strip_prefix("./").unwrap_or(path);
    let tree = match set.takes {
        Takes::Files(files) => {
            let taken = files.iter().find(|(inside, ..)| *inside == path);
            return Ok(taken.map(|(_, name, _)| PathBuf::from(name)));
        }
        Takes::Tree(tree) => tree,
    };
    let Some(below) = path.strip_prefix(tree).and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(None);
    };
    let below = Path::new(below);
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(plain && below.file_name().is_some(), "{path}: leads out of the archive");
    Ok(Some(below.to_owned()))
}

/// Writes a file that is not there yet; its SHA-256.
fn write(entry: &mut impl Read, place: &Path) -> Result<String> {
    fs::create_dir_all(place.parent().unwrap_or(place))?;
    let mut hashed = Hashed { file: File::create_new(place)?, hash: Sha256::new() };
    io::copy(entry, &mut hashed)?;
    hashed.file.sync_all()?;
    Ok(hashed.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Hashed {
    file: File,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn verify(set: &Set, hashes: &BTreeMap<PathBuf, String>) -> Result<()> {
    let Takes::Files(files) = set.takes else {
        ensure!(!hashes.is_empty(), "{}: nothing of the set is in the archive", set.source);
        return Ok(());
    };
    for (inside, name, want) in files {
        match hashes.get(Path::new(name)) {
            None => bail!("{}: `{inside}` is missing", set.source),
            Some(found) if found != want => {
                bail!("{}: `{inside}` has SHA-256 {found}, expected {want}", set.source)
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::sets::Source;
    use super::*;
    use tar::{Builder, EntryType, Header};

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn set(takes: Takes) -> Set {
        Set {
            name: "test",
            about: "",
            licence: "",
            source: Source::Npm { package: "test@1" },
            takes,
            most_bytes: 1000,
        }
    }

    /// A tar whose paths are written as they are, sound or not.
    fn tar(files: &[(&str, &[u8], EntryType)]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (path, bytes, kind) in files {
            let mut header = Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn unpacked(takes: Takes, files: &[(&str, &[u8], EntryType)]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("in/side");
        fs::create_dir_all(&into).unwrap();
        let said = match unpack(&tar(files)[..], &set(takes), &into) {
            Ok(count) => count.to_string(),
            Err(error) => format!("{error:#}"),
        };
        (dir, said)
    }

    const FILE: EntryType = EntryType::Regular;
    const TREE: Takes = Takes::Tree("pack/data");
    const ONE: Takes = Takes::Files(&[("pack/a", "b", ABC)]);

    #[test]
    fn files_are_taken_by_the_table_alone() {
        let files: &[(&str, &[u8], EntryType)] =
            &[("./pack/a", b"abc", FILE), ("../../evil", b"x", FILE), ("pack/c", b"x", FILE)];
        let (dir, said) = unpacked(ONE, files);
        assert_eq!(said, "1");
        assert_eq!(fs::read(dir.path().join("in/side/b")).unwrap(), b"abc");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_missing_or_another_is_an_error() {
        assert_eq!(unpacked(ONE, &[]).1, "npm test@1: `pack/a` is missing");
        let said = unpacked(ONE, &[("pack/a", b"abd", FILE)]).1;
        assert!(said.starts_with("npm test@1: `pack/a` has SHA-256 a52d159f"), "{said}");
    }

    #[test]
    fn a_tree_stays_below_its_directory() {
        for path in ["pack/data/../../../evil", "pack/data//etc/passwd", "pack/data/a/../../b"] {
            let (dir, said) = unpacked(TREE, &[(path, b"x", FILE)]);
            assert_eq!(said, format!("{path}: leads out of the archive"));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        let files: &[(&str, &[u8], EntryType)] =
            &[("pack/data/a/b.html", b"x", FILE), ("pack/database", b"y", FILE)];
        let (dir, said) = unpacked(TREE, files);
        assert_eq!(said, "1");
        assert!(dir.path().join("in/side/a/b.html").exists());
    }

    #[test]
    fn links_are_left_out_and_names_stand_once() {
        let link: &[(&str, &[u8], EntryType)] =
            &[("pack/data/l", b"", EntryType::Symlink), ("pack/data/h", b"", EntryType::Link)];
        assert_eq!(unpacked(TREE, link).1, "npm test@1: nothing of the set is in the archive");
        let twice: &[(&str, &[u8], EntryType)] =
            &[("pack/data/a", b"1", FILE), ("pack/data/a", b"2", FILE)];
        assert!(unpacked(TREE, twice).1.starts_with("pack/data/a: "));
    }

    #[test]
    fn what_is_too_large_is_not_written() {
        let (dir, said) = unpacked(TREE, &[("pack/data/a", &[0; 1001], FILE)]);
        assert_eq!(said, "pack/data/a: the set may have 1000 bytes");
        assert!(!dir.path().join("in/side/a").exists());
        // A size in the header that the bytes do not bear out.
        let mut short = tar(&[("pack/data/a", &[1; 900], FILE)]);
        short.truncate(700);
        let into = tempfile::tempdir().unwrap();
        assert!(unpack(&short[..], &set(TREE), into.path()).is_err());
    }
}
