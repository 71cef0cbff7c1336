//! Routing metrics: how evenly experts are loaded, how decided gates are, what capacity drops.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices. Natural logarithms, population variance.

use crate::balance::cv_squared;
use ndarray::{Array1, ArrayView1, ArrayView2, Axis};
use serde::Serialize;

/// Values of which a metric is not defined.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// There is nothing to measure.
    #[error("{what} are empty: bad shape")]
    Empty {
        /// The array.
        what: &'static str,
    },
    /// A value is outside its domain.
    #[error("value {index} of {what} is {value}, out of range")]
    Range {
        /// The array.
        what: &'static str,
        /// Where, in row-major order.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A value is infinite or NaN.
    #[error("value {index} of {what} is {value}, not finite")]
    NotFinite {
        /// The array.
        what: &'static str,
        /// Where, in row-major order.
        index: usize,
        /// The value.
        value: f64,
    },
    /// No expert received anything.
    #[error("the total load is zero")]
    NoLoad,
    /// The padding does not fit the tokens.
    #[error("padding_t has shape [{got}], but there are {tokens} tokens")]
    PaddingShape {
        /// Entries of the padding.
        got: usize,
        /// Tokens.
        tokens: usize,
    },
    /// Every token is padding.
    #[error("every token is padding")]
    AllPadding,
}

impl MetricError {
    pub(crate) fn check_not_empty(what: &'static str, len: usize) -> Result<(), Self> {
        if len == 0 { Err(Self::Empty { what }) } else { Ok(()) }
    }

    pub(crate) fn check_finite<'a>(
        what: &'static str,
        values: impl IntoIterator<Item = &'a f64>,
    ) -> Result<(), Self> {
        match values.into_iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((index, &value)) => Err(Self::NotFinite { what, index, value }),
            None => Ok(()),
        }
    }

    fn check_range<'a>(
        what: &'static str,
        values: impl IntoIterator<Item = &'a f64>,
        max: f64,
    ) -> Result<(), Self> {
        match values.into_iter().enumerate().find(|(_, value)| !(0.0..=max).contains(*value)) {
            Some((index, &value)) => Err(Self::Range { what, index, value }),
            None => Ok(()),
        }
    }
}

/// How evenly a load vector is spread over the experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoadStats {
    /// Coefficient of variation, `std / mean`; 0 when balanced.
    pub cv: f64,
    /// Its square, at most `e - 1`.
    pub cv2: f64,
    /// Largest load over the mean; 1 when balanced, at most `e`.
    pub max_over_mean: f64,
    /// `max_over_mean - 1`: the MaxVio of Wang et al. 2024 (loss-free balancing, arXiv 2408.15664).
    pub violation: f64,
    /// Smallest load over the mean; 1 when balanced, 0 with an unused expert.
    pub min_over_mean: f64,
    /// Entropy of the normalised load.
    pub entropy: f64,
    /// Entropy over `ln e`, in 0..=1; 1 for a single expert.
    pub entropy_normalised: f64,
    /// `exp(entropy)`: the number of experts that effectively work.
    pub perplexity: f64,
    /// Experts without load.
    pub unused: usize,
    /// Experts whose load reaches the threshold, 1 unless given.
    pub active: usize,
}

impl LoadStats {
    /// Statistics of the load `[e]`: counts, or any other share of the work.
    ///
    /// ```
    /// let stats = moe_core::LoadStats::of(ndarray::array![3.0, 1.0, 0.0, 0.0].view()).unwrap();
    /// assert_eq!((stats.max_over_mean, stats.unused), (3.0, 2));
    /// ```
    ///
    /// # Errors
    ///
    /// If there are no experts, a load is negative or not finite, or all are zero.
    pub fn of(load_e: ArrayView1<'_, f64>) -> Result<Self, MetricError> {
        Self::with_threshold(load_e, 1.0)
    }

    /// As [`LoadStats::of`], from counts such as [`SparsePlan::load`](crate::SparsePlan::load).
    ///
    /// # Errors
    ///
    /// If there are no experts, or all counts are zero.
    pub fn of_counts(count_e: &[usize]) -> Result<Self, MetricError> {
        Self::of(count_e.iter().map(|&count| count as f64).collect::<Array1<f64>>().view())
    }

