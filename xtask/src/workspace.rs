//! The checkout this program works on, and the cargo commands it starts there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::env::Env;

/// What would give torch-sys another libtorch than the link in the checkout.
const OTHER_LIBTORCHES: [&str; 4] =
    ["LIBTORCH_USE_PYTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "LIBTORCH_STATIC"];

/// A checkout and the cargo to build it with.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
    cargo: PathBuf,
}

/// The part of `cargo metadata` that is used here.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    /// Where cargo builds to.
    pub(crate) target_directory: PathBuf,
    /// The members of the workspace.
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// What cargo builds of it.
    pub(crate) targets: Vec<Target>,
}

/// A library, program or test of a package.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
}

impl Workspace {
    /// The checkout that cargo runs this program from, or the one it was built in.
    pub(crate) fn find(env: &Env) -> Result<Self> {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest_dir = env.path("CARGO_MANIFEST_DIR").unwrap_or_else(|| built_in.into());
        let Some(root) = manifest_dir.parent() else {
            bail!("{} has no parent: CARGO_MANIFEST_DIR is set wrongly", manifest_dir.display());
        };
        let cargo = env.path("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Self { root: root.to_owned(), cargo })
    }

    /// The directory of the checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The link to the libtorch in use.
    pub(crate) fn libtorch(&self) -> PathBuf {
        self.root.join(".libtorch")
    }

    /// The link to the run-time compiler for CUDA.
    pub(crate) fn nvrtc(&self) -> PathBuf {
        self.root.join(".nvrtc")
    }

    /// The directory of the shared libraries at run time.
    pub(crate) fn libtorch_run(&self) -> PathBuf {
        self.libtorch().join("run")
    }

    /// A cargo that sees one libtorch: the link in the checkout.
    pub(crate) fn cargo<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(args).current_dir(&self.root).env("LIBTORCH", self.libtorch());
        for name in OTHER_LIBTORCHES {
            command.env_remove(name);
        }
        command
    }

    /// Lets the loader find libtorch for a program that was not linked with the rpaths of
    /// `.cargo/config.toml`.
    pub(crate) fn add_loader_path(&self, command: &mut Command, env: &Env) {
        const NAME: &str = "LD_LIBRARY_PATH";
        let mut paths = vec![self.libtorch_run()];
        paths.extend(env.get(NAME).into_iter().flat_map(std::env::split_paths));
        // A path with a colon in it cannot be said; the rpaths then have to do.
        if let Ok(joined) = std::env::join_paths(paths) {
            command.env(NAME, joined);
        }
    }

    /// What cargo knows of the workspace.
    pub(crate) fn metadata(&self) -> Result<Metadata> {
        let args = ["metadata", "--no-deps", "--format-version", "1"];
        let output = self
            .cargo(args)
            .output()
            .with_context(|| format!("starting {}", self.cargo.display()))?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        serde_json::from_slice(&output.stdout).context("reading the output of cargo metadata")
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn workspace() -> Workspace {
        Workspace::find(&Env::from([("CARGO_MANIFEST_DIR", "/checkout/xtask")])).unwrap()
    }

    #[test]
    fn the_checkout_is_where_the_manifest_is() {
        assert_eq!(workspace().root(), Path::new("/checkout"));
        assert_eq!(workspace().libtorch_run(), Path::new("/checkout/.libtorch/run"));
    }

    #[test]
    fn children_see_one_libtorch() {
        let command = workspace().cargo(["build"]);
        let set: Vec<_> = command.get_envs().collect();
        assert!(set.contains(&(OsStr::new("LIBTORCH"), Some(OsStr::new("/checkout/.libtorch")))));
        assert!(set.contains(&(OsStr::new("LIBTORCH_USE_PYTORCH"), None)));
    }

    #[test]
    fn the_loader_looks_at_libtorch_first() {
        let mut command = Command::new("doctest");
        workspace().add_loader_path(&mut command, &Env::from([("LD_LIBRARY_PATH", "/a:/b")]));
        let value = command.get_envs().next().unwrap().1;
        assert_eq!(value, Some(OsStr::new("/checkout/.libtorch/run:/a:/b")));
    }
}
