//! What the tests of the `moe` binary share: a place with a text and a recipe that trains in a moment.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

const TINY: &str = r#"
router = "smoe"
[data]
source = "DATA"
[model]
width = 8
layers = 2
heads = 2
context = 8
experts = 4
active_hidden = 16
[train]
steps = 6
batch = 2
sequence = 8
warmup = 2
eval_every = 3
eval_batches = 2
"#;

/// A directory with `text.txt` and `tiny.toml`, a recipe for it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(place.path("text.txt"), text()).unwrap();
        let recipe = TINY.replace("DATA", &place.show("text.txt"));
        fs::write(place.path("tiny.toml"), recipe).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn show(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

pub(crate) fn text() -> String {
    (0..200).map(|i| format!("line {i} of a text\n")).collect()
}

pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_moe")
}

pub(crate) fn moe<S: AsRef<OsStr>>(args: &[S]) -> Output {
    Command::new(program()).args(args).output().unwrap()
}
