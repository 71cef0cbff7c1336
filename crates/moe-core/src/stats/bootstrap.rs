//! Intervals of a mean by the bootstrap, bias-corrected and accelerated (BCa; Efron 1987, as in Efron
//! and Tibshirani 1993, eq. 14.9 to 14.15; the conventions of `scipy.stats.bootstrap`).

use super::{TIE, mean};
use crate::metrics::MetricError;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

/// Where a quantity lies with some confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Confidence, as 0.95.
    pub confidence: f64,
}

/// Means of `resamples` samples drawn from `values` with replacement. Each draw of an index takes one
/// word of `draw` and keeps its high part: `(word * n) >> 64`.
pub fn resampled_means(
    values: &[f64],
    resamples: usize,
    draw: &mut dyn FnMut() -> u64,
) -> Vec<f64> {
    let n = values.len();
    let mut pick = || values[((u128::from(draw()) * n as u128) >> 64) as usize];
    (0..resamples).map(|_| (0..n).map(|_| pick()).sum::<f64>() / n as f64).collect()
}

/// The BCa interval of the mean of `values`, from the means of its resamples.
///
/// ```
/// use moe_core::stats::{bca_interval, resampled_means};
///
/// let (values, mut state) = ([1.0, 2.0, 4.0], 1u64);
/// let mut draw = || {
///     state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
///     state
/// };
/// let means = resampled_means(&values, 1000, &mut draw);
/// let interval = bca_interval(&values, &means, 0.9)?;
/// assert!(1.0 <= interval.low && interval.low < 7.0 / 3.0 && interval.high <= 4.0);
/// # Ok::<(), moe_core::MetricError>(())
/// ```
///
/// # Errors
/// Fewer than two values, no resamples, a value that is not finite, or a confidence outside 0..1.
pub fn bca_interval(
    values: &[f64],
    resampled: &[f64],
    confidence: f64,
) -> Result<Interval, MetricError> {
    let (inside, some) = (confidence > 0.0 && confidence < 1.0, values.len() >= 2);
    MetricError::check_setting("confidence", confidence, "between 0 and 1", inside)?;
    MetricError::check_setting("number of values", values.len() as f64, "at least 2", some)?;
    MetricError::check_not_empty("resamples", resampled.len())?;
    MetricError::check_finite("values", values)?;
    MetricError::check_finite("resamples", resampled)?;
    if values.iter().all(|value| *value == values[0]) {
        // Equal values resample to themselves; bias and acceleration would be 0/0.
        return Ok(Interval { low: values[0], high: values[0], confidence });
    }
    let mut sorted = resampled.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (bias, acceleration) = (bias(&sorted, mean(values)), acceleration(values));
    let end = |tail: f64| {
        let shifted = bias + Normal::standard().inverse_cdf(tail);
        let level = Normal::standard().cdf(bias + shifted / (1.0 - acceleration * shifted));
        quantile(&sorted, level)
    };
    let tail = (1.0 - confidence) / 2.0;
    Ok(Interval { low: end(tail), high: end(1.0 - tail), confidence })
}

/// The normal quantile of the share of resamples below the estimate, half of those equal to it
/// included; at least half a resample away from 0 and 1, where it would be infinite.
fn bias(sorted: &[f64], estimate: f64) -> f64 {
    // Resamples with the same values in another order are ties, whatever rounding says.
    let tie = TIE * (sorted[sorted.len() - 1] - sorted[0]);
    let below = sorted.partition_point(|value| *value < estimate - tie);
    let up_to = sorted.partition_point(|value| *value <= estimate + tie);
    let half = 0.5 / sorted.len() as f64;
    let share = (below + up_to) as f64 * half;
    Normal::standard().inverse_cdf(share.clamp(half, 1.0 - half))
}

/// Skewness of the jackknifed means over six.
fn acceleration(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let sum: f64 = values.iter().sum();
    let left_out: Vec<f64> = values.iter().map(|value| (sum - value) / (n - 1.0)).collect();
    let centre = mean(&left_out);
    let power = |k: i32| left_out.iter().map(|value| (centre - value).powi(k)).sum::<f64>();
    power(3) / (6.0 * power(2).powf(1.5))
}

