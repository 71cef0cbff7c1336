//! How decided gates are.
//!
//! Axis letters: `t` tokens, `e` experts.

use super::{MetricError, entropy, normalised, valid_tokens};
use ndarray::{Array1, ArrayView1, ArrayView2, Axis};
use serde::Serialize;

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
        let mean_normalised = normalised(mean, prob_te.ncols(), 0.0);
        Ok(Self { rows, mean, mean_normalised, marginal, mutual_information: marginal - mean })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};
    use proptest::prelude::*;

    #[track_caller]
    fn assert_near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} is not {want}");
    }

    #[test]
    fn gate_entropy_by_hand() {
        // Entropies ln 2 and 0; mean distribution (3/4, 1/4): entropy 2 ln 2 - 3/4 ln 3.
        let ln2 = 2f64.ln();
        let stats = GateEntropy::of(array![[0.5, 0.5], [1.0, 0.0]].view()).unwrap();
        assert_near(stats.rows[0], ln2);
        assert_eq!(stats.rows[1], 0.0);
        assert_near(stats.mean, ln2 / 2.0);
        assert_near(stats.mean_normalised, 0.5);
        assert_near(stats.marginal, 2.0 * ln2 - 0.75 * 3f64.ln());
        assert_near(stats.mutual_information, 1.5 * ln2 - 0.75 * 3f64.ln());
    }

    #[test]
    fn padding_counts_in_the_rows_only() {
        let prob_te = array![[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]];
        let stats = GateEntropy::without_padding(prob_te.view(), array![false, true, false].view())
            .unwrap();
        assert_eq!((stats.rows.len(), stats.rows[1]), (3, 0.0));
        assert_near(stats.mean_normalised, 1.0);
        assert_near(stats.marginal, 2f64.ln());
        assert_near(stats.mutual_information, 0.0);
    }

    #[test]
    fn one_expert_decides_nothing() {
        let stats = GateEntropy::of(array![[1.0], [1.0]].view()).unwrap();
        assert_eq!((stats.mean, stats.mean_normalised, stats.marginal), (0.0, 0.0, 0.0));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let refused =
            |prob_te: Array2<f64>| GateEntropy::of(prob_te.view()).unwrap_err().to_string();
        assert_eq!(refused(Array2::zeros((0, 2))), "probabilities are empty: bad shape");
        assert_eq!(refused(array![[0.5, -0.1]]), "value 1 of probabilities is -0.1, out of range");
        assert_eq!(refused(array![[0.5], [1.5]]), "value 1 of probabilities is 1.5, out of range");
        assert_eq!(refused(array![[f64::NAN]]), "value 0 of probabilities is NaN, not finite");
        // Rounding alone is no offence.
        assert!(GateEntropy::of(array![[1.0 + 1e-15]].view()).is_ok());
        let padded = |padding_t: &[bool]| {
            GateEntropy::without_padding(array![[1.0], [1.0]].view(), padding_t.into()).unwrap_err()
        };
        assert_eq!(padded(&[true, true]), MetricError::AllPadding);
        assert_eq!(padded(&[true]).to_string(), "padding_t has shape [1], but there are 2 tokens");
    }

    proptest! {
        #[test]
        fn information_is_between_zero_and_the_marginal(
            logits in proptest::collection::vec(-5.0..5.0, 24),
        ) {
            let logits_te = Array2::from_shape_vec((6, 4), logits).unwrap();
            let stats = GateEntropy::of(crate::score::softmax(logits_te.view()).view()).unwrap();
            prop_assert!((-1e-12..=stats.marginal).contains(&stats.mutual_information));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&stats.mean_normalised));
        }
    }
}
