//! `cargo xtask <command>`: set-up, tests and conventions of the workspace.
//!
//! A program of its own, so that it builds when the product does not: it depends on no crate of
//! the workspace and needs no libtorch.

// The reader of a pipe may leave, and then these panic; `say` has what does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(unix))]
compile_error!("the workspace is built on Linux; on Windows, use its subsystem for Linux");

mod bench;
mod cli;
mod compiler;
mod deny;
mod doctor;
mod env;
mod gates;
mod hash;
mod instructions;
mod libtorch;
mod pipe;
mod problem;
mod progress;
mod say;
mod signals;
mod soak;
mod testing;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use cli::{Action, Cli};
use env::Env;
use say::{say, tell};
use soak::Soak;
use workspace::Workspace;

/// The exit status of a wrong command line.
const MISUSE: u8 = 1;

/// The exit status of everything else that goes wrong.
const FAILURE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell(format_args!("error: {error:#}"));
            ExitCode::from(FAILURE)
        }
    }
}

/// Prints help, or what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    // There is nobody to tell if the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(MISUSE) } else { ExitCode::SUCCESS }
}

fn run(action: Action) -> Result<u8> {
    let env = Env::of_process();
    let workspace = Workspace::find(&env)?;
    match action {
        Action::Setup { force } => setup(&workspace, &env, force),
        Action::Doctor => Ok(verdict(doctor::run(&workspace, &env))),
        Action::Test { only } => testing::run(&workspace, &env, &only).map(verdict),
        Action::Bench { check: true, bless, .. } => gates::run(&workspace, &env, bless),
        Action::Bench { ab: Some(commit), .. } => gates::compare_speed(&workspace, &env, &commit),
        Action::Bench { args, .. } => bench::run(&workspace, &env, &args),
        Action::Conform { args } => bench::conform(&workspace, &env, &args),
        Action::Soak { minutes, every, program } => {
            soak::run(&workspace, &env, &Soak { minutes, every, program })
        }
        Action::Instructions { isa, names } => instructions::run(&workspace, &isa, &names),
        Action::Deny => deny::run(&workspace).map(verdict),
        Action::Tidy => tidy::run(workspace.root()).map(verdict),
    }
}

fn setup(workspace: &Workspace, env: &Env, force: bool) -> Result<u8> {
    let view = libtorch::setup::set_up(workspace, env, force)?;
    say(format_args!("libtorch {} is in place: {}", libtorch::VERSION, view.display()));
    let compiler = libtorch::nvrtc::set_up(workspace, env, force)?;
    say(format_args!("NVRTC is in place: {}", compiler.display()));
    Ok(0)
}

fn verdict(fine: bool) -> u8 {
    if fine { 0 } else { FAILURE }
}
