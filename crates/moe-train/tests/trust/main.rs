//! What a run can be trusted with: determinism, exact resume, checkpoints, crashes, bad numbers.

mod checkpoints;
mod common;
mod crash;
mod guard;
mod resume;
