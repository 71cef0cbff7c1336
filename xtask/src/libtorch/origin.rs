//! The libtorch that the user asks for: `LIBTORCH`, or the torch of a Python.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{VERSION, version};
use crate::env::Env;
use crate::problem::problem;
use crate::workspace::Workspace;

/// Finds torch without importing it, which would take seconds.
const FIND_TORCH: &str = "import importlib.util as u; s = u.find_spec('torch'); \
    print(s.submodule_search_locations[0] if s else '')";

/// Where a libtorch that is not ours comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The variable `LIBTORCH`, as the user set it.
    Variable(PathBuf),
    /// The torch that a Python has installed.
    Python {
        /// The interpreter.
        python: String,
        /// Its `site-packages/torch`.
        torch: PathBuf,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(path) => write!(out, "LIBTORCH={}", path.display()),
            Self::Python { python, torch } => {
                write!(out, "the torch of {python} ({})", torch.display())
            }
        }
    }
}

impl Origin {
    /// What the environment asks for. The link in the checkout is our own doing, not a wish:
    /// cargo sets it by `.cargo/config.toml`.
    pub(crate) fn wished(workspace: &Workspace, env: &Env) -> Result<Option<Self>> {
        match env.path("LIBTORCH").filter(|path| !is_own_link(path, workspace)) {
            Some(path) => Ok(Some(Self::Variable(path))),
            None if env.has("LIBTORCH_USE_PYTORCH") => torch_of(env.python()).map(Some),
            None => Ok(None),
        }
    }

    /// Checks that what was asked for is there and of the right version.
    pub(crate) fn open(self) -> Result<Tree> {
        let Ok(root) = fs::canonicalize(self.path()) else {
            return problem(format!("{self} does not exist"), self.mend());
        };
        if let Some(flaw) = flaw(&root) {
            return problem(format!("{self} {flaw}"), self.mend());
        }
        Ok(Tree { root, origin: self })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Variable(path) | Self::Python { torch: path, .. } => path,
        }
    }

    fn mend(&self) -> String {
        match self {
            Self::Variable(_) => {
                "env -u LIBTORCH cargo xtask setup   (downloads the right one)".to_owned()
            }
            Self::Python { python, .. } => mend_python(python),
        }
    }
}

fn mend_python(python: &str) -> String {
    format!(
        "{python} -m pip install torch=={VERSION}\n\
         env -u LIBTORCH_USE_PYTORCH cargo xtask setup   (downloads the right one)"
    )
}

fn is_own_link(path: &Path, workspace: &Workspace) -> bool {
    let own = workspace.libtorch();
    let same_place =
        || fs::canonicalize(path.parent()?).ok().zip(fs::canonicalize(own.parent()?).ok());
    path == own
        || path.file_name() == own.file_name()
            && same_place().is_some_and(|(theirs, ours)| theirs == ours)
}

fn torch_of(python: &str) -> Result<Origin> {
    let output = match Command::new(python).args(["-c", FIND_TORCH]).output() {
        Ok(output) => output,
        Err(error) => {
            return problem(
                format!("LIBTORCH_USE_PYTORCH is set, and {python} does not start: {error}"),
                "env -u LIBTORCH_USE_PYTORCH cargo xtask setup   (downloads libtorch)",
            );
        }
    };
    match String::from_utf8_lossy(&output.stdout).trim() {
        "" => problem(
            format!("LIBTORCH_USE_PYTORCH is set, and {python} has no torch"),
            mend_python(python),
        ),
        torch => Ok(Origin::Python { python: python.to_owned(), torch: torch.into() }),
    }
}

/// What keeps a libtorch from being used, if anything.
fn flaw(root: &Path) -> Option<String> {
    let found = version::of_tree(root);
    if let Some(found) = found.as_deref().filter(|found| *found != VERSION) {
        return Some(format!("is libtorch {found}, and this workspace needs {VERSION}"));
    }
    let needed =
        ["include/torch/csrc/api/include/torch/torch.h", "lib/libc10.so", "lib/libtorch_cpu.so"];
    if let Some(missing) = needed.iter().find(|path| !root.join(path).exists()) {
        return Some(format!("has no {missing}"));
    }
    found.is_none().then(|| "does not state its version".to_owned())
}

