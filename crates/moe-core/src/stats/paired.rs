//! Two methods measured under the same seeds: difference, interval, test, effect size.

use super::bootstrap::{Interval, bca_interval, resampled_means};
use super::permutation::SignFlip;
use super::{mean, standard_deviation};
use crate::metrics::MetricError;
use serde::{Deserialize, Serialize};

/// How differences are judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedOptions {
    /// Confidence of the interval.
    pub confidence: f64,
    /// Resamples of the bootstrap, and sign patterns where not all are tried.
    pub resamples: usize,
}

impl Default for PairedOptions {
    fn default() -> Self {
        Self { confidence: 0.95, resamples: 9999 }
    }
}

/// What the differences of paired measurements say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Method less reference, one value per pair.
    pub differences: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// BCa bootstrap interval of the mean.
    pub interval: Interval,
    /// Two-sided p-value of the sign-flip test.
    pub p: f64,
    /// Whether the test tried every sign pattern.
    pub exact: bool,
    /// Mean over sample standard deviation of the differences (Cohen's d of paired values); absent where
    /// the differences do not vary.
    pub cohens_d: Option<f64>,
    /// The same without its bias in small samples (Hedges' g); absent for two differences too, whose factor is
    /// zero whatever they are.
    pub hedges_g: Option<f64>,
    /// Share of pairs in which the method is below the reference; ties count half.
    pub share_below: f64,
}

impl Paired {
    /// Judges `differences`, one per pair. `draw` gives uniform 64-bit words.
    ///
    /// # Errors
    /// Fewer than two differences, one that is not finite, or options out of range.
    pub fn of(
        differences: &[f64],
        options: PairedOptions,
        draw: &mut dyn FnMut() -> u64,
    ) -> Result<Self, MetricError> {
        let means = resampled_means(differences, options.resamples, draw);
        let interval = bca_interval(differences, &means, options.confidence)?;
        let test = SignFlip::of(differences, options.resamples as u64, draw)?;
        let cohens_d = Some(mean(differences) / standard_deviation(differences));
        let cohens_d = cohens_d.filter(|d| d.is_finite());
        Ok(Self {
            differences: differences.to_vec(),
            mean: mean(differences),
            interval,
            p: test.p,
            exact: test.exact,
            cohens_d,
            hedges_g: cohens_d.and_then(|d| Some(d * small_sample(differences.len())?)),
            share_below: share_below(differences),
        })
    }
}

/// Hedges' factor `Γ(m / 2) / (sqrt(m / 2) Γ((m - 1) / 2))` with `m = n - 1`.
fn small_sample(n: usize) -> Option<f64> {
    let m = (n - 1) as f64;
    // At two values the denominator is Γ(0).
    let factor =
        || (libm::lgamma(m / 2.0) - libm::lgamma((m - 1.0) / 2.0)).exp() / (m / 2.0).sqrt();
    (n > 2).then(factor)
}

fn share_below(differences: &[f64]) -> f64 {
    let point = |d: &f64| if *d < 0.0 { 1.0 } else { f64::from(u8::from(*d == 0.0)) / 2.0 };
    differences.iter().map(point).sum::<f64>() / differences.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::fixture::{Draws, FEW, SKEWED, assert_near};

    fn paired(differences: &[f64]) -> Paired {
        let mut draws = Draws(12345);
        let options = PairedOptions { confidence: 0.95, resamples: 999 };
        Paired::of(differences, options, &mut || draws.next()).unwrap()
    }

    /// numpy and `scipy.special.gammaln` (1.17.1).
    #[test]
    fn effects_agree_with_scipy() {
        for (differences, d, g) in [
            (&FEW[..], -1.118_846_003_902_745, -0.993_762_273_904_456_6),
            (&SKEWED[..], 0.733_031_449_510_207_3, 0.681_689_787_492_781_8),
        ] {
            let got = paired(differences);
            assert_near(got.cohens_d.unwrap(), d);
            assert_near(got.hedges_g.unwrap(), g);
        }
        assert_near(paired(&FEW).interval.low, -0.020_994_302_296_058_21);
        assert_near(paired(&FEW).p, 0.03125);
    }

    #[test]
    fn ties_count_half() {
        assert_eq!(paired(&[-1.0, 0.0, 2.0, -3.0]).share_below, 0.625);
    }

    #[test]
    fn equal_differences_have_no_effect_size() {
        let got = paired(&[0.5, 0.5]);
        assert_eq!((got.cohens_d, got.hedges_g, got.p), (None, None, 0.5));
        assert_eq!(paired(&[1.0, 2.0]).hedges_g, None);
        assert!(paired(&[1.0, 2.0, 4.0]).hedges_g.is_some());
    }

    #[test]
    fn a_single_pair_is_refused() {
        let error = Paired::of(&[1.0], PairedOptions::default(), &mut || 0).unwrap_err();
        assert_eq!(error.to_string(), "number of values: 1 is not at least 2");
    }

    #[test]
    fn what_was_judged_survives_json() {
        let got = paired(&FEW);
        let json = serde_json::to_string(&got).unwrap();
        assert_eq!(serde_json::from_str::<Paired>(&json).unwrap(), got);
    }
}
