//! What a run can be trusted with: determinism, exact resume, checkpoints, crashes, bad numbers.
#![expect(clippy::print_stdout, reason = "counts are worth seeing with --nocapture")]

mod checkpoints;
mod common;
mod crash;
mod guard;
mod resume;
