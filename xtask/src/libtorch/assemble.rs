//! What is downloaded, libtorch above all: made once, under a lock, and never seen half made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::{Cache, Lock};
use super::manifest::{Damage, Manifest};
use super::pip::What;
use super::unpack::unpack;
use super::wheels::{Wheel, total_size};
use super::{VERSION, view};
use crate::problem::problem;
use crate::progress;

/// What is made, where, and from what.
pub(crate) struct Source<'a> {
    /// Its name, and the ways around a download.
    pub(crate) what: What,
    /// Where it goes.
    pub(crate) place: PathBuf,
    /// Adds what the wheels do not hold, and notes it.
    pub(crate) complete: fn(&Path, &mut Manifest) -> Result<()>,
    /// What keeps the result from being used, if anything.
    pub(crate) flaw: fn(&Path) -> Option<String>,
    /// The wheels, pinned.
    pub(crate) wheels: &'a [Wheel],
    /// The size of what is taken of them.
    pub(crate) unpacked: u64,
    /// Puts the wheels into a directory.
    pub(crate) fetch: &'a dyn Fn(&[Wheel], &Path) -> Result<()>,
}

/// Provides what is downloaded: as it is if it is in order, else (or by force) anew.
pub(crate) fn provide(cache: &Cache, source: &Source<'_>, force: bool) -> Result<PathBuf> {
    let place = &source.place;
    if !force && in_order(place, source.flaw)? {
        return Ok(place.clone());
    }
    let lock = cache.lock()?;
    if !made_meanwhile(source, force, lock.waited())? {
        make(cache, &lock, source).map_err(|error| cache.explain(error, source.space()))?;
    }
    Ok(place.clone())
}

fn made_meanwhile(source: &Source<'_>, force: bool, waited: bool) -> Result<bool> {
    let found = in_order(&source.place, source.flaw);
    match force {
        // Whoever held the lock made it just now, unless it failed.
        true => Ok(waited && found.unwrap_or(false)),
        false => found,
    }
}

/// The cheap check: whether the download is there; an error if it is damaged.
pub(crate) fn in_order(place: &Path, flaw: fn(&Path) -> Option<String>) -> Result<bool> {
    if fs::symlink_metadata(place).is_err() {
        return Ok(false);
    }
    let damages = Manifest::read(place).map_or_else(|damage| vec![damage], |it| it.quick(place));
    refuse(place, &damages)?;
    match flaw(place) {
        None => Ok(true),
        Some(flaw) => problem(flaw, AFRESH),
    }
}

/// Fails if there is any damage, with the way to mend it.
pub(crate) fn refuse(place: &Path, damages: &[Damage]) -> Result<()> {
    let Some(first) = damages.first() else { return Ok(()) };
    let more = match damages.len() {
        1 => String::new(),
        count => format!(", and {} more", count - 1),
    };
    problem(format!("the download in {} is damaged: {first}{more}", place.display()), AFRESH)
}

const AFRESH: &str = "cargo xtask setup --force   (downloads it afresh)";

impl Source<'_> {
    /// What it takes on the disk: first the wheels and pip's copy of them, then the wheels and the
    /// result, which is the smaller.
    fn space(&self) -> u64 {
        total_size(self.wheels) + total_size(self.wheels).max(self.unpacked)
    }
}

fn make(cache: &Cache, lock: &Lock, source: &Source<'_>) -> Result<()> {
    cache.require_space(source.space())?;
    let scratch = cache.scratch(lock)?;
    let (downloads, tree) = (scratch.path().join("wheels"), scratch.path().join("made"));
    fs::create_dir(&downloads).context("making a directory for the wheels")?;
    (source.fetch)(source.wheels, &downloads)?;
    let mut manifest = unpack_all(source, &downloads, &tree)?;
    (source.complete)(&tree, &mut manifest)?;
    manifest.write(&tree)?;
    check(source, &tree, &manifest)?;
    cache.install(&tree, &source.place, &scratch)
}

fn unpack_all(source: &Source<'_>, downloads: &Path, tree: &Path) -> Result<Manifest> {
    let find = |wheel: &Wheel| wheel.find_in(downloads);
    let archives = source.wheels.iter().map(find).collect::<Result<Vec<_>>>()?;
    let bar = progress::bytes("unpacking", source.unpacked);
    let mut manifest = Manifest::default();
    for (wheel, archive) in source.wheels.iter().zip(archives) {
        unpack(wheel, &archive, tree, &mut manifest, &bar)?;
    }
    bar.finish_and_clear();
    Ok(manifest)
}

/// Makes a view of an unpacked libtorch.
pub(crate) fn complete(tree: &Path, manifest: &mut Manifest) -> Result<()> {
    view::finish(tree, &format!("downloaded by `cargo xtask setup`: libtorch {VERSION}"))?;
    symlink("lib", tree.join("run")).context("linking run to lib")?;
    manifest.push_files(tree, &view::FINISH)
}

/// Reads all of it back from the disk.
fn check(source: &Source<'_>, tree: &Path, manifest: &Manifest) -> Result<()> {
    let bar = progress::bytes("checking", manifest.bytes());
    let damages = manifest.full(tree, &bar)?;
    bar.finish_and_clear();
    refuse(tree, &damages)?;
    match (source.flaw)(tree) {
        None => Ok(()),
        Some(flaw) => problem(format!("the wheels are incomplete: {flaw}"), &source.what.by_hand),
    }
}

#[cfg(test)]
mod tests;
