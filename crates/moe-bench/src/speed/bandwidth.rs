//! How fast this machine reads memory: the bound of decoding.

use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Bytes of the buffer: far beyond any cache.
const BYTES: usize = 1 << 30;
/// The best of this many passes.
const PASSES: usize = 7;

/// Read bandwidth of all threads together, GB/s: the best of several passes over a buffer, since
/// whatever else the machine does only takes away from it.
pub fn read_gbps() -> f64 {
    let words = vec![1u64; BYTES / 8];
    let pass = || {
        let start = Instant::now();
        black_box(words.par_chunks(1 << 16).map(sum).reduce(|| 0, u64::wrapping_add));
        BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
}

/// Eight sums side by side, so that the additions do not wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 8];
    for chunk in words.chunks_exact(8) {
        lanes.iter_mut().zip(chunk).for_each(|(lane, word)| *lane = lane.wrapping_add(*word));
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}
