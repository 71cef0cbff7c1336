//! NVIDIA's run-time compiler for CUDA. Tests compile the kernels with it on any machine; on one with a
//! GPU programs do.
//!
//! `.nvrtc` in the checkout is a link to it. The variable `MOE_NVRTC` names a library that is here
//! already, and wins.

use std::env::consts::{ARCH, OS};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::assemble::{self, Source};
use super::cache::Cache;
use super::pip::{self, What};
use super::setup::{link_beside_target, require_platform};
use super::{view, wheels};
use crate::env::Env;
use crate::problem::problem;
use crate::workspace::Workspace;

/// The version that libtorch was built with.
pub(crate) const VERSION: &str = "13.0.88";

/// What the download must hold.
const NEEDED: [&str; 2] = ["lib/libnvrtc.so.13", "lib/libnvrtc-builtins.so.13.0"];

/// The variable that programs look at too.
const VARIABLE: &str = "MOE_NVRTC";

/// Provides the compiler and points the checkout at it; returns where it is.
pub(crate) fn set_up(workspace: &Workspace, env: &Env, force: bool) -> Result<PathBuf> {
    if let Some(library) = own_library(env)? {
        return Ok(library);
    }
    let place = download(env, force)?;
    view::point(&workspace.nvrtc(), &place)?;
    if let Some(link) = link_beside_target(workspace, "nvrtc")? {
        view::point(&link, &place)?;
    }
    Ok(place)
}

/// Where the compiler is, without fetching it.
pub(crate) fn found(workspace: &Workspace, env: &Env) -> Result<PathBuf> {
    match own_library(env)? {
        Some(library) => Ok(library),
        None => match flaw(&workspace.nvrtc()) {
            None => Ok(workspace.nvrtc()),
            Some(flaw) => problem(flaw, "cargo xtask setup"),
        },
    }
}

/// The library that the variable names, if it is set.
fn own_library(env: &Env) -> Result<Option<PathBuf>> {
    match env.path(VARIABLE) {
        Some(path) if !path.is_file() => problem(
            format!("{VARIABLE}={} is no file", path.display()),
            format!("env -u {VARIABLE} cargo xtask setup   (downloads the right one)"),
        ),
        path => Ok(path),
    }
}

fn download(env: &Env, force: bool) -> Result<PathBuf> {
    require_platform(OS, ARCH, &what())?;
    let (cache, what) = (Cache::of(env)?, what());
    let source = Source {
        place: cache.nvrtc(),
        // The wheel holds all of it.
        complete: |_, _| Ok(()),
        flaw,
        wheels: &wheels::NVRTC,
        unpacked: wheels::NVRTC_SIZE,
        fetch: &|wheels, dir| pip::download(env, &what, wheels, dir),
        what: what.clone(),
    };
    assemble::provide(&cache, &source, force)
}

fn what() -> What {
    What {
        name: format!("NVRTC {VERSION}"),
        by_hand: format!(
            "{VARIABLE}=/path/to/libnvrtc.so.13 cargo xtask setup   (an NVRTC that is here already)"
        ),
    }
}

fn flaw(place: &Path) -> Option<String> {
    let missing = NEEDED.iter().find(|path| !place.join(path).is_file())?;
    Some(format!("{} has no {missing}", place.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_library_of_ones_own_wins_and_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("libnvrtc.so.13");
        let env = Env::from([(VARIABLE, library.to_str().unwrap())]);
        let error = own_library(&env).unwrap_err().to_string();
        assert!(
            error.contains("is no file") && error.contains("mend: env -u MOE_NVRTC"),
            "{error}"
        );
        fs::write(&library, "").unwrap();
        assert_eq!(own_library(&env).unwrap(), Some(library));
        assert_eq!(own_library(&Env::from([])).unwrap(), None);
    }

    #[test]
    fn what_the_download_lacks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join(NEEDED[0]), "").unwrap();
        assert!(flaw(dir.path()).unwrap().ends_with("has no lib/libnvrtc-builtins.so.13.0"));
        fs::write(dir.path().join(NEEDED[1]), "").unwrap();
        assert_eq!(flaw(dir.path()), None);
    }
}
