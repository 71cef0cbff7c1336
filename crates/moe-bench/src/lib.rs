//! Recipes, runs, the comparison of routers and its report: everything behind the `moe` binary.
//!
//! A [`recipe::Recipe`] decides a run; [`run`] trains it into a directory; [`compare`] trains many,
//! one process each, on equal terms; [`results`] is what it writes for other tools, [`table`] and
//! [`report`] what it shows to people.

// The reader of a pipe may leave, and then these panic; `say` has what does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod analyse;
pub mod between;
pub mod cells;
pub mod claims;
pub mod classify;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod conform;
pub mod dashboard;
pub mod data;
pub mod determinism;
pub mod dry_run;
pub mod environment;
pub mod error;
pub mod estimate;
pub mod export;
pub mod few_shot;
pub mod files;
pub mod gate;
pub mod inspect;
pub mod limits;
pub mod log;
pub mod masked;
pub mod memory_cap;
pub mod method;
pub mod overlay;
pub mod papers;
pub mod probe;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod results;
pub mod retrieval;
pub mod reuse;
pub mod robust;
pub mod run;
mod say;
pub mod schema;
pub mod speed;
pub mod study;
pub mod subject;
pub mod summary;
pub mod sweep;
pub mod table;
pub mod tensorboard;
pub mod terms;
pub mod tsne;
pub mod vae;
pub mod vae_cost;
pub mod verdict;
pub mod verify;
pub mod vision;
pub mod which;
pub mod worker;

/// The snippets of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
