//! The word-swap attack on language models (code of the MomentumSMoE family, arXiv 2410.14574).
//!
//! Axis letters: `n` words of a line.

use super::MetricError;

/// A line after the attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordSwap {
    /// The words, swapped ones replaced. They are inputs and targets alike.
    pub word_n: Vec<usize>,
    /// Which ones were swapped.
    pub swapped_n: Vec<bool>,
}

impl WordSwap {
    /// Share of a line's words that the released code swaps.
    pub const FRACTION: f64 = 0.025;

    /// Replaces `max(int(fraction n), 1)` of the words, at most the unprotected ones, by
    /// `replacement`: those with the smallest draws, or without draws the first ones.
    ///
    /// # Errors
    ///
    /// If `fraction` is not in 0..=1, or `protected_n` or `draw_n` has another length or is not finite.
    pub fn of(
        word_n: &[usize],
        replacement: usize,
        fraction: f64,
        protected_n: Option<&[bool]>,
        draw_n: Option<&[f64]>,
    ) -> Result<Self, MetricError> {
        let holds = (0.0..=1.0).contains(&fraction);
        MetricError::check_setting("fraction", fraction, "in 0..=1", holds)?;
        let words = word_n.len();
        MetricError::check_shape(
            "protected",
            &[protected_n.map_or(words, <[bool]>::len)],
            &[words],
        )?;
        MetricError::check_shape("draws", &[draw_n.map_or(words, <[f64]>::len)], &[words])?;
        MetricError::check_finite("draws", draw_n.unwrap_or_default())?;
        let mut open: Vec<usize> =
            (0..words).filter(|&n| !protected_n.is_some_and(|protected| protected[n])).collect();
        // A stable sort: of equal draws the earlier word goes first.
        open.sort_by(|&a, &b| {
            draw_n.map_or(0.0, |d| d[a]).total_cmp(&draw_n.map_or(0.0, |d| d[b]))
        });
        let count = ((fraction * words as f64) as usize).max(1);
        let mut swap = Self { word_n: word_n.to_vec(), swapped_n: vec![false; words] };
        for n in open.into_iter().take(count) {
            (swap.word_n[n], swap.swapped_n[n]) = (replacement, true);
        }
        Ok(swap)
    }

    /// How many words were swapped.
    pub fn count(&self) -> usize {
        self.swapped_n.iter().filter(|&&swapped| swapped).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_by_hand() {
        // int(0.5 * 5) = 2 words: of the open ones 0, 2, 3, 4 the smallest draws are 3's and 0's.
        let protected_n = [false, true, false, false, false];
        let draw_n = [0.2, 0.0, 0.7, 0.1, 0.2];
        let swap =
            WordSwap::of(&[1, 2, 3, 4, 5], 9, 0.5, Some(&protected_n), Some(&draw_n)).unwrap();
        assert_eq!(swap.word_n, [9, 2, 3, 9, 5]);
        assert_eq!(
            (swap.swapped_n.clone(), swap.count()),
            (vec![true, false, false, true, false], 2)
        );
    }

    #[test]
    fn at_least_one_and_at_most_the_open_ones() {
        let of = |words: &[usize], fraction, protected: Option<&[bool]>| {
            WordSwap::of(words, 9, fraction, protected, None).unwrap().word_n
        };
        assert_eq!(of(&[1, 2, 3], WordSwap::FRACTION, None), [9, 2, 3]);
        assert_eq!(of(&[1, 2, 3], 1.0, Some(&[false, true, false])), [9, 2, 9]);
        assert_eq!(of(&[1], 1.0, Some(&[true])), [1]);
        assert!(of(&[], 0.5, None).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |fraction, draw_n: &[f64]| {
            WordSwap::of(&[1, 2], 9, fraction, None, Some(draw_n)).unwrap_err().to_string()
        };
        assert_eq!(refused(1.5, &[0.0, 0.0]), "fraction: 1.5 is not in 0..=1");
        assert_eq!(refused(0.5, &[0.0]), "draws: shape [1], expected [2]");
        assert!(refused(0.5, &[0.0, f64::NAN]).contains("not finite"));
    }
}
