//! Tasks of unlike sizes on the threads of a pool.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::threads;

/// Runs all tasks in their order, each on the next free worker.
///
/// rayon's own iterators hand out halves, which loses the order: longest first keeps the threads
/// busy to the end. Which worker runs a task must not matter for the result.
pub(crate) fn run<T: Send, S: Send>(
    tasks: Vec<T>,
    workers: &mut [S],
    work: impl Fn(T, &mut S) + Sync,
) {
    let calls = workers.len().min(tasks.len());
    let (queue, free) = (Mutex::new(tasks.into_iter()), Mutex::new(workers.iter_mut()));
    threads::run(calls, &|| {
        let worker = lock(&free).next();
        let Some(worker) = worker else { return };
        loop {
            let task = lock(&queue).next();
            let Some(task) = task else { return };
            work(task, worker);
        }
    });
}

/// The same on as many workers as there are threads, which keep nothing.
pub(crate) fn run_all<T: Send>(tasks: Vec<T>, work: impl Fn(T) + Sync) {
    run(tasks, &mut vec![(); threads::count()], |task, ()| work(task));
}

/// Nothing panics while a lock is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
