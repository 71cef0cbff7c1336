//! A checkout, a home and a PATH of a test's own. Nothing outside them is read or written, and
//! there is no network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use tempfile::TempDir;

/// The files that make a directory look like libtorch.
const TREE: [&str; 3] =
    ["include/torch/csrc/api/include/torch/torch.h", "lib/libc10.so", "lib/libtorch_cpu.so"];

/// A place to run `xtask` in.
pub(crate) struct Scene {
    dir: TempDir,
}

impl Scene {
    /// A checkout with a cargo that does nothing, a C++ compiler, and nothing else in PATH.
    pub(crate) fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(scene.path("checkout/xtask")).unwrap();
        fs::create_dir_all(scene.path("bin")).unwrap();
        scene.cargo("exit 0");
        scene.script("c++", "echo 'c++ 1.0'");
        scene.write("bin/libnvrtc.so.13", "");
        scene
    }

    /// A path in the scene.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file, and the directories above it.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let place = self.path(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }

    /// Puts a program in PATH.
    pub(crate) fn script(&self, name: &str, body: &str) {
        let place = format!("bin/{name}");
        self.write(&place, &format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n"));
        fs::set_permissions(self.path(&place), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Takes a program out of PATH.
    pub(crate) fn without(&self, name: &str) {
        fs::remove_file(self.path("bin").join(name)).unwrap();
    }

    /// A cargo that knows the checkout, and else does as told.
    pub(crate) fn cargo(&self, body: &str) {
        let target = self.path("checkout/target");
        let metadata = format!(r#"{{"target_directory": "{}", "packages": []}}"#, target.display());
        self.script(
            "cargo",
            &format!("[ \"$1\" = metadata ] && echo '{metadata}' && exit 0\n{body}"),
        );
    }

    /// Lays out what looks like a libtorch of a version.
    pub(crate) fn libtorch(&self, path: &str, version: &str) -> PathBuf {
        for file in TREE {
            self.write(&format!("{path}/{file}"), file);
        }
        self.write(&format!("{path}/build-version"), version);
        self.path(path)
    }

    /// The command, ready to run.
    pub(crate) fn xtask(&self, args: &[&str]) -> Command {
        Command::from_std(self.plain(args))
    }

    /// The command, without the conveniences for tests.
    pub(crate) fn plain(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(args).env_clear().current_dir(self.path("checkout"));
        command.env("CARGO_MANIFEST_DIR", self.path("checkout/xtask"));
        command.env("CARGO", self.path("bin/cargo")).env("PATH", self.path("bin"));
        // As .cargo/config.toml has it.
        command.env("LIBTORCH", self.path("checkout/.libtorch"));
        command.env("HOME", self.path("home"));
        // A compiler for CUDA that is there already: there is no network to fetch it from.
        command.env("MOE_NVRTC", self.path("bin/libnvrtc.so.13"));
        command
    }

    /// Where the checkout finds libtorch.
    pub(crate) fn link(&self) -> PathBuf {
        fs::read_link(self.path("checkout/.libtorch")).unwrap()
    }

    /// The names in a directory, sorted.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Fails unless the command failed, saying all of this.
pub(crate) fn fails_saying(assert: Assert, parts: &[&str]) {
    let output = assert.code(2).get_output().clone();
    let said = String::from_utf8(output.stderr).unwrap();
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

/// Resolves all links of a path.
pub(crate) fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap()
}
