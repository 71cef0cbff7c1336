//! Tasks of unlike sizes on the threads of a rayon pool.

use std::sync::{Mutex, PoisonError};

/// Runs all tasks in their order, each on the next free worker. Every worker has a thread of the
/// pool to itself.
///
/// rayon's own iterators hand out halves, which loses the order: longest first keeps the threads
/// busy to the end. Which worker runs a task must not matter for the result.
pub(crate) fn run<T: Send, S: Send>(
    tasks: Vec<T>,
    workers: &mut [S],
    work: impl Fn(T, &mut S) + Sync,
) {
    let count = tasks.len();
    let queue = Mutex::new(tasks.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let drain = |worker: &mut S| {
        while let Some(task) = next() {
            work(task, worker);
        }
    };
    match workers {
        [] => {}
        [only] => drain(only),
        [first, rest @ ..] => rayon::scope(|scope| {
            let drain = &drain;
            for worker in rest.iter_mut().take(count.saturating_sub(1)) {
                scope.spawn(move |_| drain(worker));
            }
            drain(first);
        }),
    }
}

/// Cuts `values` into consecutive pieces of the given lengths.
///
/// # Panics
///
/// If there are fewer values than that.
pub(crate) fn pieces<T>(values: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut rest = values;
    let piece = |length| {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        piece
    };
    lengths.map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for workers in [1, 2, 5] {
            let mut done = vec![0_usize; workers];
            run((1..=100).collect(), &mut done, |task: usize, done| *done += task);
            assert_eq!(done.iter().sum::<usize>(), 5050);
        }
    }
}
