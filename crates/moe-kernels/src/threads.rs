//! The threads that kernels run on: rayon's, or those of an engine that has its own.
//!
//! Two pools in one process hinder each other: a pool that has just finished spins for some
//! milliseconds, waiting for more, on a core that the other one needs.

use std::cell::Cell;

/// A pool of threads.
pub trait Threads: Sync {
    /// How many calls run at once, 1 or more.
    fn count(&self) -> usize;

    /// Calls `work` `calls` times, several at once where there are several threads, and returns when all
    /// have returned. A panic of `work` goes on in the caller.
    fn run(&self, calls: usize, work: &(dyn Fn() + Sync));
}

/// rayon's current pool.
struct Rayon;

impl Threads for Rayon {
    fn count(&self) -> usize {
        rayon::current_num_threads()
    }

    fn run(&self, calls: usize, work: &(dyn Fn() + Sync)) {
        rayon::scope(|scope| {
            for _ in 1..calls {
                scope.spawn(|_| work());
            }
            work();
        });
    }
}

thread_local! {
    static CURRENT: Cell<&'static dyn Threads> = const { Cell::new(&Rayon) };
}

/// Runs `work`, whose kernels use these threads instead of rayon's. Their number changes no result.
pub fn on_threads<R>(threads: &'static dyn Threads, work: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also after a panic.
    struct Before(&'static dyn Threads);

    impl Drop for Before {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }

    let _before = Before(CURRENT.replace(threads));
    work()
}

/// How many workers a kernel has now.
pub(crate) fn count() -> usize {
    CURRENT.get().count().max(1)
}

/// See [`Threads::run`]; one call needs no pool.
pub(crate) fn run(calls: usize, work: &(dyn Fn() + Sync)) {
    match calls {
        0 => {}
        1 => work(),
        _ => CURRENT.get().run(calls, work),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it is asked for, and has no thread of its own.
    struct Counted(AtomicUsize);

    impl Threads for Counted {
        fn count(&self) -> usize {
            3
        }

        fn run(&self, calls: usize, work: &(dyn Fn() + Sync)) {
            self.0.fetch_add(calls, Ordering::Relaxed);
            (0..calls).for_each(|_| work());
        }
    }

    #[test]
    fn work_runs_on_the_threads_it_was_given() {
        static GIVEN: Counted = Counted(AtomicUsize::new(0));
        let done = AtomicUsize::new(0);
        let work = || {
            done.fetch_add(1, Ordering::Relaxed);
        };
        on_threads(&GIVEN, || run(count(), &work));
        assert_eq!(GIVEN.0.load(Ordering::Relaxed), 3);
        run(2, &work);
        assert_eq!((GIVEN.0.load(Ordering::Relaxed), done.load(Ordering::Relaxed)), (3, 5));
    }

    #[test]
    fn a_panic_ends_the_loan() {
        static GIVEN: Counted = Counted(AtomicUsize::new(0));
        let broken = || on_threads(&GIVEN, || panic!("on purpose"));
        assert!(std::panic::catch_unwind(broken).is_err());
        assert_eq!(count(), rayon::current_num_threads());
    }
}
