//! Windows of a token sequence, as pure functions.

use ndarray::Array2;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::DataError;

/// The most elements of one batch (2 GiB of ids): beyond it a shape is a mistake in a recipe.
pub const MAX_BATCH_TOKENS: usize = 1 << 28;

/// Keeps these random numbers apart from any other use of the same seed. Changing it, or anything
/// in [`train_starts`], changes every training run.
const DOMAIN: &[u8; 24] = b"moe-data/train-windows/1";

/// Inputs and the targets that follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Input ids, `[batch, len]`.
    pub x_bt: Array2<i64>,
    /// Target ids, `[batch, len]`: `y_bt[b, t]` is the token after `x_bt[b, t]` in the text.
    pub y_bt: Array2<i64>,
}

impl TokenBatch {
    /// One row for each start: `len` tokens, and the same window one token later.
    fn gather(tokens: &[u32], starts: &[usize], len: usize) -> Self {
        let window = |shift: usize| {
            Array2::from_shape_fn((starts.len(), len), |(b, t)| {
                i64::from(tokens[starts[b] + t + shift])
            })
        };
        Self { x_bt: window(0), y_bt: window(1) }
    }
}

/// Refuses shapes without an element and shapes that no memory holds.
pub(crate) fn check_shape(batch: usize, len: usize) -> Result<(), DataError> {
    match batch.checked_mul(len) {
        Some(1..=MAX_BATCH_TOKENS) => Ok(()),
        _ => Err(DataError::BatchShape { batch, len }),
    }
}

/// The batch of a training step; needs `tokens.len() > len > 0`.
pub(crate) fn train_batch(
    tokens: &[u32],
    (seed, step): (u64, u64),
    batch: usize,
    len: usize,
) -> TokenBatch {
    let starts = train_starts((seed, step), batch, tokens.len() - len);
    TokenBatch::gather(tokens, &starts, len)
}

/// `batch` draws from `0..n_starts`, keyed as [`TokenStream::train_batch`] documents.
///
/// [`TokenStream::train_batch`]: crate::TokenStream::train_batch
fn train_starts((seed, step): (u64, u64), batch: usize, n_starts: usize) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..].copy_from_slice(DOMAIN);
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(step);
    // Multiply and shift, not `random_range`: its algorithm may change between versions of `rand`.
    // The draw is below `n_starts`, so it fits `usize`; its bias is below `n_starts / 2^64`.
    let draw = |word: u64| ((u128::from(word) * n_starts as u128) >> 64) as usize;
    (0..batch).map(|_| draw(generator.next_u64())).collect()
}

/// Where windows of `len` tokens start that follow each other; needs `len > 0`.
pub(crate) fn eval_starts(tokens: usize, len: usize) -> Vec<usize> {
    // The last window's last target has to exist, hence one token less.
    (0..tokens.saturating_sub(1) / len).map(|window| window * len).collect()
}

/// Windows that start here, `batch` rows at a time; needs `batch > 0` and `len > 0`.
pub(crate) fn eval_batches(
    tokens: &[u32],
    starts: Vec<usize>,
    batch: usize,
    len: usize,
) -> impl ExactSizeIterator<Item = TokenBatch> {
    (0..starts.len().div_ceil(batch)).map(move |index| {
        let rows = index * batch..starts.len().min((index + 1) * batch);
        TokenBatch::gather(tokens, &starts[rows], len)
    })
}

/// A split cut into texts of equal length that are read side by side, stretch after stretch: what a
/// model with a memory trains on.
#[derive(Clone, Copy, Debug)]
pub struct SideBySide<'a> {
    tokens: &'a [u32],
    batch: usize,
    len: usize,
}

impl<'a> SideBySide<'a> {
    /// Needs more than `batch * len` tokens, and both above 0.
    pub(crate) fn new(tokens: &'a [u32], batch: usize, len: usize) -> Self {
        Self { tokens, batch, len }
    }

    /// Stretches of `len` tokens in each text; at least 1.
    pub fn stretches(&self) -> usize {
        self.row_len() / self.len
    }

    /// Stretch `index` of every text: row `b` goes on where row `b` of the stretch before ended.
    ///
    /// # Panics
    /// If `index` is not below [`Self::stretches`].
    pub fn stretch(&self, index: usize) -> TokenBatch {
        assert!(index < self.stretches(), "stretch {index} of {}", self.stretches());
        let starts: Vec<usize> =
            (0..self.batch).map(|row| row * self.row_len() + index * self.len).collect();
        TokenBatch::gather(self.tokens, &starts, self.len)
    }

    /// The last target of the last text has to exist, hence one token less.
    fn row_len(&self) -> usize {
        (self.tokens.len() - 1) / self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_those_of_an_independent_chacha8() {
        // From a ChaCha8 written in Python from RFC 8439's quarter
        // round, with a 64-bit counter and a 64-bit stream.
        let pinned: [(u64, u64, usize, &[usize]); 3] = [
            (0, 0, 1000, &[750, 576, 143, 176, 94, 485, 520, 210, 74, 139]),
            (7, 0, 1_000_000, &[275_351, 637_852, 33_581]),
            (u64::MAX, (1 << 40) + 5, 1_000_000, &[98_213, 116_215, 406_997]),
        ];
        for (seed, step, n_starts, starts) in pinned {
            assert_eq!(train_starts((seed, step), starts.len(), n_starts), starts);
        }
    }

    #[test]
    fn every_start_is_drawn_and_none_beyond() {
        let mut starts = train_starts((1, 2), 1000, 5);
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, [0, 1, 2, 3, 4]);
    }

    /// 14 tokens, two texts of 6: three stretches of 2, the last token only a target.
    #[test]
    fn texts_side_by_side_go_on() {
        let tokens: Vec<u32> = (0..14).collect();
        let texts = SideBySide::new(&tokens, 2, 2);
        assert_eq!(texts.stretches(), 3);
        let rows = |index| {
            let TokenBatch { x_bt, y_bt } = texts.stretch(index);
            assert_eq!(y_bt, x_bt.mapv(|id| id + 1));
            x_bt.into_iter().collect::<Vec<_>>()
        };
        assert_eq!([rows(0), rows(1), rows(2)], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]);
        assert_eq!(SideBySide::new(&tokens[..5], 2, 2).stretches(), 1);
    }

    #[test]
    fn shapes_without_elements_or_beyond_memory_are_refused() {
        for (batch, len) in [(0, 1), (1, 0), (usize::MAX, 2), (MAX_BATCH_TOKENS, 2)] {
            let error = check_shape(batch, len).unwrap_err().to_string();
            let expected = format!(
                "a batch of {batch} x {len} tokens: both must be at least 1, \
                 and their product at most 268435456"
            );
            assert_eq!(error, expected);
        }
        assert!(check_shape(MAX_BATCH_TOKENS, 1).is_ok());
    }
}
