//! Views: what torch-sys, the linker and the loader see of a libtorch.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::origin::Tree;
use super::{VERSION, version};
use crate::problem::problem;

/// The file that says where a view comes from.
pub(crate) const ORIGIN_FILE: &str = "origin";

/// The libraries that are linked; `libtorch.so` stands for the second.
const LINKED: [&str; 2] = ["libc10.so", "libtorch_cpu.so"];

/// What a view holds at the least.
const NEEDED: [&str; 6] = [
    "include/torch/csrc/api/include/torch/torch.h",
    "lib/libc10.so",
    "lib/libtorch.so",
    "lib/libtorch_cpu.so",
    "run/libc10.so",
    "run/libtorch_cpu.so",
];

/// Lays out a view of someone else's libtorch in the directory `view`.
pub(crate) fn lay(view: &Path, tree: &Tree) -> Result<()> {
    let links = || {
        fs::create_dir_all(view.join("lib"))?;
        symlink(tree.include(), view.join("include"))?;
        symlink(tree.run(), view.join("run"))?;
        LINKED.iter().try_for_each(|name| stand_in(view, name, &tree.run().join(name)))
    };
    links().with_context(|| format!("laying out {}", view.display()))?;
    finish(view, &tree.origin().to_string())
}

/// Lets the linker take a library elsewhere. By a script and not by a link, as linkers look for
/// what the library needs itself relative to the path by which they found it.
fn stand_in(view: &Path, name: &str, library: &Path) -> io::Result<()> {
    fs::write(view.join("lib").join(name), format!("INPUT(\"{}\")\n", library.display()))
}

/// Adds what every view has beside headers and libraries.
pub(crate) fn finish(view: &Path, origin: &str) -> Result<()> {
    let files = [
        ("build-version", format!("{VERSION}\n")),
        // torch-sys asks the linker for `torch`, which only ties its libraries together.
        ("lib/libtorch.so", "INPUT(libtorch_cpu.so)\n".to_owned()),
        (ORIGIN_FILE, format!("{origin}\n")),
    ];
    files.iter().try_for_each(|(name, text)| {
        fs::write(view.join(name), text).with_context(|| format!("writing {name}"))
    })
}

/// The files that [`finish`] writes.
pub(crate) const FINISH: [&str; 3] = ["build-version", "lib/libtorch.so", ORIGIN_FILE];

/// What keeps a view from being used, if anything.
pub(crate) fn flaw(view: &Path) -> Option<String> {
    if let Some(missing) = NEEDED.iter().find(|path| !view.join(path).exists()) {
        return Some(format!("{} has no {missing}", view.display()));
    }
    if view.join("lib/libtorch_cuda.so").exists() {
        return Some(format!("{} would link libtorch_cuda.so", view.display()));
    }
    match version::of_tree(view) {
        Some(found) if found == VERSION => None,
        Some(found) => Some(format!("{} is libtorch {found}", view.display())),
        None => Some(format!("{} does not state its version", view.display())),
    }
}

/// Points a link at a view, atomically; says whether it pointed elsewhere before.
pub(crate) fn point(link: &Path, view: &Path) -> Result<bool> {
    match fs::read_link(link) {
        Ok(target) if target == view => return Ok(false),
        Err(error) if error.kind() == ErrorKind::InvalidInput => return in_the_way(link),
        _ => {}
    }
    replace(link, view)
        .with_context(|| format!("linking {} to {}", link.display(), view.display()))?;
    Ok(true)
}

fn replace(link: &Path, view: &Path) -> io::Result<()> {
    let parent = link.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let make = |temporary: &Path| symlink(view, temporary);
    let made = tempfile::Builder::new().prefix(".libtorch-").make_in(parent, make)?;
    Ok(made.into_temp_path().persist(link)?)
}

fn in_the_way(link: &Path) -> Result<bool> {
    let link = link.display();
    problem(
        format!("{link} is not a link made by `cargo xtask setup`, so it is left alone"),
        format!("mv {link} {link}.old && cargo xtask setup"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::origin::fake;
    use super::*;

    #[test]
    fn a_view_of_a_cuda_build_links_no_cuda() {
        let dir = tempfile::tempdir().unwrap();
        let tree = fake::tree(&dir.path().join("torch"));
        fs::write(dir.path().join("torch/lib/libtorch_cuda.so"), "").unwrap();
        let view = dir.path().join("view");
        lay(&view, &tree).unwrap();
        assert_eq!(flaw(&view), None);
        assert!(view.join("run/libtorch_cuda.so").exists());
        assert!(!view.join("lib/libtorch_cuda.so").exists());
        let script = fs::read_to_string(view.join("lib/libc10.so")).unwrap();
        assert_eq!(script, format!("INPUT(\"{}\")\n", tree.run().join("libc10.so").display()));
    }

    #[test]
    fn a_view_says_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let tree = fake::tree(&dir.path().join("torch"));
        let view = dir.path().join("view");
        lay(&view, &tree).unwrap();
        fs::remove_file(dir.path().join("torch/lib/libtorch_cpu.so")).unwrap();
        assert!(flaw(&view).unwrap().ends_with("view has no run/libtorch_cpu.so"));
    }

    #[test]
    fn a_view_of_another_version_is_flawed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = fake::tree(&dir.path().join("torch"));
        let view = dir.path().join("view");
        lay(&view, &tree).unwrap();
        fs::write(view.join("build-version"), "2.10.0\n").unwrap();
        assert!(flaw(&view).unwrap().ends_with("view is libtorch 2.10.0"));
    }

    #[test]
    fn links_are_replaced_and_left_when_right() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("target/libtorch");
        assert!(point(&link, Path::new("/one")).unwrap());
        assert!(point(&link, Path::new("/two")).unwrap());
        assert!(!point(&link, Path::new("/two")).unwrap());
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/two"));
        assert_eq!(fs::read_dir(link.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let error = point(dir.path(), Path::new("/view")).unwrap_err().to_string();
        assert!(error.contains("not a link made by `cargo xtask setup`"), "{error}");
        assert!(error.contains("mend: mv "), "{error}");
    }
}
