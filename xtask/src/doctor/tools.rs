//! The programs that builds and set-up start.

use std::process::{Command, Stdio};

use crate::compiler;
use crate::doctor::report::Report;
use crate::env::Env;
use crate::libtorch::pip;
use crate::problem::Problem;
use crate::workspace::Workspace;

/// The oldest Rust that the workspace builds with, from its manifest.
const NEEDED_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Looks for Rust, the C++ compiler, Python and pip.
pub(crate) fn look(report: &mut Report, workspace: &Workspace, env: &Env) {
    report.either("rustc", rust(said(command("rustc", workspace).arg("--version"))));
    report.either("cargo", rust(said(workspace.cargo(["--version"]))));
    for component in ["fmt", "clippy"] {
        report.either(component, part(component, said(workspace.cargo([component, "--version"]))));
    }
    report.either(
        "C++",
        compiler::find(env).map(|found| format!("{}: {}", found.name, found.version)),
    );
    let python = said(command(env.python(), workspace).arg("--version"));
    report
        .found("Python", python.as_deref().unwrap_or("none; only `cargo xtask setup` may need it"));
    let pip = pip::find(env).and_then(|pip| pip::version(&pip));
    report.found("pip", pip.as_deref().unwrap_or("none; only `cargo xtask setup` may need it"));
    if env.hides_rpaths() {
        report.problem("RUSTFLAGS", &hidden_rpaths());
    }
}

fn hidden_rpaths() -> Problem {
    Problem::new(
        "RUSTFLAGS replaces the flags of .cargo/config.toml, so that programs do not find libtorch",
        "unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS",
    )
}

fn command(program: &str, workspace: &Workspace) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace.root());
    command
}

/// The first line that a command says, if it succeeds.
fn said(mut command: impl std::borrow::BorrowMut<Command>) -> Option<String> {
    let output = command.borrow_mut().stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

fn rust(said: Option<String>) -> Result<String, Problem> {
    let said =
        said.ok_or_else(|| Problem::new("does not start", "rustup toolchain install stable"))?;
    match said.split_whitespace().nth(1).and_then(numbers) {
        Some(found) if Some(found) >= numbers(NEEDED_RUST) => Ok(said),
        _ => Err(Problem::new(
            format!("{said}, and {NEEDED_RUST} is needed"),
            "rustup update stable",
        )),
    }
}

fn part(component: &str, said: Option<String>) -> Result<String, Problem> {
    let name = if component == "fmt" { "rustfmt" } else { component };
    said.ok_or_else(|| {
        Problem::new(
            format!("cargo {component} does not start"),
            format!("rustup component add {name}"),
        )
    })
}

/// Major and minor number of a version such as `1.95.0-nightly`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_rust_is_a_problem() {
        let old = rust(Some("rustc 1.9.0 (abc 2016-05-23)".to_owned())).unwrap_err();
        assert_eq!(old.mend, "rustup update stable");
        assert!(old.what.starts_with("rustc 1.9.0"), "{}", old.what);
        assert!(rust(Some("cargo 1.95.0-nightly (abc)".to_owned())).is_ok());
        assert!(rust(Some("cargo 2.0.0".to_owned())).is_ok());
        assert!(rust(None).is_err());
    }

    #[test]
    fn a_missing_component_is_named() {
        assert_eq!(part("fmt", None).unwrap_err().mend, "rustup component add rustfmt");
    }

    #[test]
    fn a_program_that_fails_says_nothing() {
        assert_eq!(said(Command::new("sh").args(["-c", "echo no; exit 1"])), None);
        assert_eq!(said(Command::new("sh").args(["-c", "echo yes"])).as_deref(), Some("yes"));
    }
}
