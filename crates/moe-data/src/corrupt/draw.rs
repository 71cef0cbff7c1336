//! Random numbers by position: functions of (seed, use, position).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The generator of one use at one position. Uses are names of at most 24 bytes; changing one changes the
/// damage.
pub(crate) fn draws(seed: u64, of: &str, position: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..8 + of.len()].copy_from_slice(of.as_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(position);
    generator
}

/// Uniform in `0..1`, of 53 bits.
pub(crate) fn uniform(generator: &mut ChaCha8Rng) -> f64 {
    (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_seeds_and_uses_draw_apart() {
        let first = |seed, of, position| draws(seed, of, position).next_u64();
        let all = [first(1, "a", 0), first(1, "a", 1), first(2, "a", 0), first(1, "b", 0)];
        assert_eq!(first(1, "a", 0), all[0]);
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{all:?}");
        }
    }

    #[test]
    fn uniforms_have_the_mean_of_uniforms() {
        let mut generator = draws(7, "mean", 0);
        let mean = (0..10_000).map(|_| uniform(&mut generator)).sum::<f64>() / 1e4;
        // The standard error is 1 / sqrt(12 * 10,000) = 0.0029.
        assert!((mean - 0.5).abs() < 5.0 * 0.0029, "{mean}");
    }
}
