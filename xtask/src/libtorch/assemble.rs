//! The downloaded libtorch: made once, under a lock, and never seen half made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::{Cache, Lock};
use super::manifest::{Damage, Manifest};
use super::unpack::unpack;
use super::wheels::{Wheel, total_size};
use super::{VERSION, pip, view};
use crate::problem::problem;
use crate::progress;

/// Where libtorch is made from.
pub(crate) struct Source<'a> {
    /// The wheels, pinned.
    pub(crate) wheels: &'a [Wheel],
    /// The size of what is taken of them.
    pub(crate) unpacked: u64,
    /// Puts the wheels into a directory.
    pub(crate) fetch: &'a dyn Fn(&[Wheel], &Path) -> Result<()>,
}

/// Provides the downloaded libtorch: as it is if it is in order, else (or by force) anew.
pub(crate) fn provide(cache: &Cache, source: &Source<'_>, force: bool) -> Result<PathBuf> {
    let place = cache.libtorch();
    if !force && in_order(&place)? {
        return Ok(place);
    }
    let lock = cache.lock()?;
    if !made_meanwhile(&place, force, lock.waited())? {
        make(cache, &lock, source).map_err(|error| cache.explain(error, source.space()))?;
    }
    Ok(place)
}

fn made_meanwhile(place: &Path, force: bool, waited: bool) -> Result<bool> {
    match force {
        // Whoever held the lock made it just now, unless it failed.
        true => Ok(waited && in_order(place).unwrap_or(false)),
        false => in_order(place),
    }
}

/// The cheap check: whether the downloaded libtorch is there; an error if it is damaged.
pub(crate) fn in_order(place: &Path) -> Result<bool> {
    if fs::symlink_metadata(place).is_err() {
        return Ok(false);
    }
    let damages = Manifest::read(place).map_or_else(|damage| vec![damage], |it| it.quick(place));
    refuse(place, &damages)?;
    match view::flaw(place) {
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
    problem(format!("the libtorch in {} is damaged: {first}{more}", place.display()), AFRESH)
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
    let (downloads, tree) = (scratch.path().join("wheels"), scratch.path().join("libtorch"));
    fs::create_dir(&downloads).context("making a directory for the wheels")?;
    (source.fetch)(source.wheels, &downloads)?;
    let mut manifest = unpack_all(source, &downloads, &tree)?;
    complete(&tree, &mut manifest)?;
    check(&tree, &manifest)?;
    cache.install(&tree, &cache.libtorch(), &scratch)
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

/// Makes a view of what was unpacked.
fn complete(tree: &Path, manifest: &mut Manifest) -> Result<()> {
    view::finish(tree, &format!("downloaded by `cargo xtask setup`: libtorch {VERSION}"))?;
    symlink("lib", tree.join("run")).context("linking run to lib")?;
    manifest.push_files(tree, &view::FINISH)?;
    manifest.write(tree)
}

/// Reads all of it back from the disk.
fn check(tree: &Path, manifest: &Manifest) -> Result<()> {
    let bar = progress::bytes("checking", manifest.bytes());
    let damages = manifest.full(tree, &bar)?;
    bar.finish_and_clear();
    refuse(tree, &damages)?;
    match view::flaw(tree) {
        None => Ok(()),
        Some(flaw) => problem(format!("the wheels are incomplete: {flaw}"), pip::by_hand()),
    }
}

#[cfg(test)]
mod tests;
