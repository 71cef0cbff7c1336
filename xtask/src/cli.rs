//! The commands and their options.

use clap::{CommandFactory, Parser, Subcommand};

use crate::testing::Step;

/// Set-up, tests and conventions of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
#[command(after_help = "Exit status: 0 fine, 1 misuse, 2 failure.")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Action,
}

/// What there is to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Provide libtorch: from LIBTORCH, from a Python with LIBTORCH_USE_PYTORCH=1, or by download
    Setup {
        /// Make it afresh, be there one or not: mends a damaged one
        #[arg(long)]
        force: bool,
    },
    /// Say what was found of what is needed, and what mends the rest
    Doctor,
    /// Check format, conventions, lints, tests and documentation
    Test {
        /// Run this step alone; may be given several times
        #[arg(long, value_enum, value_name = "STEP")]
        only: Vec<Step>,
    },
    /// Build with optimisation and run `moe compare --preset quick ARGS`
    Bench {
        /// Arguments of `moe compare`; a --preset among them wins
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Run conformance cases with `moe conform ARGS`: the project's own unless a directory is named
    Conform {
        /// Arguments of `moe conform`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<String>,
    },
    /// Count the instructions of the kernels' hot paths with valgrind, one line of JSON each
    Instructions {
        /// Instruction sets; may be given several times
        #[arg(long, value_name = "SET", value_parser = crate::instructions::SETS,
              default_values = crate::instructions::SETS)]
        isa: Vec<String>,
        /// Parts of names; all paths without
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// Check licences, sources and duplicates of dependencies, where cargo-deny is installed
    Deny,
    /// Check the conventions of the workspace
    Tidy,
}

/// The names of all commands.
pub(crate) fn command_names() -> Vec<String> {
    let definition = Cli::command();
    let names = definition.get_subcommands().map(|command| command.get_name().to_owned());
    names.chain(["help".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        assert_eq!(
            command_names(),
            ["setup", "doctor", "test", "bench", "conform", "instructions", "deny", "tidy", "help"]
        );
    }

    #[test]
    fn what_follows_bench_is_passed_on() {
        let line = ["xtask", "bench", "--preset", "full", "--seeds", "3"];
        match Cli::try_parse_from(line).unwrap().command {
            Action::Bench { args } => assert_eq!(args, line[2..]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn steps_are_chosen_by_name() {
        match Cli::try_parse_from(["xtask", "test", "--only", "fmt", "--only", "tidy"])
            .unwrap()
            .command
        {
            Action::Test { only } => assert_eq!(only, [Step::Fmt, Step::Tidy]),
            other => panic!("{other:?}"),
        }
    }
}
