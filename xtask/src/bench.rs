//! `cargo xtask bench` builds the product with optimisation and runs its quick comparison;
//! `cargo xtask conform` builds it plainly and runs conformance cases.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::env::Env;
use crate::libtorch::setup::set_up;
use crate::problem::problem;
use crate::say::tell;
use crate::signals::{exit_code, run_to_end};
use crate::workspace::Workspace;

/// Sets up, builds, compares; the exit status is that of the comparison.
pub(crate) fn run(workspace: &Workspace, env: &Env, args: &[String]) -> Result<u8> {
    let mut times = Times::start();
    set_up(workspace, env, false)?;
    times.lap("set-up");
    build(workspace, &["--release"])?;
    times.lap("build");
    let program = workspace.metadata()?.target_directory.join("release/moe");
    let code = run_program(workspace, env, comparison(&program, args))?;
    times.lap("run");
    times.print();
    Ok(code)
}

/// Sets up, builds, runs the cases below the directory that `args` name, else the project's own.
pub(crate) fn conform(workspace: &Workspace, env: &Env, args: &[String]) -> Result<u8> {
    set_up(workspace, env, false)?;
    build(workspace, &[])?;
    let mut command = Command::new(workspace.metadata()?.target_directory.join("debug/moe"));
    command.arg("conform").args(args);
    if !names_a_directory(args) {
        command.arg(workspace.root().join("conformance"));
    }
    run_program(workspace, env, command)
}

/// Whether a word of `args` is neither an option nor the value of `--backend`.
fn names_a_directory(args: &[String]) -> bool {
    let before = std::iter::once("").chain(args.iter().map(String::as_str));
    args.iter().zip(before).any(|(arg, before)| !arg.starts_with('-') && before != "--backend")
}

pub(crate) fn run_program(workspace: &Workspace, env: &Env, mut command: Command) -> Result<u8> {
    if env.hides_rpaths() {
        workspace.add_loader_path(&mut command, env);
    }
    let program = command.get_program().to_owned();
    let status = run_to_end(&mut command)
        .with_context(|| format!("starting {}", Path::new(&program).display()))?;
    Ok(exit_code(status))
}

/// Builds the product.
pub(crate) fn build(workspace: &Workspace, profile: &[&str]) -> Result<()> {
    let arguments = ["build", "-p", "moe-bench"].iter().chain(profile);
    let status = workspace.cargo(arguments.copied()).status()?;
    if status.success() {
        return Ok(());
    }
    problem("moe-bench does not build; the compiler's words are above", "cargo xtask doctor")
}

fn comparison(program: &Path, args: &[String]) -> Command {
    let mut command = Command::new(program);
    command.arg("compare").args(preset(args)).args(args);
    command
}

/// The preset, unless the arguments name one.
fn preset(args: &[String]) -> &'static [&'static str] {
    let named = args.iter().any(|arg| arg == "--preset" || arg.starts_with("--preset="));
    if named { &[] } else { &["--preset", "quick"] }
}

/// Wall times of the parts.
pub(crate) struct Times {
    since: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Times {
    pub(crate) fn start() -> Self {
        Self { since: Instant::now(), parts: Vec::new() }
    }

    pub(crate) fn lap(&mut self, part: &'static str) {
        self.parts.push((part, self.since.elapsed()));
        self.since = Instant::now();
    }

    /// On standard error: standard output is the comparison's.
    pub(crate) fn print(&self) {
        let part = |(name, time): &(&str, Duration)| format!("{name} {:.1} s", time.as_secs_f64());
        tell(format_args!(
            "wall time: {}",
            self.parts.iter().map(part).collect::<Vec<_>>().join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset_with(args: &[&str]) -> usize {
        preset(&args.iter().map(ToString::to_string).collect::<Vec<_>>()).len()
    }

    #[test]
    fn a_directory_of_the_user_wins() {
        let names = |args: &[&str]| {
            names_a_directory(&args.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert!(names(&["my/cases"]) && names(&["--json", "my/cases"]));
        assert!(!names(&["--backend", "torch", "--json"]) && !names(&["--backend=all"]));
    }

    #[test]
    fn a_preset_of_the_user_wins() {
        assert_eq!(preset_with(&["--device", "cpu"]), 2);
        assert_eq!(preset_with(&["--preset", "full"]), 0);
        assert_eq!(preset_with(&["--preset=full"]), 0);
    }
}
