//! `cargo xtask bench --check`: losses and routing of every router, and the instruction counts of the
//! kernels, against the baselines in `benches/baselines/`; `--bless` records them anew; `--ab COMMIT`
//! compares speed with another commit, in turns.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::bench::{Times, build, run_program};
use crate::env::Env;
use crate::libtorch::setup::set_up;
use crate::problem::problem;
use crate::say::say;
use crate::workspace::Workspace;
use crate::{FAILURE, compiler};

/// Share by which a count may differ: addresses and the C library move counts a little.
const COUNT_BAND: f64 = 0.01;

/// Instruction counts by hot path, and the compiler they belong to.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    rustc: String,
    instructions: BTreeMap<String, u64>,
}

/// A line of `cargo xtask instructions`.
#[derive(Debug, Deserialize)]
struct Count {
    name: String,
    instructions: u64,
}

/// Checks every gate, or records every baseline; all gates are looked at before one fails the command.
pub(crate) fn run(workspace: &Workspace, env: &Env, bless: bool) -> Result<u8> {
    let mut times = Times::start();
    set_up(workspace, env, false)?;
    build(workspace, &["--release"])?;
    times.lap("build");
    let program = workspace.metadata()?.target_directory.join("release/moe");
    let mut command = Command::new(program);
    command.arg("gate").arg("--baselines").arg(baselines(workspace).join("routers.json"));
    command.args(bless.then_some("--bless"));
    // One thread from the start: libraries read these before the program can set them.
    command.env("RAYON_NUM_THREADS", "1").env("OMP_NUM_THREADS", "1");
    let routers = run_program(workspace, env, command)?;
    times.lap("routers");
    let kernels = count_gate(workspace, bless)?;
    times.lap("instruction counts");
    times.print();
    Ok(if routers == 0 { kernels } else { routers })
}

fn baselines(workspace: &Workspace) -> PathBuf {
    workspace.root().join("benches/baselines")
}

/// Counts, and compares with what was recorded.
fn count_gate(workspace: &Workspace, bless: bool) -> Result<u8> {
    let path = baselines(workspace).join("instructions.json");
    let found = counts()?;
    if bless {
        let text = serde_json::to_string_pretty(&found)? + "\n";
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        say(format_args!("{} counts recorded in {}", found.instructions.len(), path.display()));
        return Ok(0);
    }
    let Ok(text) = fs::read_to_string(&path) else {
        return problem(
            format!("no {}", path.display()),
            "cargo xtask bench --check --bless   (on a state known to be good)",
        );
    };
    let recorded: Counts =
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    if recorded.rustc != found.rustc {
        say(format_args!(
            "counts not compared: recorded with {}, this is {}",
            recorded.rustc, found.rustc
        ));
        return Ok(0);
    }
    let faults = faults(&recorded.instructions, &found.instructions);
    faults.iter().for_each(say);
    if faults.is_empty() {
        say(format_args!("{} counts as recorded, within {COUNT_BAND}", found.instructions.len()));
    }
    Ok(if faults.is_empty() { 0 } else { FAILURE })
}

/// What this program's own command counts: a process of its own, as its output is what it is for.
fn counts() -> Result<Counts> {
    let output = Command::new(std::env::current_exe()?)
        .arg("instructions")
        .output()
        .context("starting the count")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    Ok(Counts { rustc: compiler::rust_version()?, instructions: parse(&text)? })
}

fn parse(text: &str) -> Result<BTreeMap<String, u64>> {
    let line = |line: &str| -> Result<(String, u64)> {
        let count: Count = serde_json::from_str(line).with_context(|| format!("in `{line}`"))?;
        Ok((count.name, count.instructions))
    };
    text.lines().map(line).collect()
}

fn faults(recorded: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Vec<String> {
    let compared = recorded.iter().filter_map(|(name, &want)| match found.get(name) {
        None => Some(format!("counts   {name}: gone")),
        Some(&got) => {
            let off = got as f64 / want as f64 - 1.0;
            let far = off.abs() > COUNT_BAND;
            far.then(|| format!("counts   {name}: {got}, expected {want} ({:+.1} %)", 100.0 * off))
        }
    });
    let new = found.keys().filter(|name| !recorded.contains_key(*name));
    compared.chain(new.map(|name| format!("counts   {name}: not recorded"))).collect()
}

/// Builds `commit` beside this state and times both in turns.
pub(crate) fn compare_speed(workspace: &Workspace, env: &Env, commit: &str) -> Result<u8> {
    set_up(workspace, env, false)?;
    build(workspace, &["--release"])?;
    let target = workspace.metadata()?.target_directory;
    let before = build_commit(workspace, commit, &target.join("ab"))?;
    let after = target.join("release/moe");
    let mut command = Command::new(&after);
    command.arg("ab").arg(before).arg(&after);
    run_program(workspace, env, command)
}

/// The program at `commit`, built in a checkout and a target directory of its own, which stay for the
/// next time.
fn build_commit(workspace: &Workspace, commit: &str, place: &Path) -> Result<PathBuf> {
    let hash = git(workspace, &["rev-parse", "--verify", &format!("{commit}^{{commit}}")])?;
    let checkout = place.join("checkout");
    if checkout.exists() {
        git(workspace, &["-C", &checkout.to_string_lossy(), "checkout", "--detach", &hash])?;
    } else {
        git(workspace, &["worktree", "add", "--detach", &checkout.to_string_lossy(), &hash])?;
        std::os::unix::fs::symlink(
            fs::canonicalize(workspace.libtorch())?,
            checkout.join(".libtorch"),
        )
        .context("linking libtorch into the other checkout")?;
    }
    let mut cargo = workspace.cargo(["build", "--release", "-p", "moe-bench"]);
    cargo.current_dir(&checkout).env("LIBTORCH", checkout.join(".libtorch"));
    cargo.env("CARGO_TARGET_DIR", checkout.join("target"));
    if !cargo.status()?.success() {
        bail!("{commit} does not build; the compiler's words are above");
    }
    Ok(checkout.join("target/release/moe"))
}

fn git(workspace: &Workspace, args: &[&str]) -> Result<String> {
    let output = Command::new("git").current_dir(workspace.root()).args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    }

    #[test]
    fn counts_are_read_line_by_line() {
        let text =
            "{\"name\":\"avx2/a\",\"instructions\":7}\n{\"name\":\"b\",\"instructions\":8}\n";
        assert_eq!(parse(text).unwrap(), counted(&[("avx2/a", 7), ("b", 8)]));
        assert!(parse("half a li").unwrap_err().to_string().contains("half a li"));
    }

    #[test]
    fn counts_outside_the_band_are_faults() {
        let recorded = counted(&[("a", 1000), ("b", 1000), ("c", 1000)]);
        assert!(faults(&recorded, &counted(&[("a", 1009), ("b", 991), ("c", 1000)])).is_empty());
        let found = faults(&recorded, &counted(&[("a", 1011), ("b", 980), ("d", 5)]));
        let want = [
            "counts   a: 1011, expected 1000 (+1.1 %)",
            "counts   b: 980, expected 1000 (-2.0 %)",
            "counts   c: gone",
            "counts   d: not recorded",
        ];
        assert_eq!(found, want);
    }
}
