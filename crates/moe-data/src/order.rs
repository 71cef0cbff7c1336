//! The order of training images and texts, and the draws of each image: functions of (seed, epoch, index).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Keep these random numbers apart from any other use of the same seed. Changing them, or how they
/// are used, changes every training run.
const ORDER: &[u8; 16] = b"moe-data/order/1";
const DRAWS: &[u8; 8] = b"image/01";

/// A number below `n` from a uniform word. Multiply and shift, not `random_range`: its algorithm may
/// change between versions of `rand`.
pub(crate) fn below(word: u64, n: usize) -> usize {
    ((u128::from(word) * n as u128) >> 64) as usize
}

/// The order in which epoch `epoch` visits `n` items: Fisher and Yates' shuffle.
pub(crate) fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..24].copy_from_slice(ORDER);
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, below(generator.next_u64(), last + 1));
    }
    order
}

/// The generator of the draws of image `index` in epoch `epoch`.
pub(crate) fn draws(seed: u64, epoch: u64, index: usize) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&(index as u64).to_le_bytes());
    key[24..].copy_from_slice(DRAWS);
    ChaCha8Rng::from_seed(key)
}

/// Epoch and item of `count` places from `start` in the endless row of epochs.
pub(crate) fn visits(seed: u64, start: u64, count: usize, n: usize) -> Vec<(u64, usize)> {
    let mut epoch = start / n as u64;
    let mut place = (start % n as u64) as usize;
    let mut order = permutation(seed, epoch, n);
    let mut visits = Vec::with_capacity(count);
    for _ in 0..count {
        if place == n {
            (epoch, place) = (epoch + 1, 0);
            order = permutation(seed, epoch, n);
        }
        visits.push((epoch, order[place]));
        place += 1;
    }
    visits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_image_once() {
        let mut seen: Vec<usize> = visits(3, 7 * 10, 10, 10).into_iter().map(|(_, i)| i).collect();
        assert_ne!(seen, (0..10).collect::<Vec<_>>());
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn visits_in_pieces_are_the_visits_in_one() {
        let whole = visits(1, 0, 25, 7);
        let pieces = [visits(1, 0, 9, 7), visits(1, 9, 9, 7), visits(1, 18, 7, 7)].concat();
        assert_eq!(whole, pieces);
        assert_eq!(whole.iter().map(|(epoch, _)| *epoch).max(), Some(3));
        assert_ne!(permutation(1, 0, 7), permutation(1, 1, 7));
        assert_ne!(permutation(1, 0, 7), permutation(2, 0, 7));
    }
}
