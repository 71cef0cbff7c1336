//! The libtorch in use, and the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use crate::doctor::report::Report;
use crate::env::Env;
use crate::libtorch::cache::Cache;
use crate::libtorch::manifest::Manifest;
use crate::libtorch::origin::Origin;
use crate::libtorch::{assemble, nvrtc, version, view};
use crate::problem::Problem;
use crate::progress::{self, size};
use crate::workspace::Workspace;

/// Looks at the libtorch in use; returns where its shared libraries are.
pub(crate) fn look(report: &mut Report, workspace: &Workspace, env: &Env) -> Option<PathBuf> {
    look_at_wish(report, workspace, env);
    let Ok(place) = fs::read_link(workspace.libtorch()) else {
        let what = format!("there is no {}", workspace.libtorch().display());
        report.problem("libtorch", &Problem::new(what, "cargo xtask setup"));
        return None;
    };
    report.either("libtorch", version_of(&place));
    report.found("origin", origin(&place));
    report.either("integrity", integrity(&place));
    fs::canonicalize(place.join("run")).ok()
}

/// Looks at what the environment asks for, which the next setup would take.
fn look_at_wish(report: &mut Report, workspace: &Workspace, env: &Env) {
    let opened = match Origin::wished(workspace, env) {
        Ok(None) => return,
        Ok(Some(origin)) => origin.open().map(|tree| tree.origin().to_string()),
        Err(error) => Err(error),
    };
    report.either("asked for", opened.map_err(into_problem));
}

/// Looks at the run-time compiler for CUDA, which tests need.
pub(crate) fn look_at_nvrtc(report: &mut Report, workspace: &Workspace, env: &Env) {
    let found = nvrtc::found(workspace, env).map_err(into_problem);
    report.either("NVRTC", found.map(|place| place.display().to_string()));
}

fn version_of(place: &Path) -> Result<String, Problem> {
    match (view::flaw(place), version::of_tree(place)) {
        (Some(flaw), _) => Err(Problem::new(flaw, "cargo xtask setup --force")),
        (None, version) => Ok(format!("{} in {}", version.unwrap_or_default(), place.display())),
    }
}

fn origin(place: &Path) -> String {
    let noted = fs::read_to_string(place.join(view::ORIGIN_FILE));
    noted.map_or_else(
        |_| "not made by `cargo xtask setup`".to_owned(),
        |text| text.trim().to_owned(),
    )
}

/// Reads all of a downloaded libtorch and compares.
fn integrity(place: &Path) -> Result<String, Problem> {
    if !Manifest::is_in(place) {
        return Ok(
            "not checked: this libtorch was not downloaded by `cargo xtask setup`".to_owned()
        );
    }
    let start = Instant::now();
    let manifest = full_check(place).map_err(into_problem)?;
    let (files, bytes) = (manifest.files(), size(manifest.bytes()));
    Ok(format!(
        "{files} files, {bytes}, all as downloaded ({:.1} s)",
        start.elapsed().as_secs_f64()
    ))
}

fn full_check(place: &Path) -> Result<Manifest> {
    let manifest = match Manifest::read(place) {
        Ok(manifest) => manifest,
        Err(damage) => return assemble::refuse(place, &[damage]).map(|()| Manifest::default()),
    };
    let bar = progress::bytes("checking libtorch", manifest.bytes());
    let damages = manifest.full(place, &bar)?;
    bar.finish_and_clear();
    assemble::refuse(place, &damages).map(|()| manifest)
}

fn into_problem(error: anyhow::Error) -> Problem {
    match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => Problem::new(format!("{error:#}"), "cargo xtask setup --force"),
    }
}

/// Says where the cache is and how large it has become.
pub(crate) fn look_at_cache(report: &mut Report, env: &Env) {
    let cache = Cache::of(env).map_err(into_problem);
    report.either(
        "cache",
        cache.map(|cache| format!("{}, {}", cache.root().display(), size(size_of(cache.root())))),
    );
}

/// The size of the files under a directory; what cannot be read counts nothing.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_file_is_a_problem_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "content").unwrap();
        let mut manifest = Manifest::default();
        manifest.push_files(dir.path(), &["file"]).unwrap();
        manifest.write(dir.path()).unwrap();
        assert!(integrity(dir.path()).unwrap().starts_with("1 files, 7 B, all as downloaded"));
        fs::write(dir.path().join("file"), "Content").unwrap();
        let problem = integrity(dir.path()).unwrap_err();
        assert!(problem.what.ends_with("is damaged: file is altered"), "{}", problem.what);
        assert!(problem.mend.starts_with("cargo xtask setup --force"));
    }

    #[test]
    fn what_was_not_downloaded_is_not_checked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(integrity(dir.path()).unwrap().starts_with("not checked"));
        assert_eq!(origin(dir.path()), "not made by `cargo xtask setup`");
    }

    #[test]
    fn the_cache_is_measured() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "12345").unwrap();
        assert_eq!(size_of(dir.path()), 5);
    }
}
