//! `cargo xtask instructions` counts the instructions of the kernels' hot paths with valgrind: unlike
//! times, counts hardly differ from run to run, whatever else the machine does.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::problem::problem;
use crate::say::say;
use crate::workspace::Workspace;

/// The program that runs a hot path, and the function within which counting happens.
const PROGRAM: &str = "hot_paths";
const MEASURED: &str = "hot_paths::measured";

/// Valgrind knows nothing above AVX2.
pub(crate) const SETS: [&str; 2] = ["portable", "avx2"];

/// A hot path and its count, a line of JSON.
#[derive(Debug, Serialize)]
struct Count {
    name: String,
    instructions: u64,
}

/// Builds the program, counts every path whose name has one of the `wanted` parts, prints each count.
pub(crate) fn run(workspace: &Workspace, sets: &[String], wanted: &[String]) -> Result<u8> {
    let program = build(workspace)?;
    let names = output(&mut Command::new(&program))?;
    let scratch = tempfile::tempdir()?;
    let mut found = false;
    for set in sets {
        for path in names.lines() {
            let name = format!("{set}/{path}");
            if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
                continue;
            }
            found = true;
            let instructions = count(&program, path, set, scratch.path())?;
            say(serde_json::to_string(&Count { name, instructions })?);
        }
    }
    if !found {
        return problem(format!("no hot path is called {}", wanted.join(" or ")), known(&names));
    }
    Ok(0)
}

/// What may be asked for.
fn known(names: &str) -> String {
    format!("cargo xtask instructions {}", names.lines().collect::<Vec<_>>().join(" "))
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let arguments = ["build", "--release", "-p", "moe-kernels", "--example", PROGRAM];
    if !workspace.cargo(arguments).status()?.success() {
        return problem(
            "moe-kernels does not build; the compiler's words are above",
            "cargo xtask doctor",
        );
    }
    let target = workspace.metadata()?.target_directory;
    Ok(target.join("release/examples").join(PROGRAM))
}

/// Instructions of a path on an instruction set.
fn count(program: &Path, path: &str, set: &str, scratch: &Path) -> Result<u64> {
    let file = scratch.join("counts");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--tool=callgrind", &format!("--toggle-collect={MEASURED}")])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .args([path, set])
        // Variables lie on the stack, and its alignment moves counts by some hundredths of a percent.
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    output(&mut valgrind)?;
    let report = std::fs::read_to_string(&file).context("reading what callgrind counted")?;
    match total(&report) {
        Some(total) if total > 0 => Ok(total),
        _ => bail!("callgrind counted nothing for {path} on {set}: has {MEASURED} been inlined?"),
    }
}

/// The total of a callgrind report: `totals: 123`.
fn total(report: &str) -> Option<u64> {
    report.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

/// What a command prints; its complaint if it fails.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return problem(format!("there is no {program}"), format!("apt-get install {program}"));
        }
        Err(error) => return Err(error).with_context(|| format!("starting {program}")),
    };
    if !status.success() {
        bail!("{program} failed:\n{}", String::from_utf8_lossy(&stderr).trim_end());
    }
    Ok(String::from_utf8(stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_from_a_report() {
        let report = "version: 1\nevents: Ir\nfn=(1) a\n3 17\nsummary: 40\n\ntotals: 42\n";
        assert_eq!(total(report), Some(42));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("no-such-program")).unwrap_err().to_string();
        assert!(error.contains("there is no no-such-program"), "{error}");
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh failed:\nwhy");
    }
}