    /// As [`LoadStats::of`], counting an expert as active from `threshold` on.
    ///
    /// # Errors
    ///
    /// As [`LoadStats::of`].
    pub fn with_threshold(
        load_e: ArrayView1<'_, f64>,
        threshold: f64,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("loads", load_e.len())?;
        MetricError::check_finite("loads", load_e)?;
        MetricError::check_range("loads", load_e, f64::INFINITY)?;
        let total = load_e.sum();
        if total == 0.0 {
            return Err(MetricError::NoLoad);
        }
        let mean = total / load_e.len() as f64;
        let cv2 = cv_squared(load_e);
        let max_over_mean = load_e.fold(0.0, |a: f64, &b| a.max(b)) / mean;
        let entropy = entropy((&load_e / total).view());
        Ok(Self {
            cv: cv2.sqrt(),
            cv2,
            max_over_mean,
            violation: max_over_mean - 1.0,
            min_over_mean: load_e.fold(f64::INFINITY, |a, &b| a.min(b)) / mean,
            entropy,
            entropy_normalised: if load_e.len() == 1 {
                1.0
            } else {
                over_log(entropy, load_e.len())
            },
            perplexity: entropy.exp(),
            unused: load_e.iter().filter(|&&load| load == 0.0).count(),
            active: load_e.iter().filter(|&&load| load >= threshold).count(),
        })
    }
}

/// How decided the gates are, token by token and together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateEntropy {
    /// Entropy of every token's distribution, `[t]`; padded tokens too, which the rest leaves out.
    pub rows: Vec<f64>,
    /// Mean entropy: 0 when every token is certain.
    pub mean: f64,
    /// Mean entropy over `ln e`; 0 for a single expert.
    pub mean_normalised: f64,
    /// Entropy of the mean distribution: `ln e` when all experts are used alike.
    pub marginal: f64,
    /// `marginal - mean`: mutual information of token and expert under these gates.
    pub mutual_information: f64,
}

impl GateEntropy {
    /// Entropies of the distributions in the rows of `prob_te`.
    ///
    /// # Errors
    ///
    /// If there are no tokens or experts, or a probability is not finite, negative or above 1.
    pub fn of(prob_te: ArrayView2<'_, f64>) -> Result<Self, MetricError> {
        Self::without_padding(prob_te, Array1::from_elem(prob_te.nrows(), false).view())
    }

    /// As [`GateEntropy::of`], leaving the tokens out that are `true` in `padding_t`.
    ///
    /// # Errors
    ///
    /// As [`GateEntropy::of`], and if `padding_t` has another length or covers every token.
    pub fn without_padding(
        prob_te: ArrayView2<'_, f64>,
        padding_t: ArrayView1<'_, bool>,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("probabilities", prob_te.len())?;
        MetricError::check_finite("probabilities", prob_te)?;
        // Rounding may lift a softmax over few experts a little above 1.
        MetricError::check_range("probabilities", prob_te, 1.0 + 1e-9)?;
        let valid = valid_tokens(padding_t, prob_te.nrows())?;
        let rows: Vec<f64> = prob_te.outer_iter().map(entropy).collect();
        let mean = valid.iter().map(|&t| rows[t]).sum::<f64>() / valid.len() as f64;
        let mean_e = prob_te.select(Axis(0), &valid).sum_axis(Axis(0)) / valid.len() as f64;
        let marginal = entropy(mean_e.view());
        let mean_normalised =
            if prob_te.ncols() == 1 { 0.0 } else { over_log(mean, prob_te.ncols()) };
        Ok(Self { rows, mean, mean_normalised, marginal, mutual_information: marginal - mean })
    }
}

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

fn valid_tokens(padding_t: ArrayView1<'_, bool>, tokens: usize) -> Result<Vec<usize>, MetricError> {
    if padding_t.len() != tokens {
        return Err(MetricError::PaddingShape { got: padding_t.len(), tokens });
    }
    let valid: Vec<usize> = (0..tokens).filter(|&t| !padding_t[t]).collect();
    if valid.is_empty() { Err(MetricError::AllPadding) } else { Ok(valid) }
}

/// `-sum p ln p`, with `0 ln 0 = 0`.
fn entropy(p_e: ArrayView1<'_, f64>) -> f64 {
    p_e.iter().filter(|&&p| p > 0.0).fold(0.0, |entropy, p| entropy - p * p.ln())
}

fn over_log(entropy: f64, experts: usize) -> f64 {
    entropy / (experts as f64).ln()
}
