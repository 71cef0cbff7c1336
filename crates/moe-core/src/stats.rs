//! Statistics of repeated measurements: mean and spread; for methods paired by seed also interval, test
//! and effect size.
//!
//! Draws are arguments: functions that give uniform 64-bit words. The constants in the tests come from
//! scipy 1.17.1 (`docs/statistics.md` says how).

mod bootstrap;
#[cfg(test)]
mod fixture;
mod paired;
mod permutation;

pub use bootstrap::{Interval, bca_interval, resampled_means};
pub use paired::{Paired, PairedOptions};
pub use permutation::{SignFlip, holm, smallest_p};

use crate::metrics::MetricError;
use serde::{Deserialize, Deserializer, Serialize};

/// Share by which two sums may differ and still be equal: rounding must not decide a tie.
const TIE: f64 = 1e-12;

/// Arithmetic mean; NaN without values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation of the sample, with `n - 1` in the denominator; NaN for fewer than two
/// values, whose spread is unknown rather than zero.
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// Several measurements of one quantity, as over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation; NaN for one value, which JSON writes as `null`.
    #[serde(deserialize_with = "null_is_nan")]
    pub sd: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Summarises `values`.
    ///
    /// # Errors
    ///
    /// If there are no values, or one is not finite: a diverged run must not vanish in a mean.
    pub fn of(values: &[f64]) -> Result<Self, MetricError> {
        MetricError::check_not_empty("values", values.len())?;
        MetricError::check_finite("values", values)?;
        Ok(Self {
            n: values.len(),
            mean: mean(values),
            sd: standard_deviation(values),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// Standard error of the mean, `sd / sqrt(n)`; NaN for one value.
    pub fn standard_error(&self) -> f64 {
        self.sd / (self.n as f64).sqrt()
    }
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_by_hand() {
        // mean 5, squared deviations 9 + 1 + 1 + 9 = 20, over n - 1 = 3
        let summary = Summary::of(&[2.0, 4.0, 6.0, 8.0]).unwrap();
        let sd = (20.0f64 / 3.0).sqrt();
        assert_eq!(summary, Summary { n: 4, mean: 5.0, sd, min: 2.0, max: 8.0 });
        assert_eq!(summary.standard_error(), sd / 2.0);
        assert_eq!(standard_deviation(&[1.0, 3.0]), 2f64.sqrt());
    }

    #[test]
    fn one_value_has_no_spread() {
        let summary = Summary::of(&[3.0]).unwrap();
        assert!(summary.sd.is_nan() && summary.standard_error().is_nan());
        assert_eq!((summary.mean, summary.min, summary.max), (3.0, 3.0, 3.0));
        let json = serde_json::to_string(&summary).unwrap();
        assert_eq!(json, r#"{"n":1,"mean":3.0,"sd":null,"min":3.0,"max":3.0}"#);
        assert!(serde_json::from_str::<Summary>(&json).unwrap().sd.is_nan());
    }

    #[test]
    fn summaries_survive_json() {
        let summary = Summary::of(&[0.1, 0.7]).unwrap();
        let json = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
    }

    #[test]
    fn nothing_and_diverged_runs_are_refused() {
        assert_eq!(Summary::of(&[]).unwrap_err().to_string(), "values are empty: bad shape");
        let error = Summary::of(&[1.0, f64::NAN]).unwrap_err().to_string();
        assert_eq!(error, "value 1 of values is NaN, not finite");
        assert!(mean(&[]).is_nan());
    }
}
