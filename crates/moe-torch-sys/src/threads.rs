//! Kernels on libtorch's own threads.
//!
//! libtorch's threads wait for more work by spinning, some milliseconds after each of its parallel loops, on
//! cores that the threads of a second pool would need.
#![expect(unsafe_code, reason = "a call that goes through C++ and comes back")]

use crate::ShimError;
use crate::ffi::moe_parallel;
use moe_kernels::Threads;
use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

/// Runs `work`, whose kernels use the threads of libtorch.
pub(crate) fn on_libtorch<R>(work: impl FnOnce() -> R) -> R {
    moe_kernels::on_threads(&Libtorch, work)
}

struct Libtorch;

impl Threads for Libtorch {
    fn count(&self) -> usize {
        usize::try_from(tch::get_num_threads()).unwrap_or(1)
    }

    fn run(&self, calls: usize, work: &(dyn Fn() + Sync)) {
        let calling = Calling { work, panic: Mutex::new(None) };
        // SAFETY: `call` gets what it expects, on which threads may share; all calls end before this one.
        let error = unsafe { moe_parallel(calls, call, (&raw const calling).cast()) };
        if let Some(panic) = calling.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
        if let Err(error) = ShimError::check(error) {
            panic!("libtorch's threads: {error}");
        }
    }
}

/// What all calls share.
struct Calling<'a> {
    work: &'a (dyn Fn() + Sync),
    /// The first panic: it must not pass through C++.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// # Safety
/// `calling` is a [`Calling`] that lives as long as the call.
unsafe extern "C" fn call(calling: *const c_void) {
    // SAFETY: by this function's contract.
    let calling = unsafe { &*calling.cast::<Calling<'_>>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(calling.work)) {
        calling.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    #[test]
    fn every_call_is_made() {
        for calls in [0, 1, 2, 7] {
            let made = AtomicUsize::new(0);
            Libtorch.run(calls, &|| {
                made.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(made.into_inner(), calls);
        }
    }

    /// Each call waits for the other, so both must run at once where there are two threads.
    #[test]
    fn two_calls_run_at_once() {
        let threads = Libtorch.count();
        assert_eq!(threads, tch::get_num_threads() as usize);
        let (started, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        Libtorch.run(2, &|| {
            started.fetch_add(1, Ordering::SeqCst);
            let end = Instant::now() + Duration::from_secs(10);
            while threads > 1 && started.load(Ordering::SeqCst) < 2 && Instant::now() < end {
                std::thread::yield_now();
            }
            seen.lock().unwrap().push(started.load(Ordering::SeqCst));
        });
        // One after the other, the first would have seen itself alone.
        assert_eq!(seen.into_inner().unwrap(), if threads > 1 { [2, 2] } else { [1, 2] });
    }

    #[test]
    #[should_panic(expected = "on purpose")]
    fn a_panic_comes_back() {
        Libtorch.run(2, &|| panic!("on purpose"));
    }
}
