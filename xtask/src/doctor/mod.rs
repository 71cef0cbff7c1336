//! `cargo xtask doctor`: what was found of what is needed, and what mends the rest.

mod libtorch;
mod machine;
mod report;
mod tools;

use crate::env::Env;
use crate::say::say;
use crate::workspace::Workspace;
use report::Report;

/// Prints what was found; true if nothing that is needed is missing.
pub(crate) fn run(workspace: &Workspace, env: &Env) -> bool {
    let mut report = Report::default();
    tools::look(&mut report, workspace, env);
    let run = libtorch::look(&mut report, workspace, env);
    libtorch::look_at_nvrtc(&mut report, workspace, env);
    machine::look(&mut report, run.as_deref());
    libtorch::look_at_cache(&mut report, env);
    say(report.text().trim_end());
    report.problems() == 0
}
