//! What the benchmarks in `benches/` beside this crate's manifest share.

pub mod interval;
pub mod scene;
