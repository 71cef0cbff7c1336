//! What a capacity drops.
//!
//! Axis letters: `t` tokens, `k` choices.

use super::{MetricError, valid_tokens};
use ndarray::{Array1, ArrayView1, ArrayView2, Axis};
use serde::Serialize;

/// What a capacity dropped.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DropStats {
    /// Kept choices over all choices (Riquelme et al. 2021, V-MoE, arXiv 2106.05974).
    pub success_rate: f64,
    /// Tokens with no kept choice.
    pub dropped_tokens: usize,
    /// Dropped tokens over all tokens.
    pub token_drop_rate: f64,
}

impl DropStats {
    /// Statistics of `kept_tk`, which says of every choice whether it got a place.
    ///
    /// # Errors
    ///
    /// If there are no choices.
    pub fn of(kept_tk: ArrayView2<'_, bool>) -> Result<Self, MetricError> {
        Self::without_padding(kept_tk, Array1::from_elem(kept_tk.nrows(), false).view())
    }

    /// As [`DropStats::of`], leaving the tokens out that are `true` in `padding_t`.
    ///
    /// # Errors
    ///
    /// As [`DropStats::of`], and if `padding_t` has another length or covers every token.
    pub fn without_padding(
        kept_tk: ArrayView2<'_, bool>,
        padding_t: ArrayView1<'_, bool>,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("choices", kept_tk.len())?;
        let valid = valid_tokens(padding_t, kept_tk.nrows())?;
        let kept_tk = kept_tk.select(Axis(0), &valid);
        let dropped_tokens = dropped_tokens(kept_tk.view());
        Ok(Self {
            success_rate: success_rate(kept_tk.view()),
            dropped_tokens,
            token_drop_rate: dropped_tokens as f64 / valid.len() as f64,
        })
    }
}

/// Kept choices over all choices; NaN without choices.
pub fn success_rate(kept_tk: ArrayView2<'_, bool>) -> f64 {
    kept_tk.iter().filter(|&&kept| kept).count() as f64 / kept_tk.len() as f64
}

/// How many tokens have no kept choice.
pub fn dropped_tokens(kept_tk: ArrayView2<'_, bool>) -> usize {
    kept_tk.outer_iter().filter(|kept_k| !kept_k.iter().any(|&kept| kept)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    #[test]
    fn drops_by_hand() {
        // 4 of 8 choices are kept; only the third token keeps none.
        let kept_tk = array![[true, true], [true, false], [false, false], [false, true]];
        let stats = DropStats::of(kept_tk.view()).unwrap();
        let want = DropStats { success_rate: 0.5, dropped_tokens: 1, token_drop_rate: 0.25 };
        assert_eq!(stats, want);
        assert_eq!(dropped_tokens(array![[false], [true], [false]].view()), 2);
    }

    #[test]
    fn padding_is_neither_kept_nor_dropped() {
        let kept_tk = array![[true, true], [false, false], [false, true], [false, false]];
        let padding_t = array![false, true, false, false];
        let stats = DropStats::without_padding(kept_tk.view(), padding_t.view()).unwrap();
        let want = DropStats { success_rate: 0.5, dropped_tokens: 1, token_drop_rate: 1.0 / 3.0 };
        assert_eq!(stats, want);
    }

    #[test]
    fn nothing_to_drop_is_refused() {
        let none_tk = Array2::from_elem((2, 0), true);
        assert!(matches!(DropStats::of(none_tk.view()), Err(MetricError::Empty { .. })));
        assert!(success_rate(none_tk.view()).is_nan());
        let kept_tk = array![[true], [true]];
        let all = DropStats::without_padding(kept_tk.view(), array![true, true].view());
        assert_eq!(all, Err(MetricError::AllPadding));
        let misfit = DropStats::without_padding(kept_tk.view(), array![false].view());
        assert_eq!(misfit, Err(MetricError::PaddingShape { got: 1, tokens: 2 }));
    }
}
