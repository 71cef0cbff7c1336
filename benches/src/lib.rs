//! Criterion benchmarks; they live in `benches/` beside this crate's manifest.
