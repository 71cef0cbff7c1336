//! How evenly experts are loaded.
//!
//! Axis letters: `e` experts.

use super::{MetricError, entropy, normalised};
use crate::balance::cv_squared;
use ndarray::{Array1, ArrayView1};
use serde::Serialize;

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
        let total = checked_total(load_e)?;
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
            entropy_normalised: normalised(entropy, load_e.len(), 1.0),
            perplexity: entropy.exp(),
            unused: load_e.iter().filter(|&&load| load == 0.0).count(),
            active: load_e.iter().filter(|&&load| load >= threshold).count(),
        })
    }
}

fn checked_total(load_e: ArrayView1<'_, f64>) -> Result<f64, MetricError> {
    MetricError::check_not_empty("loads", load_e.len())?;
    MetricError::check_finite("loads", load_e)?;
    MetricError::check_range("loads", load_e, f64::INFINITY)?;
    let total = load_e.sum();
    if total > 0.0 { Ok(total) } else { Err(MetricError::NoLoad) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    #[track_caller]
    fn assert_near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} is not {want}");
    }

    #[test]
    fn load_by_hand() {
        // Mean 2, deviations -1, -2, 1, 2: variance 10 / 4, cv2 = 2.5 / 4.
        let stats = LoadStats::of(array![1.0, 0.0, 3.0, 4.0].view()).unwrap();
        assert_eq!((stats.cv2, stats.cv), (0.625, 0.625f64.sqrt()));
        assert_eq!((stats.max_over_mean, stats.violation, stats.min_over_mean), (2.0, 1.0, 0.0));
        assert_eq!((stats.unused, stats.active), (1, 3));
        // Shares 1/8, 0, 3/8, 1/2: entropy (3 ln 2) / 8 + 3 (3 ln 2 - ln 3) / 8 + ln 2 / 2
        let (ln2, ln3) = (2f64.ln(), 3f64.ln());
        let entropy = 3.0 * ln2 / 8.0 + 3.0 * (3.0 * ln2 - ln3) / 8.0 + ln2 / 2.0;
        assert_near(stats.entropy, entropy);
        assert_near(stats.entropy_normalised, entropy / (2.0 * ln2));
        assert_near(stats.perplexity, entropy.exp());
    }

    #[test]
    fn a_minimum_is_not_always_zero() {
        // Mean 3.
        let stats = LoadStats::of_counts(&[2, 4]).unwrap();
        assert_near(stats.min_over_mean, 2.0 / 3.0);
        assert_near(stats.violation, 1.0 / 3.0);
    }

    #[test]
    fn one_expert_is_balanced() {
        let stats = LoadStats::of_counts(&[9]).unwrap();
        assert_eq!((stats.cv, stats.max_over_mean, stats.min_over_mean), (0.0, 1.0, 1.0));
        assert_eq!((stats.entropy, stats.entropy_normalised, stats.perplexity), (0.0, 1.0, 1.0));
    }

    #[test]
    fn the_threshold_itself_is_active() {
        let load_e = array![2.0, 1.0, 0.5];
        for (threshold, active) in [(2.0, 1), (1.0, 2), (0.25, 3)] {
            let stats = LoadStats::with_threshold(load_e.view(), threshold).unwrap();
            assert_eq!(stats.active, active, "threshold {threshold}");
        }
        assert_eq!(LoadStats::of(load_e.view()).unwrap().active, 2);
    }

    #[test]
    fn what_is_no_load_is_refused() {
        let refused = |load_e: &[f64]| LoadStats::of(load_e.into()).unwrap_err().to_string();
        assert_eq!(refused(&[]), "loads are empty: bad shape");
        assert_eq!(refused(&[0.0, 0.0]), "the total load is zero");
        assert_eq!(refused(&[1.0, -1.0]), "value 1 of loads is -1, out of range");
        assert_eq!(refused(&[f64::INFINITY]), "value 0 of loads is inf, not finite");
    }

    #[test]
    fn stats_are_saved_by_name() {
        let stats = LoadStats::of_counts(&[1, 1]).unwrap();
        let json = serde_json::to_value(stats).unwrap();
        assert_eq!((&json["max_over_mean"], &json["unused"]), (&1.0.into(), &0.into()));
    }

    proptest! {
        #[test]
        fn load_stays_in_bounds(counts in proptest::collection::vec(0usize..50, 1..20)) {
            prop_assume!(counts.iter().any(|&count| count > 0));
            let stats = LoadStats::of_counts(&counts).unwrap();
            let experts = counts.len() as f64;
            prop_assert!(stats.cv2 <= experts - 1.0 + 1e-9);
            prop_assert!((0.0..=1.0).contains(&stats.min_over_mean));
            prop_assert!((1.0..=experts + 1e-9).contains(&stats.max_over_mean));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&stats.entropy_normalised));
            prop_assert!(stats.perplexity <= (counts.len() - stats.unused) as f64 + 1e-9);
            // The measure is of shares, not of amounts.
            let tripled: Vec<usize> = counts.iter().map(|count| count * 3).collect();
            let again = LoadStats::of_counts(&tripled).unwrap();
            prop_assert!((again.cv - stats.cv).abs() < 1e-12);
            prop_assert!((again.entropy - stats.entropy).abs() < 1e-12);
        }
    }
}