/// A quantile with linear interpolation between order statistics.
fn quantile(sorted: &[f64], level: f64) -> f64 {
    let place = level * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = sorted[(below + 1).min(sorted.len() - 1)];
    sorted[below] + (above - sorted[below]) * part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::fixture::{Draws, FEW, SKEWED, assert_near};

    /// Ends from `scipy.stats.bootstrap` (1.17.1), handed the means of the same resamples.
    #[test]
    fn agrees_with_scipy_on_the_same_resamples() {
        let cases: [(&[f64], usize, f64, [f64; 2]); 4] = [
            (&FEW, 999, 0.95, [-0.020_994_302_296_058_21, -0.005_371_093_75]),
            (&FEW, 2000, 0.9, [-0.019_775_390_625, -0.006_347_656_25]),
            (&SKEWED, 999, 0.95, [0.682_711_595_468_182_6, 2.982_719_550_321_006_4]),
            (&SKEWED, 2000, 0.9, [0.765_625, 2.660_919_522_558_416]),
        ];
        for (values, resamples, confidence, [low, high]) in cases {
            let mut draws = Draws(12345);
            let means = resampled_means(values, resamples, &mut || draws.next());
            let got = bca_interval(values, &means, confidence).unwrap();
            assert_near(got.low, low);
            assert_near(got.high, high);
        }
    }

    /// Two resamples below, one equal, one above: share 2.5 / 4. No skew, no acceleration.
    #[test]
    fn bias_and_acceleration_by_hand() {
        let want = Normal::standard().inverse_cdf(0.625);
        assert_eq!(bias(&[0.0, 1.0, 2.0, 3.0], 2.0), want);
        assert!(bias(&[1.0, 2.0], 5.0).is_finite());
        assert_eq!(acceleration(&[1.0, 2.0, 3.0]), 0.0);
        // Left-out means 3/2, 3/2, 0: centre 1, deviations -1/2, -1/2, 1: cubes 3/4, squares 3/2.
        assert_near(acceleration(&[0.0, 0.0, 3.0]), 0.75 / (6.0 * 1.5f64.powf(1.5)));
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 3.0, 7.0], 0.75), 5.0);
        assert_eq!((quantile(&[1.0, 3.0], 0.0), quantile(&[1.0, 3.0], 1.0)), (1.0, 3.0));
    }

    #[test]
    fn equal_values_have_no_width() {
        let got = bca_interval(&[0.25; 4], &[0.25; 9], 0.95).unwrap();
        assert_eq!(got, Interval { low: 0.25, high: 0.25, confidence: 0.95 });
    }

    #[test]
    fn what_has_no_interval_is_refused() {
        let refused = |values: &[f64], confidence| {
            bca_interval(values, &[1.0], confidence).unwrap_err().to_string()
        };
        assert_eq!(refused(&[1.0, 2.0], 1.0), "confidence: 1 is not between 0 and 1");
        assert_eq!(refused(&[1.0], 0.9), "number of values: 1 is not at least 2");
        assert!(refused(&[1.0, f64::NAN], 0.9).contains("not finite"));
        assert!(bca_interval(&[1.0, 2.0], &[], 0.9).is_err());
    }

    /// 90 % intervals of the mean of 20 normal values cover it nearly as often as they say: the share
    /// of 400 lies within 4 standard errors (0.06) of 0.9, and BCa is known to be a little short.
    #[test]
    fn intervals_cover_as_often_as_they_say() {
        let mut draws = Draws(7);
        let mut covered = 0;
        for _ in 0..400 {
            let values: Vec<f64> = (0..20).map(|_| draws.normal()).collect();
            let means = resampled_means(&values, 400, &mut || draws.next());
            let got = bca_interval(&values, &means, 0.9).unwrap();
            covered += usize::from(got.low <= 0.0 && 0.0 <= got.high);
        }
        assert!((336..=384).contains(&covered), "{covered} of 400");
    }
}
