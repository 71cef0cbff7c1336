//! A run as a process of its own: what parent and child say to each other.
//!
//! The child prints one JSON event a line. The parent stops it by closing the child's standard
//! input; that happens by itself when the parent dies, however it dies.

use crate::run::{Event, Outcome};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a child tells its parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Told {
    /// Data and model are ready.
    Ready {
        /// Steps done by earlier sessions.
        done: u64,
    },
    /// A step was taken.
    Step {
        /// Steps taken.
        step: u64,
        /// Its loss.
        loss: f64,
    },
    /// All steps are taken and `result.json` is written.
    Finished,
    /// Stopped early, with a checkpoint.
    Stopped {
        /// Steps taken.
        step: u64,
    },
}

/// Prints what happens during a run.
pub fn tell(event: &Event<'_>) {
    match event {
        Event::Ready { done, .. } => say(&Told::Ready { done: *done }),
        Event::Step(report) => say(&Told::Step { step: report.step, loss: report.loss }),
        Event::Eval(_) => {}
    }
}

/// Prints how a run ended.
pub fn tell_end(outcome: &Outcome) {
    match outcome {
        Outcome::Finished(_) => say(&Told::Finished),
        Outcome::Stopped(step) => say(&Told::Stopped { step: *step }),
    }
}

fn say(told: &Told) {
    let line = serde_json::to_string(told).expect("an event is plain data") + "\n";
    // A parent that is gone is told through standard input; nothing else can be done about it here.
    let _ = std::io::stdout().write_all(line.as_bytes());
}

/// Sets `stop` when standard input ends.
pub fn stop_at_end_of_input(stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
    });
}

/// A flag that SIGINT and SIGTERM set; a second signal ends the process at once.
///
/// # Errors
/// If the handler cannot be installed.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    Ok(stop)
}
