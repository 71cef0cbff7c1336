//! `cargo xtask deny`: licences, sources and duplicates of all dependencies, with `cargo-deny` where it is
//! installed.
//!
//! None of the three needs the network. Advisories do: their database is fetched from GitHub, and where that
//! cannot be reached this says so instead of failing.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::say::say;
use crate::workspace::Workspace;

/// What is checked from the lock file and the sources alone.
const OFFLINE: [&str; 5] = ["--offline", "check", "licenses", "sources", "bans"];

/// Runs all checks of `deny.toml`; true if nothing is found, or if there is no `cargo-deny`.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    let fine = offline(workspace)?;
    if !installed(workspace) {
        return Ok(fine);
    }
    let mut advisories = workspace.cargo(["deny", "check", "advisories"]);
    let output = advisories.output().context("starting cargo deny")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(fine && advisories_pass(output.status.success(), &said))
}

fn installed(workspace: &Workspace) -> bool {
    let mut version = workspace.cargo(["deny", "--version"]);
    let status = version.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs the checks that need no network; true as for [`run`].
pub(crate) fn offline(workspace: &Workspace) -> Result<bool> {
    if !installed(workspace) {
        say(
            "deny: cargo-deny is not installed, so licences, sources and duplicates were not checked; \
             mend: cargo install cargo-deny --locked",
        );
        return Ok(true);
    }
    let mut offline = workspace.cargo(["deny"]);
    Ok(offline.args(OFFLINE).status().context("starting cargo deny")?.success())
}

/// Tells how the check of advisories ended; no database is no finding.
fn advisories_pass(passed: bool, said: &str) -> bool {
    match (passed, said.contains("failed to fetch advisory database")) {
        (true, _) => say("advisories ok"),
        (false, true) => say("advisories NOT CHECKED: the database cannot be reached from here"),
        (false, false) => say(said.trim_end()),
    }
    passed || said.contains("failed to fetch advisory database")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advisory_fails_and_a_missing_database_does_not() {
        assert!(advisories_pass(true, "advisories ok"));
        assert!(!advisories_pass(false, "error[vulnerability]: a crate"));
        assert!(advisories_pass(false, "[ERROR] failed to fetch advisory database https://…"));
    }

    #[test]
    fn the_checks_that_always_run_need_no_network() {
        assert_eq!(OFFLINE[0], "--offline");
        assert!(!OFFLINE.contains(&"advisories"));
    }
}