/// A libtorch that is not ours, found in order.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    origin: Origin,
}

impl Tree {
    /// Its directory, with all links resolved.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where it comes from.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The headers.
    pub(crate) fn include(&self) -> PathBuf {
        self.root.join("include")
    }

    /// The shared libraries, in the directory that their own rpaths count from.
    pub(crate) fn run(&self) -> PathBuf {
        // A view of another checkout has some of them in `lib`, and all of them in `run`.
        fs::canonicalize(self.root.join("run")).unwrap_or_else(|_| self.root.join("lib"))
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! Trees that look like libtorch.

    use super::*;

    /// Lays out a tree of the right version, as `LIBTORCH` would name it.
    pub(crate) fn tree(root: &Path) -> Tree {
        fill(root);
        Origin::Variable(root.to_owned()).open().unwrap()
    }

    /// Lays out the files of a tree of the right version.
    pub(crate) fn fill(root: &Path) {
        for file in
            ["include/torch/csrc/api/include/torch/torch.h", "lib/libc10.so", "lib/libtorch_cpu.so"]
        {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), file).unwrap();
        }
        fs::write(root.join("build-version"), VERSION).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(root: &Path) -> Workspace {
        let manifest_dir = root.join("xtask");
        let env = Env::from([("CARGO_MANIFEST_DIR", manifest_dir.to_str().unwrap())]);
        Workspace::find(&env).unwrap()
    }

    fn wish(vars: Env) -> Option<Origin> {
        Origin::wished(&workspace(Path::new("/checkout")), &vars).unwrap()
    }

    #[test]
    fn the_link_of_the_checkout_is_no_wish() {
        assert_eq!(wish(Env::from([("LIBTORCH", "/checkout/.libtorch")])), None);
        assert_eq!(wish(Env::from([("LIBTORCH", "")])), None);
        let theirs = PathBuf::from("/opt/libtorch");
        assert_eq!(
            wish(Env::from([("LIBTORCH", "/opt/libtorch")])),
            Some(Origin::Variable(theirs))
        );
    }

    #[test]
    fn the_link_is_known_by_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("xtask/../.libtorch");
        fs::create_dir(dir.path().join("xtask")).unwrap();
        assert!(is_own_link(&named, &workspace(dir.path())));
        assert!(!is_own_link(Path::new("/elsewhere/.libtorch"), &workspace(dir.path())));
    }

    #[test]
    fn the_wrong_version_is_named_with_the_right_one() {
        let dir = tempfile::tempdir().unwrap();
        fake::fill(dir.path());
        fs::write(dir.path().join("build-version"), "2.10.0+cpu\n").unwrap();
        let error = Origin::Variable(dir.path().into()).open().unwrap_err().to_string();
        assert!(error.contains("is libtorch 2.10.0, and this workspace needs 2.11.0"), "{error}");
        assert!(error.contains("mend: env -u LIBTORCH cargo xtask setup"), "{error}");
    }

    #[test]
    fn a_tree_without_libraries_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fake::fill(dir.path());
        fs::remove_file(dir.path().join("lib/libtorch_cpu.so")).unwrap();
        let error = Origin::Variable(dir.path().into()).open().unwrap_err().to_string();
        assert!(error.contains("has no lib/libtorch_cpu.so"), "{error}");
    }

    #[test]
    fn a_tree_that_does_not_exist_is_refused() {
        let error = Origin::Variable("/no/such/tree".into()).open().unwrap_err().to_string();
        assert!(error.starts_with("LIBTORCH=/no/such/tree does not exist"), "{error}");
    }

    #[test]
    fn the_libraries_of_a_view_are_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let real = fake::tree(&dir.path().join("torch"));
        let view = dir.path().join("view");
        super::super::view::lay(&view, &real).unwrap();
        let of_view = Origin::Variable(view).open().unwrap();
        assert_eq!(of_view.run(), fs::canonicalize(dir.path().join("torch/lib")).unwrap());
    }

    #[test]
    fn a_python_that_is_not_there_is_named() {
        let error = torch_of("no-such-python").unwrap_err().to_string();
        assert!(error.contains("no-such-python does not start"), "{error}");
    }
}
