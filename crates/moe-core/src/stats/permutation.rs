//! The sign-flip permutation test of paired differences, and Holm's correction for many tests.

use super::TIE;
use crate::metrics::MetricError;

/// Up to this many differences every sign pattern is tried (about a million); beyond, some are drawn.
const EXACT: usize = 20;

/// What a permutation test found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignFlip {
    /// Two-sided p-value: the share of sign patterns whose sum is at least as far from zero.
    pub p: f64,
    /// Sign patterns tried.
    pub patterns: u64,
    /// Whether these are all there are. If not, `p` has a Monte-Carlo standard error of
    /// `sqrt(p (1 - p) / patterns)`.
    pub exact: bool,
}

impl SignFlip {
    /// Tests whether `differences` are centred on zero. If they are, every sign is as likely as its
    /// opposite. `samples` sign patterns are drawn only where there are more than 20 differences; a
    /// pattern takes one word of `draw` per 64 differences.
    ///
    /// # Errors
    /// No differences, one that is not finite, or no samples where they are needed.
    pub fn of(
        differences: &[f64],
        samples: u64,
        draw: &mut dyn FnMut() -> u64,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("differences", differences.len())?;
        MetricError::check_finite("differences", differences)?;
        let size: f64 = differences.iter().map(|d| d.abs()).sum();
        let bound = differences.iter().sum::<f64>().abs() - TIE * size;
        if differences.len() <= EXACT {
            let (far, patterns) = (far_patterns(differences, 0.0, bound), 1 << differences.len());
            return Ok(Self { p: far as f64 / patterns as f64, patterns, exact: true });
        }
        MetricError::check_setting("samples", samples as f64, "at least 1", samples > 0)?;
        let far = (0..samples).filter(|_| random_sum(differences, draw).abs() >= bound).count();
        // The observed pattern is one of the patterns: a p-value is never zero.
        let p = (far as f64 + 1.0) / (samples as f64 + 1.0);
        Ok(Self { p, patterns: samples, exact: false })
    }
}

/// The smallest p-value that `n` differences can have: all of one sign, and their mirror image.
pub fn smallest_p(n: usize, samples: u64) -> f64 {
    if n <= EXACT { 2.0 / (1u64 << n) as f64 } else { 1.0 / (samples as f64 + 1.0) }
}

/// Sign patterns of `rest` that bring the sum from `sum` to at least `bound` away from zero.
fn far_patterns(rest: &[f64], sum: f64, bound: f64) -> u64 {
    match rest.split_first() {
        None => u64::from(sum.abs() >= bound),
        Some((d, rest)) => far_patterns(rest, sum + d, bound) + far_patterns(rest, sum - d, bound),
    }
}

fn random_sum(differences: &[f64], draw: &mut dyn FnMut() -> u64) -> f64 {
    let chunk = |chunk: &[f64]| {
        let signs = draw();
        let signed = |(i, d): (usize, &f64)| if signs >> i & 1 == 1 { *d } else { -d };
        chunk.iter().enumerate().map(signed).sum::<f64>()
    };
    differences.chunks(64).map(chunk).sum()
}

/// p-values corrected for being many (Holm 1979): whoever rejects those up to `alpha` calls one or
/// more true hypotheses false with a probability of at most `alpha`, dependent or not.
///
/// # Errors
/// A p-value outside 0..=1.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, MetricError> {
    MetricError::check_range("p-values", p_values, 1.0)?;
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let (mut adjusted, mut largest) = (vec![0.0; p_values.len()], 0.0_f64);
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max((p_values.len() - rank) as f64 * p_values[index]).min(1.0);
        adjusted[index] = largest;
    }
    Ok(adjusted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::fixture::{Draws, FEW, MANY, SKEWED, assert_near};

    fn exact(differences: &[f64]) -> SignFlip {
        SignFlip::of(differences, 0, &mut || unreachable!("nothing is drawn")).unwrap()
    }

    /// Of the eight sums ±1 ±2 ±3, only 6 and -6 are 6 from zero; 4, 6 and their mirrors are 4 from it.
    #[test]
    fn flips_by_hand() {
        assert_eq!(exact(&[1.0, 2.0, 3.0]), SignFlip { p: 0.25, patterns: 8, exact: true });
        assert_eq!(exact(&[-1.0, 2.0, 3.0]).p, 0.5);
        assert_eq!(exact(&[0.0, 0.0]).p, 1.0);
        assert_eq!((smallest_p(3, 0), smallest_p(6, 0)), (0.25, 0.03125));
    }

    /// 0.1 + 0.2 is not 0.3 in doubles: the patterns (+, +, -) and (-, -, +) tie with zero all the same.
    #[test]
    fn rounding_does_not_decide_ties() {
        assert_eq!(exact(&[0.1, 0.2, -0.3]).p, 1.0);
        assert_eq!(exact(&[0.1, 0.2, 0.3, -0.6]).p, 1.0);
    }

    /// `scipy.stats.permutation_test` (1.17.1), paired with zeros, all patterns.
    #[test]
    fn agrees_with_scipy() {
        assert_near(exact(&FEW).p, 0.03125);
        assert_near(exact(&SKEWED).p, 0.000_488_281_25);
        assert_near(exact(&[0.3, -0.1, 0.2, 0.4, 0.35, 0.05]).p, 0.09375);
    }

    /// scipy tried all 2^24 patterns; 20,000 drawn ones are within 4 standard errors of that.
    #[test]
    fn drawn_patterns_are_within_their_error() {
        let (mut draws, all) = (Draws(3), 0.841_977_715_492_248_5_f64);
        let got = SignFlip::of(&MANY, 20_000, &mut || draws.next()).unwrap();
        let error = (all * (1.0 - all) / 20_000.0).sqrt();
        assert!(!got.exact && (got.p - all).abs() < 4.0 * error, "{}", got.p);
        let far: Vec<f64> = MANY.iter().map(|d| d.abs()).collect();
        let smallest = SignFlip::of(&far, 999, &mut || draws.next()).unwrap();
        assert_eq!((smallest.p, smallest_p(24, 999)), (0.001, 0.001));
    }

    /// Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04 and then never falling.
    #[test]
    fn holm_by_hand() {
        let got = holm(&[0.03, 0.01, 0.04, 0.02]).unwrap();
        let want = [0.06, 0.04, 0.06, 0.06];
        got.iter().zip(want).for_each(|(&got, want)| assert_near(got, want));
        assert_eq!(holm(&[0.9, 0.8]).unwrap(), [1.0, 1.0]);
        assert!(holm(&[]).unwrap().is_empty());
        assert!(holm(&[1.5]).is_err() && holm(&[f64::NAN]).is_err());
    }

    #[test]
    fn nothing_to_flip_is_refused() {
        assert!(SignFlip::of(&[], 1, &mut || 0).is_err());
        assert!(SignFlip::of(&[f64::INFINITY], 1, &mut || 0).is_err());
        assert!(SignFlip::of(&MANY, 0, &mut || 0).is_err());
    }
}
