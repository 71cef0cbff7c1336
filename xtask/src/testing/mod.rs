//! `cargo xtask test`: every check of the workspace, one after the other, none left out because
//! another failed.

mod counts;
mod steps;
mod summary;

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

pub(crate) use steps::Step;

use crate::env::Env;
use crate::libtorch::nvrtc;
use crate::libtorch::setup::set_up;
use crate::say::{say, tell};
use crate::workspace::Workspace;
use counts::Counts;
use summary::{Done, Outcome};

/// Runs the steps (all of them if none is named) and prints the summary; true if all is well.
pub(crate) fn run(workspace: &Workspace, env: &Env, only: &[Step]) -> Result<bool> {
    let chosen = |step: &Step| only.is_empty() || only.contains(step);
    let steps: Vec<_> = Step::value_variants().iter().copied().filter(chosen).collect();
    let counts = Counts::new(&workspace.metadata()?);
    let mut run = Run { workspace, env, counts, done: Vec::new(), has_libtorch: false };
    if steps.iter().any(|step| step.needs_libtorch()) {
        run.set_up();
    }
    steps.into_iter().for_each(|step| run.step(step));
    summary::print(&run.done, &run.counts);
    Ok(run.done.iter().all(|done| done.outcome == Outcome::Passed))
}

/// A run of the steps so far.
struct Run<'a> {
    workspace: &'a Workspace,
    env: &'a Env,
    counts: Counts,
    done: Vec<Done>,
    has_libtorch: bool,
}

impl Run<'_> {
    fn set_up(&mut self) {
        self.timed("setup".to_owned(), |run| {
            let view = set_up(run.workspace, run.env, false)?;
            run.has_libtorch = true;
            say(format_args!("libtorch: {}", view.display()));
            say(format_args!("NVRTC: {}", nvrtc::set_up(run.workspace, run.env, false)?.display()));
            Ok(true)
        });
    }

    fn step(&mut self, step: Step) {
        if step.needs_libtorch() && !self.has_libtorch {
            self.done.push(Done::skipped(step.name()));
            return;
        }
        self.timed(step.name(), |run| step.run(run.workspace, run.env, &mut run.counts));
    }

    /// Runs a part, tells its error, and notes how it went.
    fn timed(&mut self, name: String, part: impl FnOnce(&mut Self) -> Result<bool>) {
        say(format_args!("== {name}"));
        let (start, failed_before) = (Instant::now(), self.counts.total().failed);
        let passed = part(self).unwrap_or_else(|error| {
            tell(format_args!("error: {error:#}"));
            false
        });
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        let tells = self.counts.total().failed > failed_before;
        self.done.push(Done { name, outcome, time: start.elapsed(), counted: tells });
    }
}
