//! Measures across the sparse layers of a model, and of robustness, as ACMoE (arXiv 2502.15315) and its
//! released code use them.
//!
//! Axis letters: `l` layers, `e` experts, `t` tokens.

use super::MetricError;
use crate::stats::{mean, standard_deviation};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use std::collections::BTreeMap;

/// How evenly each layer loads its experts.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerBalance {
    /// Share of the layer's selections that fell on the expert, in percent, `[l, e]`.
    pub percent_le: Array2<f64>,
    /// Sample deviation of the shares over experts, `[l]`; 0 for one expert.
    pub std_l: Vec<f64>,
    /// Mean of the deviations over layers.
    pub mean: f64,
    /// Sample deviation of the deviations over layers; 0 for one layer.
    pub std: f64,
}

impl LayerBalance {
    /// From the selections of every layer and expert over an evaluation, `[l, e]`.
    ///
    /// # Errors
    /// No layers or experts, a layer without selections, a negative or infinite count.
    pub fn of_counts(count_le: ArrayView2<'_, f64>) -> Result<Self, MetricError> {
        MetricError::check_not_empty("counts", count_le.len())?;
        MetricError::check_finite("counts", count_le)?;
        MetricError::check_range("counts", count_le, f64::MAX)?;
        let total_l = count_le.sum_axis(Axis(1));
        if total_l.iter().any(|total| *total == 0.0) {
            return Err(MetricError::Empty { what: "counts of a layer" });
        }
        let percent_le = &count_le * 100.0 / total_l.insert_axis(Axis(1));
        let std_l: Vec<f64> =
            percent_le.rows().into_iter().map(|row| spread(&row.to_vec())).collect();
        Ok(Self { mean: mean(&std_l), std: spread(&std_l), percent_le, std_l })
    }
}

/// Sample deviation; 0 for a single value.
fn spread(values: &[f64]) -> f64 {
    if values.len() < 2 { 0.0 } else { standard_deviation(values) }
}

/// Share of ordered token pairs (each token with itself included) that have the same label in one layer
/// but not in the next; both `[t]`. No token moves in it, only the company it keeps: renaming the
/// experts changes nothing.
///
/// # Errors
/// No tokens, or labels of different lengths.
pub fn layer_instability(
    before_t: ArrayView1<'_, usize>,
    after_t: ArrayView1<'_, usize>,
) -> Result<f64, MetricError> {
    MetricError::check_not_empty("labels", before_t.len())?;
    if before_t.len() != after_t.len() {
        return Err(MetricError::PaddingShape { got: after_t.len(), tokens: before_t.len() });
    }
    let before = pairs_together(before_t.iter());
    let after = pairs_together(after_t.iter());
    let both = pairs_together(before_t.iter().zip(after_t));
    Ok((before + after - 2.0 * both) / (before_t.len() as f64).powi(2))
}

/// Ordered pairs with the same label: the sum of squared counts.
fn pairs_together<L: Ord>(labels: impl Iterator<Item = L>) -> f64 {
    let mut count = BTreeMap::new();
    labels.for_each(|label| *count.entry(label).or_insert(0.0) += 1.0);
    count.values().map(|n: &f64| n * n).sum()
}

/// `average = decay * average + (1 - decay) * value`, from 0.
///
/// # Errors
/// A `decay` outside 0 to 1.
pub fn running_average(values: &[f64], decay: f64) -> Result<f64, MetricError> {
    MetricError::check_range("decay", &[decay], 1.0)?;
    Ok(values.iter().fold(0.0, |average, value| decay * average + (1.0 - decay) * value))
}

/// Errors of each corruption (`[corruption, severity]`), averaged over severities, relative to a
/// baseline's (`[corruption]`); and their mean, the mCE of ImageNet-C (arXiv 1903.12261).
///
/// # Errors
/// Nothing to average, lengths that differ, values that are not finite, a baseline that is not
/// positive.
pub fn corruption_error(
    errors: ArrayView2<'_, f64>,
    baseline: ArrayView1<'_, f64>,
) -> Result<(Array1<f64>, f64), MetricError> {
    MetricError::check_not_empty("errors", errors.len())?;
    MetricError::check_finite("errors", errors)?;
    MetricError::check_finite("baseline", baseline)?;
    if baseline.len() != errors.nrows() {
        return Err(MetricError::Empty { what: "errors or baseline of a corruption" });
    }
    if let Some((index, &value)) = baseline.indexed_iter().find(|(_, value)| **value <= 0.0) {
        return Err(MetricError::Range { what: "baseline", index, value });
    }
    let mean_error = errors.mean_axis(Axis(1)).expect("there are severities");
    let relative = mean_error / baseline;
    let mce = relative.sum() / relative.len() as f64;
    Ok((relative, mce))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Shares 75 and 25: mean 50, deviations 25, sample variance 1250. An even layer: 0.
    #[test]
    fn balance_by_hand() {
        let balance = LayerBalance::of_counts(array![[3.0, 1.0], [2.0, 2.0]].view()).unwrap();
        assert_eq!(balance.percent_le, array![[75.0, 25.0], [50.0, 50.0]]);
        assert_eq!(balance.std_l, [1250f64.sqrt(), 0.0]);
        assert_eq!(balance.mean, 1250f64.sqrt() / 2.0);
        let one = LayerBalance::of_counts(array![[5.0]].view()).unwrap();
        assert_eq!((one.mean, one.std), (0.0, 0.0));
        let error = LayerBalance::of_counts(array![[0.0, 0.0]].view()).unwrap_err();
        assert!(error.to_string().contains("empty"));
    }

    /// Tokens 0 and 1 part: two ordered pairs of nine. Names of experts do not matter.
    #[test]
    fn instability_by_hand() {
        let of = |a: [usize; 3], b: [usize; 3]| {
            layer_instability(array![a[0], a[1], a[2]].view(), array![b[0], b[1], b[2]].view())
        };
        assert_eq!(of([0, 0, 1], [0, 2, 1]), Ok(2.0 / 9.0));
        assert_eq!(of([0, 0, 1], [5, 5, 3]), Ok(0.0));
        assert_eq!(running_average(&[1.0, 0.0], 0.5), Ok(0.25));
        assert!(running_average(&[], 1.5).unwrap_err().to_string().contains("decay"));
    }

    #[test]
    fn corruption_by_hand() {
        let (ce, mce) =
            corruption_error(array![[0.2, 0.4], [0.5, 0.5]].view(), array![0.6, 0.5].view())
                .unwrap();
        assert!((ce[0] - 0.5).abs() < 1e-12 && ce[1] == 1.0 && (mce - 0.75).abs() < 1e-12);
        let error = corruption_error(array![[0.2]].view(), array![0.0].view()).unwrap_err();
        assert!(error.to_string().contains("baseline"));
    }
}
