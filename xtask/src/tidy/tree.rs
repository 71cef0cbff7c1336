//! The text files of the checkout.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// The endings of the files that people write here.
const ENDINGS: [&str; 7] = [".rs", ".toml", ".md", ".sh", ".yml", ".yaml", ".ci/run"];

/// What a walk without git leaves out.
const NOT_OURS: [&str; 5] = [".git", ".libtorch", ".nvrtc", "target", "runs"];

/// A text file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the checkout, with `/`.
    pub(crate) path: String,
    /// Its content.
    pub(crate) text: String,
}

impl Source {
    /// The lines with their numbers, counted from one.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Whether this is Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// The text files of a checkout, sorted by path.
#[derive(Debug, Default)]
pub(crate) struct Tree(Vec<Source>);

impl Tree {
    /// Reads what git has or would take; without git, all files.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut paths = match listed_by_git(root) {
            Some(paths) => paths,
            None => walked(root)?,
        };
        paths.retain(|path| ENDINGS.iter().any(|ending| path.ends_with(ending)));
        paths.sort();
        paths.dedup();
        let sources = paths.into_iter().filter_map(|path| read(root, path).transpose());
        Ok(Self(sources.collect::<Result<_>>()?))
    }

    /// All files.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    /// The files in Rust.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &Source> {
        self.sources().filter(|source| source.is_rust())
    }

    /// A file by its path.
    pub(crate) fn get(&self, path: &str) -> Option<&Source> {
        self.sources().find(|source| source.path == path)
    }

    /// A tree of these files.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let source = |(path, text): &(&str, &str)| Source {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
        };
        Self(files.iter().map(source).collect())
    }
}

/// Reads a file; none if git knows it and it was deleted, or if it is a link.
fn read(root: &Path, path: String) -> Result<Option<Source>> {
    let place = root.join(&path);
    if !fs::symlink_metadata(&place).is_ok_and(|found| found.is_file()) {
        return Ok(None);
    }
    let bytes = fs::read(&place).with_context(|| format!("reading {path}"))?;
    Ok(Some(Source { path, text: String::from_utf8_lossy(&bytes).into_owned() }))
}

fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}

fn walked(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    walk(root, "", &mut paths)?;
    Ok(paths)
}

fn walk(dir: &Path, prefix: &str, paths: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type()? {
            _ if NOT_OURS.contains(&path.as_str()) => {}
            kind if kind.is_dir() => walk(&entry.path(), &format!("{path}/"), paths)?,
            _ => paths.push(path),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let place = root.join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }

    fn files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["src/b.rs", "README.md", "data.bin", ".ci/run", "target/debug/made.rs"] {
            write(dir.path(), path, "text\n");
        }
        write(dir.path(), ".gitignore", "/target/\n");
        std::os::unix::fs::symlink("src/b.rs", dir.path().join("a.rs")).unwrap();
        dir
    }

    fn paths(root: &Path) -> Vec<String> {
        Tree::read(root).unwrap().0.into_iter().map(|source| source.path).collect()
    }

    #[test]
    fn without_git_the_tree_is_walked() {
        let dir = files();
        let mut walked = walked(dir.path()).unwrap();
        walked.sort();
        assert_eq!(walked, [".ci/run", ".gitignore", "README.md", "a.rs", "data.bin", "src/b.rs"]);
    }

    #[test]
    fn only_text_files_of_ours_are_read() {
        let dir = files();
        assert_eq!(paths(dir.path()), [".ci/run", "README.md", "src/b.rs"]);
    }

    #[test]
    fn git_names_what_it_does_not_ignore() {
        let dir = files();
        let git = |args: &[&str]| Command::new("git").args(args).current_dir(dir.path()).output();
        if git(&["init", "--quiet"]).is_err() {
            return; // There is no git here, and the walk is tested above.
        }
        assert_eq!(paths(dir.path()), [".ci/run", "README.md", "src/b.rs"]);
        git(&["add", "README.md"]).unwrap();
        fs::remove_file(dir.path().join("README.md")).unwrap();
        assert_eq!(paths(dir.path()), [".ci/run", "src/b.rs"]);
    }
}
