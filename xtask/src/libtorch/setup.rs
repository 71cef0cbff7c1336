//! `cargo xtask setup`: the order in which a libtorch is looked for.

use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::assemble::{self, Source};
use super::cache::Cache;
use super::manifest::Manifest;
use super::origin::{Origin, Tree};
use super::{pip, view, wheels};
use crate::compiler;
use crate::env::Env;
use crate::hash;
use crate::problem::problem;
use crate::say::tell;
use crate::workspace::Workspace;

/// Provides libtorch and points the checkout at it; returns the view in use.
pub(crate) fn set_up(workspace: &Workspace, env: &Env, force: bool) -> Result<PathBuf> {
    // Asked first: without it the download would be for nothing.
    compiler::require(env)?;
    let link = workspace.libtorch();
    let view = match Origin::wished(workspace, env)? {
        Some(origin) => view_of(&Cache::of(env)?, &origin.open()?, force)?,
        None if force => download(env, force)?,
        None => kept(&link)?.map_or_else(|| download(env, force), Ok)?,
    };
    view::point(&link, &view)?;
    if let Some(link) = link_beside_target(workspace, "libtorch")? {
        view::point(&link, &view)?;
    }
    Ok(view)
}

/// The view of a libtorch that is not ours.
fn view_of(cache: &Cache, tree: &Tree, force: bool) -> Result<PathBuf> {
    let place = cache.views().join(hash::of_path(tree.root()));
    if !force && shows(&place, tree) {
        return Ok(place);
    }
    let lock = cache.lock()?;
    let scratch = cache.scratch(&lock)?;
    let made = scratch.path().join("view");
    view::lay(&made, tree)?;
    cache.install(&made, &place, &scratch)?;
    Ok(place)
}

fn shows(place: &Path, tree: &Tree) -> bool {
    view::flaw(place).is_none()
        && fs::read_link(place.join("run")).is_ok_and(|run| run == tree.run())
}

/// What an earlier setup chose, unless it has gone bad: a choice made once with LIBTORCH holds
/// until another is made.
fn kept(link: &Path) -> Result<Option<PathBuf>> {
    let Ok(view) = fs::read_link(link) else { return Ok(None) };
    if Manifest::is_in(&view) {
        return Ok(assemble::in_order(&view, view::flaw)?.then_some(view));
    }
    Ok(match view::flaw(&view) {
        None => Some(view),
        Some(flaw) => {
            tell(format_args!("the libtorch in use is of no more use: {flaw}"));
            None
        }
    })
}

fn download(env: &Env, force: bool) -> Result<PathBuf> {
    require_platform(OS, ARCH, &pip::libtorch())?;
    let (cache, what) = (Cache::of(env)?, pip::libtorch());
    let source = Source {
        place: cache.libtorch(),
        complete: assemble::complete,
        flaw: view::flaw,
        wheels: &wheels::WHEELS,
        unpacked: wheels::UNPACKED_SIZE,
        fetch: &|wheels, dir| pip::download(env, &what, wheels, dir),
        what: what.clone(),
    };
    assemble::provide(&cache, &source, force)
}

/// Fails where there are no wheels for the machine.
pub(crate) fn require_platform(os: &str, arch: &str, what: &pip::What) -> Result<()> {
    match (os, arch) {
        ("linux", "x86_64") => Ok(()),
        _ => problem(
            format!(
                "setup downloads {} for linux on x86_64 only, and this is {os} on {arch}",
                what.name
            ),
            &what.by_hand,
        ),
    }
}

/// Where programs in a target directory of its own look for `name`. In `target/` they find the
/// link of the checkout.
pub(crate) fn link_beside_target(workspace: &Workspace, name: &str) -> Result<Option<PathBuf>> {
    let target = workspace.metadata()?.target_directory;
    Ok((target != workspace.root().join("target")).then(|| target.join(name)))
}

#[cfg(test)]
mod tests {
    use super::super::origin::fake;
    use super::*;

    fn cache(dir: &Path) -> Cache {
        Cache::of(&Env::from([("XDG_CACHE_HOME", dir.to_str().unwrap())])).unwrap()
    }

    #[test]
    fn the_download_is_for_one_platform() {
        let what = pip::libtorch();
        assert!(require_platform("linux", "x86_64", &what).is_ok());
        let error = require_platform("linux", "aarch64", &what).unwrap_err().to_string();
        assert!(error.contains("linux on x86_64 only, and this is linux on aarch64"), "{error}");
        assert!(error.contains("mend: LIBTORCH_USE_PYTORCH=1"), "{error}");
    }

    #[test]
    fn a_view_is_made_once_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, tree) = (cache(dir.path()), fake::tree(&dir.path().join("torch")));
        let place = view_of(&cache, &tree, false).unwrap();
        let marker = place.join("marker");
        fs::write(&marker, "").unwrap();
        assert_eq!(view_of(&cache, &tree, false).unwrap(), place);
        assert!(marker.exists(), "made again for nothing");
        fs::remove_file(place.join("lib/libtorch.so")).unwrap();
        view_of(&cache, &tree, false).unwrap();
        assert!(!marker.exists() && view::flaw(&place).is_none());
    }

    #[test]
    fn an_earlier_choice_holds_until_it_goes_bad() {
        let dir = tempfile::tempdir().unwrap();
        let tree = fake::tree(&dir.path().join("torch"));
        let (view, link) =
            (view_of(&cache(dir.path()), &tree, false).unwrap(), dir.path().join("link"));
        assert_eq!(kept(&link).unwrap(), None);
        view::point(&link, &view).unwrap();
        assert_eq!(kept(&link).unwrap(), Some(view));
        fs::remove_dir_all(dir.path().join("torch")).unwrap();
        assert_eq!(kept(&link).unwrap(), None);
    }
}
