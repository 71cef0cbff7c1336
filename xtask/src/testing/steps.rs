//! The steps of `cargo xtask test` and their commands.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::counts::Counts;
use crate::env::Env;
use crate::workspace::Workspace;
use crate::{deny, pipe, tidy};

/// A part of `cargo xtask test`, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Format of the code
    Fmt,
    /// Conventions of the workspace
    Tidy,
    /// Licences, sources and duplicates of dependencies, where cargo-deny is installed
    Deny,
    /// Tests that need no libtorch
    Plain,
    /// Lints of all targets
    Clippy,
    /// All other tests
    Torch,
    /// Examples in the documentation
    Doctest,
    /// Documentation, warnings as errors
    Docs,
}

impl Step {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it builds what depends on libtorch.
    pub(crate) fn needs_libtorch(self) -> bool {
        !matches!(self, Self::Fmt | Self::Tidy | Self::Deny | Self::Plain)
    }

    /// Runs the step; true if all is well.
    pub(crate) fn run(self, workspace: &Workspace, env: &Env, counts: &mut Counts) -> Result<bool> {
        if self == Self::Tidy {
            return tidy::run(workspace.root());
        }
        if self == Self::Deny {
            return deny::offline(workspace);
        }
        let mut passed = true;
        for line in self.lines() {
            let mut command = workspace.cargo(line.split(' '));
            self.adapt(&mut command, workspace, env);
            passed &= self.start(command, counts)?;
        }
        Ok(passed)
    }

    /// The arguments of each cargo.
    ///
    /// `xtask` is kept apart: beside it, cargo would build dependencies of torch-sys with other
    /// features, and with them torch-sys a second time, which takes minutes.
    fn lines(self) -> &'static [&'static str] {
        match self {
            Self::Fmt => &["fmt --all --check"],
            Self::Tidy | Self::Deny => &[],
            Self::Plain => &[
                "test --no-fail-fast --tests -p moe-core -p moe-data",
                "test --no-fail-fast --tests -p xtask",
            ],
            Self::Clippy => &[
                "clippy --workspace --exclude xtask --all-targets -- -D warnings",
                "clippy -p xtask --all-targets -- -D warnings",
            ],
            Self::Torch => &["test --no-fail-fast --tests --workspace --exclude xtask \
                 --exclude moe-core --exclude moe-data"],
            Self::Doctest => &["test --no-fail-fast --doc --workspace --exclude xtask"],
            Self::Docs => &["doc --no-deps --workspace --exclude xtask", "doc --no-deps -p xtask"],
        }
    }

    fn start(self, mut command: Command, counts: &mut Counts) -> Result<bool> {
        if !matches!(self, Self::Plain | Self::Torch | Self::Doctest) {
            return Ok(command.status().context("starting cargo")?.success());
        }
        if io::stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        counted(command, counts, &mut io::stdout())
    }

    fn adapt(self, command: &mut Command, workspace: &Workspace, env: &Env) {
        if self == Self::Docs {
            command.env("RUSTDOCFLAGS", "-D warnings");
        }
        // The programs of doctests lie in a temporary directory and are linked without our flags.
        if self == Self::Doctest || self == Self::Torch && env.hides_rpaths() {
            workspace.add_loader_path(command, env);
        }
    }
}

/// Runs a `cargo test`, passes on what it says, and counts.
fn counted(command: Command, counts: &mut Counts, terminal: &mut impl Write) -> Result<bool> {
    let (mut child, reader) = pipe::start(command).context("starting cargo")?;
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("reading what cargo says")?;
        counts.line(&String::from_utf8_lossy(&line));
        terminal.write_all(&line)?;
        terminal.write_all(b"\n")?;
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn plain_and_torch_share_out_all_packages() {
        let named = |step: Step, option: &str| -> BTreeSet<_> {
            let words: Vec<_> = step.lines().iter().flat_map(|line| line.split(' ')).collect();
            words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1]).collect()
        };
        let (excluded, tested) = (named(Step::Torch, "--exclude"), named(Step::Plain, "-p"));
        assert_eq!(excluded.len(), 3);
        assert_eq!(excluded, tested);
    }

    #[test]
    fn what_needs_no_libtorch_comes_first() {
        let needs: Vec<_> =
            Step::value_variants().iter().map(|step| step.needs_libtorch()).collect();
        assert!(needs.is_sorted());
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        let names: Vec<_> = Step::value_variants().iter().map(|step| step.name()).collect();
        assert_eq!(names, ["fmt", "tidy", "deny", "plain", "clippy", "torch", "doctest", "docs"]);
    }

    #[test]
    fn what_a_command_says_is_counted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'test result: ok. 2 passed; 1 failed; 0 ignored' >&2; exit 1"]);
        let (mut counts, mut said) = (Counts::default(), Vec::new());
        assert!(!counted(command, &mut counts, &mut said).unwrap());
        assert!(said.ends_with(b"0 ignored\n"));
        assert_eq!((counts.total().passed, counts.total().failed), (2, 1));
    }
}
