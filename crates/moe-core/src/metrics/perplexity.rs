//! Perplexity of a language model.
//!
//! Axis letters: `t` tokens.

use super::{MetricError, valid_tokens};
use ndarray::{Array1, ArrayView1};

/// Perplexity from the negative log-likelihoods of tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Mean negative log-likelihood, in nats.
    pub mean: f64,
    /// `exp(mean)`.
    pub perplexity: f64,
    /// `mean / ln 2`: bits per token.
    pub bits: f64,
}

impl Perplexity {
    /// Perplexity of tokens with these negative log-likelihoods.
    ///
    /// # Errors
    ///
    /// If there are none, or one is not finite.
    pub fn of(nll_t: ArrayView1<'_, f64>) -> Result<Self, MetricError> {
        Self::without_padding(nll_t, Array1::from_elem(nll_t.len(), false).view())
    }

    /// As [`Perplexity::of`], leaving the tokens out that are `true` in `padding_t`.
    ///
    /// # Errors
    ///
    /// As [`Perplexity::of`], and if `padding_t` has another length or covers every token.
    pub fn without_padding(
        nll_t: ArrayView1<'_, f64>,
        padding_t: ArrayView1<'_, bool>,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("negative log-likelihoods", nll_t.len())?;
        MetricError::check_finite("negative log-likelihoods", nll_t)?;
        let valid = valid_tokens(padding_t, nll_t.len())?;
        let mean = valid.iter().map(|&t| nll_t[t]).sum::<f64>() / valid.len() as f64;
        Ok(Self { mean, perplexity: mean.exp(), bits: mean / std::f64::consts::LN_2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn perplexity_by_hand() {
        // ln 2 and ln 8: mean 2 ln 2, that is 4, or two bits.
        let nll_t = array![2f64.ln(), 8f64.ln(), 100.0];
        let padding_t = array![false, false, true];
        let got = Perplexity::without_padding(nll_t.view(), padding_t.view()).unwrap();
        assert!((got.perplexity - 4.0).abs() < 1e-14);
        assert!((got.bits - 2.0).abs() < 1e-15);
        assert!((got.mean - 2.0 * 2f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn no_token_no_perplexity() {
        assert!(Perplexity::of(array![].view()).is_err());
        let padded = Perplexity::without_padding(array![1.0].view(), array![true].view());
        assert_eq!(padded, Err(MetricError::AllPadding));
    }
}
