//! Criterion benchmarks; see the files beside this crate's manifest.
