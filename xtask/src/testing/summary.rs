//! What `cargo xtask test` prints at its end.

use std::fmt::Write;
use std::time::Duration;

use super::counts::Counts;
use crate::say::say;

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Passed,
    /// Something is not.
    Failed,
    /// It needs libtorch, and the set-up failed.
    Skipped,
}

/// A step that is behind us.
#[derive(Debug)]
pub(crate) struct Done {
    /// The name of the step.
    pub(crate) name: String,
    /// How it went.
    pub(crate) outcome: Outcome,
    /// How long it took.
    pub(crate) time: Duration,
    /// Whether failed tests tell of its failure already.
    pub(crate) counted: bool,
}

impl Done {
    /// A step that could not run.
    pub(crate) fn skipped(name: String) -> Self {
        Self { name, outcome: Outcome::Skipped, time: Duration::ZERO, counted: false }
    }

    fn word(&self) -> &'static str {
        match self.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "not run",
        }
    }
}

/// Prints tables of steps and of tests, and last the line that scripts read.
pub(crate) fn print(done: &[Done], counts: &Counts) {
    say(text(done, counts));
}

fn text(done: &[Done], counts: &Counts) -> String {
    [&steps(done)[..], &crates(counts), &last_line(done, counts)].join("\n")
}

fn steps(done: &[Done]) -> String {
    let mut table = format!("\n{:12} {:>8} {:>9}\n", "step", "result", "time");
    for step in done {
        let seconds = step.time.as_secs_f64();
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{:12} {:>8} {seconds:>7.1} s", step.name, step.word());
    }
    table
}

fn crates(counts: &Counts) -> String {
    let mut table = format!("{:16} {:>7} {:>7} {:>7}\n", "crate", "passed", "failed", "ignored");
    for (name, count) in counts.by_crate() {
        let (passed, failed, ignored) = (count.passed, count.failed, count.ignored);
        let _ = writeln!(table, "{name:16} {passed:>7} {failed:>7} {ignored:>7}");
    }
    table
}

/// Counts tests. A step that fails without a failed test (a lint, a test that does not compile or
/// crashes) counts as one failure, so that the line never says less than the exit status.
fn last_line(done: &[Done], counts: &Counts) -> String {
    let untold = |step: &&Done| step.outcome != Outcome::Passed && !step.counted;
    let failed = counts.total().failed + done.iter().filter(untold).count();
    format!("{} passed, {failed} failed", counts.total().passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(name: &str, outcome: Outcome, counted: bool) -> Done {
        Done { name: name.to_owned(), outcome, time: Duration::from_millis(1250), counted }
    }

    #[test]
    fn the_last_line_stands_alone() {
        let mut counts = Counts::default();
        counts.line("test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured");
        let steps = [
            done("fmt", Outcome::Passed, false),
            done("clippy", Outcome::Failed, false),
            done("plain", Outcome::Failed, true),
            Done::skipped("torch".to_owned()),
        ];
        let text = text(&steps, &counts);
        assert_eq!(text.lines().last(), Some("7 passed, 4 failed"));
        assert!(text.contains("clippy         FAILED     1.2 s\n"), "{text}");
        assert!(text.contains("torch         not run     0.0 s\n"), "{text}");
    }

    #[test]
    fn nothing_run_is_nothing_failed() {
        assert_eq!(last_line(&[], &Counts::default()), "0 passed, 0 failed");
    }
}
