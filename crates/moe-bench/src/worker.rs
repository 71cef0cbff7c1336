//! A run as a process of its own: what parent and child say to each other.
//!
//! The child prints one JSON event a line. The parent stops it by closing the child's standard
//! input; that happens by itself when the parent dies, however it dies.

use crate::error::Stopped;
use crate::run::{Event, Outcome};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

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
        Event::Eval(_) | Event::Note(_) => {}
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

/// A flag that SIGINT, SIGTERM and SIGHUP set; a second signal ends the process at once, with the code
/// that a shell gives to that signal, after `last` has put the terminal in order.
///
/// # Errors
/// If a handler cannot be installed.
pub fn stop_flag(last: impl Fn() + Send + 'static) -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let first = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Counted apart from `stop`, which a parent may have set before the terminal's signal arrives.
        for (earlier, signal) in signals.forever().enumerate() {
            first.store(true, Ordering::Relaxed);
            if earlier > 0 {
                last();
                // Without destructors, which other threads may be in the way of.
                signal_hook::low_level::exit(128 + signal);
            }
        }
    });
    Ok(stop)
}

/// Does `work` on a thread of its own, and leaves it to itself when `stop` is set: for work that changes
/// nothing outside and looks at no flag, such as reading data and training a tokeniser.
///
/// # Errors
/// [`Stopped`], or that of `work`.
pub fn unless_stopped<T: Send + 'static, E: Send + 'static>(
    stop: &AtomicBool,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> anyhow::Result<T>
where
    anyhow::Error: From<E>,
{
    let (done, end) = mpsc::channel();
    // Nobody listens any more after a stop.
    let worker = std::thread::spawn(move || drop(done.send(work())));
    loop {
        match end.recv_timeout(Duration::from_millis(20)) {
            Ok(result) => return Ok(result?),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                return Err(Stopped("reading the data").into());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let panic = worker.join().expect_err("the channel closed without a result");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn work_that_ends_is_returned_and_work_that_does_not_is_left() {
        let stop = AtomicBool::new(false);
        assert_eq!(unless_stopped(&stop, || Ok::<_, Infallible>(7)).unwrap(), 7);
        stop.store(true, Ordering::Relaxed);
        let (_keep, never) = mpsc::channel::<i32>();
        let error = unless_stopped(&stop, move || never.recv()).unwrap_err();
        assert!(crate::error::is_stop(&error), "{error}");
    }
}
