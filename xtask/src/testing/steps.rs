//! The steps of `cargo xtask test` and their commands.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::counts::Counts;
use crate::env::Env;
use crate::workspace::Workspace;
use crate::{pipe, tidy};

/// The packages that need no libtorch: their tests come first and tell soonest.
const PLAIN: [&str; 3] = ["moe-core", "moe-data", "xtask"];

/// A part of `cargo xtask test`, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Format of the code
    Fmt,
    /// Conventions of the workspace
    Tidy,
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
        !matches!(self, Self::Fmt | Self::Tidy | Self::Plain)
    }

    /// Runs the step; true if all is well.
    pub(crate) fn run(self, workspace: &Workspace, env: &Env, counts: &mut Counts) -> Result<bool> {
        if self == Self::Tidy {
            return tidy::run(workspace.root());
        }
        let mut command = workspace.cargo(self.args());
        self.adapt(&mut command, workspace, env);
        match self {
            Self::Plain | Self::Torch | Self::Doctest => {
                if io::stdout().is_terminal() {
                    command.env("CARGO_TERM_COLOR", "always");
                }
                counted(command, counts, &mut io::stdout())
            }
            _ => Ok(command.status().context("starting cargo")?.success()),
        }
    }

    /// The arguments of cargo.
    fn args(self) -> Vec<&'static str> {
        let workspace = ["--workspace"];
        match self {
            Self::Fmt => vec!["fmt", "--all", "--check"],
            Self::Tidy => vec![],
            Self::Plain => [&TEST[..], &["--tests"], &each("-p")].concat(),
            Self::Clippy => {
                [&["clippy"], &workspace[..], &["--all-targets", "--", "-D", "warnings"]].concat()
            }
            Self::Torch => [&TEST[..], &["--tests"], &workspace, &each("--exclude")].concat(),
            Self::Doctest => [&TEST[..], &["--doc"], &workspace].concat(),
            Self::Docs => [&["doc"], &workspace[..], &["--no-deps"]].concat(),
        }
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

const TEST: [&str; 2] = ["test", "--no-fail-fast"];

fn each(option: &'static str) -> Vec<&'static str> {
    PLAIN.iter().flat_map(|package| [option, *package]).collect()
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
    use super::*;

    #[test]
    fn plain_and_torch_share_out_all_packages() {
        assert_eq!(
            Step::Plain.args().join(" "),
            "test --no-fail-fast --tests -p moe-core -p moe-data -p xtask"
        );
        assert_eq!(
            Step::Torch.args().join(" "),
            "test --no-fail-fast --tests --workspace --exclude moe-core --exclude moe-data \
             --exclude xtask"
        );
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
        assert_eq!(names, ["fmt", "tidy", "plain", "clippy", "torch", "doctest", "docs"]);
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
