//! Files from outside that are damaged or made to do harm: nothing that reads them panics, runs away with
//! memory, or writes where it was not told to.
//!
//! Each target takes arbitrary bytes twice: as a file, and as edits on a valid file ([`edits`]). `cargo test`
//! replays the files of `corpus/` and a few hundred inputs; a campaign is the same tests with time:
//!
//! ```text
//! BOLERO_RANDOM_TEST_TIME_MS=600000 cargo test --release -p moe-bench --test hostile -- --nocapture
//! ```

mod checkpoints;
mod edits;
mod pictures;
mod targets;

use moe_bench::environment::peak_memory_bytes;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// More memory than any of these small inputs justifies.
const MOST_GROWTH: u64 = 1 << 30;

/// A reader of bytes from outside and a valid file to start from.
pub(crate) struct Target {
    name: &'static str,
    valid: Vec<u8>,
    /// Says whether the bytes were taken.
    read: fn(&[u8]) -> bool,
}

impl Target {
    fn feed(&self, bytes: &[u8]) {
        let _ = (self.read)(bytes) | (self.read)(&edits::edited(&self.valid, bytes));
    }

    /// The hostile files that were written by hand or found.
    fn replay(&self) -> usize {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
        let files = fs::read_dir(corpus.join(self.name)).expect("a corpus");
        let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        for path in &files {
            (self.read)(&fs::read(path).unwrap());
        }
        files.len()
    }
}

#[expect(clippy::print_stdout, reason = "a campaign reports its executions")]
fn attack(
    target: &Target,
    check: bolero::TestTarget<
        bolero::ByteSliceGenerator,
        bolero::DefaultEngine,
        bolero::BorrowedInput,
    >,
) {
    let before = peak_memory_bytes();
    assert!((target.read)(&target.valid), "{}: refused when valid", target.name);
    assert!(target.replay() > 0, "{}: no corpus", target.name);
    let executions = AtomicU64::new(0);
    let campaign = std::env::var_os("BOLERO_RANDOM_TEST_TIME_MS").is_some();
    let check = if campaign { check } else { check.with_iterations(300) };
    check.for_each(|bytes| {
        target.feed(bytes);
        executions.fetch_add(2, Ordering::Relaxed);
    });
    let grown = peak_memory_bytes().saturating_sub(before);
    println!("{}: {} executions, {grown} bytes at most", target.name, executions.into_inner());
    assert!(grown < MOST_GROWTH, "{}: {grown} bytes", target.name);
}
