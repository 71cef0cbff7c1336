//! Corruption errors of ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261).
//!
//! Axis letters: `k` corruptions, `s` severities.

use super::MetricError;
use ndarray::{Array1, ArrayView2, Axis};

/// Mean error rates of a classifier under corruptions, `[k]` and over all.
///
/// # Errors
///
/// If there are none, or a rate is negative or not finite.
pub fn mean_errors(error_ks: ArrayView2<'_, f64>) -> Result<(Vec<f64>, f64), MetricError> {
    check("errors", error_ks)?;
    let mean_k = error_ks.mean_axis(Axis(1)).expect("there are severities");
    let mean = mean_k.sum() / mean_k.len() as f64;
    Ok((mean_k.to_vec(), mean))
}

/// Errors as shares of a baseline's, which for the published benchmark is AlexNet.
#[derive(Debug, Clone, PartialEq)]
pub struct CorruptionError {
    /// Per corruption, `[k]`.
    pub ce_k: Vec<f64>,
    /// Their mean: mCE.
    pub mce: f64,
}

impl CorruptionError {
    /// `CE_k = sum_s error / sum_s baseline`.
    ///
    /// # Errors
    ///
    /// If there are no rates, the shapes differ, a rate is negative or not finite, or a baseline's
    /// rates sum to 0.
    pub fn of(
        error_ks: ArrayView2<'_, f64>,
        baseline_ks: ArrayView2<'_, f64>,
    ) -> Result<Self, MetricError> {
        Self::relative(error_ks, baseline_ks, 0.0, 0.0)
    }

    /// The relative error: what corruption adds to the error on clean images,
    /// `sum_s (error - clean) / sum_s (baseline - baseline_clean)`.
    ///
    /// # Errors
    ///
    /// As [`CorruptionError::of`], of the differences.
    pub fn relative(
        error_ks: ArrayView2<'_, f64>,
        baseline_ks: ArrayView2<'_, f64>,
        clean: f64,
        baseline_clean: f64,
    ) -> Result<Self, MetricError> {
        check("errors", error_ks)?;
        MetricError::check_shape("baseline", baseline_ks.shape(), error_ks.shape())?;
        check("baseline", baseline_ks)?;
        MetricError::check_finite("clean errors", &[clean, baseline_clean])?;
        MetricError::check_range("clean errors", &[clean, baseline_clean], f64::INFINITY)?;
        let added_k = (&error_ks - clean).sum_axis(Axis(1));
        let baseline_k: Array1<f64> = (&baseline_ks - baseline_clean).sum_axis(Axis(1));
        if let Some(index) = baseline_k.iter().position(|sum| *sum == 0.0) {
            return Err(MetricError::Range { what: "the baseline's sums", index, value: 0.0 });
        }
        let ce_k = (added_k / baseline_k).to_vec();
        let mce = ce_k.iter().sum::<f64>() / ce_k.len() as f64;
        Ok(Self { ce_k, mce })
    }
}

fn check(what: &'static str, error_ks: ArrayView2<'_, f64>) -> Result<(), MetricError> {
    MetricError::check_not_empty(what, error_ks.len())?;
    MetricError::check_finite(what, error_ks)?;
    MetricError::check_range(what, error_ks, f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn corruption_errors_by_hand() {
        let (error_ks, baseline_ks) =
            (array![[0.25, 0.5], [0.5, 1.0]], array![[0.5, 1.0], [0.5, 0.75]]);
        assert_eq!(mean_errors(error_ks.view()), Ok((vec![0.375, 0.75], 0.5625)));
        // 0.75 / 1.5 and 1.5 / 1.25.
        let got = CorruptionError::of(error_ks.view(), baseline_ks.view()).unwrap();
        assert_eq!(got, CorruptionError { ce_k: vec![0.5, 1.2], mce: 0.85 });
        // (0.75 - 0.5) / (1.5 - 0.5) and (1.5 - 0.5) / (1.25 - 0.5).
        let got = CorruptionError::relative(error_ks.view(), baseline_ks.view(), 0.25, 0.25);
        assert_eq!(got.unwrap().ce_k, [0.25, 4.0 / 3.0]);
    }

    #[test]
    fn what_has_no_baseline_is_refused() {
        let of = |a: &ndarray::Array2<f64>, b: &ndarray::Array2<f64>| {
            CorruptionError::of(a.view(), b.view()).unwrap_err().to_string()
        };
        let error_ks = array![[0.5, 0.5]];
        assert!(of(&error_ks, &array![[0.0, 0.0]]).contains("out of range"));
        assert!(of(&error_ks, &array![[0.5]]).contains("shape"));
        assert!(of(&array![[-0.5, 0.5]], &error_ks).contains("out of range"));
        assert!(of(&array![[f64::NAN, 0.5]], &error_ks).contains("not finite"));
    }
}
