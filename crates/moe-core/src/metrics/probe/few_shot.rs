//! V-MoE's few-shot evaluation: ridge probes on a few frozen features a class (arXiv 2106.05974, code).
//!
//! Axis letters: `n` samples, `d` width.

use super::{RidgeOptions, RidgeProbe, accuracy, predictions};
use crate::metrics::MetricError;
use ndarray::ArrayView2;
use std::ops::RangeInclusive;

/// Binary logarithms of the regulariser's weights that are tried.
pub const L2_EXPONENTS: RangeInclusive<i32> = -10..=19;

/// Features `[n, d]` and the class of each.
#[derive(Debug, Clone, Copy)]
pub struct Labelled<'a> {
    /// Features, `[n, d]`.
    pub x_nd: ArrayView2<'a, f64>,
    /// Class of each.
    pub label_n: &'a [usize],
}

/// What a regulariser came to.
#[derive(Debug, Clone, PartialEq)]
pub struct FewShot {
    /// Binary logarithm of the chosen weight.
    pub l2_exponent: i32,
    /// Mean accuracy of its probes where it was chosen.
    pub chosen_on: f64,
    /// Accuracy of each probe on the test features.
    pub accuracy: Vec<f64>,
}

/// Fits a ridge probe to each of `shots` with every weight of [`L2_EXPONENTS`], chooses the weight with the
/// best mean accuracy on `valid`, the smaller of equals, and says how its probes do on `test`. The authors'
/// code chooses on the test accuracies of several data sets; here no test label has a say.
///
/// # Errors
///
/// Those of [`RidgeProbe`], and if there are no shots.
pub fn few_shot(
    shots: &[Labelled<'_>],
    valid: Labelled<'_>,
    test: Labelled<'_>,
    classes: usize,
) -> Result<FewShot, MetricError> {
    MetricError::check_not_empty("shots", shots.len())?;
    let mut best: Option<(i32, f64)> = None;
    for exponent in L2_EXPONENTS {
        let accuracies = accuracies(shots, valid, (exponent, classes))?;
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        if best.is_none_or(|(_, most)| mean > most) {
            best = Some((exponent, mean));
        }
    }
    let (l2_exponent, chosen_on) = best.expect("there are weights");
    Ok(FewShot {
        l2_exponent,
        chosen_on,
        accuracy: accuracies(shots, test, (l2_exponent, classes))?,
    })
}

/// Accuracy of the probe of each of `shots` on `held`.
fn accuracies(
    shots: &[Labelled<'_>],
    held: Labelled<'_>,
    (exponent, classes): (i32, usize),
) -> Result<Vec<f64>, MetricError> {
    let l2 = f64::from(exponent).exp2();
    let options = RidgeOptions { l2, classes: Some(classes), ..RidgeOptions::default() };
    let of_one = |shots: &Labelled<'_>| {
        let probe = RidgeProbe::fit(shots.x_nd, shots.label_n, &options)?;
        let score_nc = probe.scores(held.x_nd)?;
        Ok(accuracy(&predictions(score_nc.view()), held.label_n))
    };
    shots.iter().map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    /// One shot a class, at (3, 0) and (1, 0): mean 2 and deviation 1 of the first feature, so that
    /// standardised it is z = (x - 2) / 1.00001; the second feature is 0 throughout. With targets +-1 the
    /// weight of z is w = 2 s / (2 s^2 + l2), s = 1 / 1.00001, times z for class 0 and -z for class 1,
    /// whatever l2: x > 2 is class 0.
    #[test]
    fn by_hand() {
        let (shot_nd, labels) = (array![[3.0, 0.0], [1.0, 0.0]], [0, 1]);
        let shots = [Labelled { x_nd: shot_nd.view(), label_n: &labels }];
        let held_nd = array![[2.5, 0.0], [9.0, 1.0], [1.5, -1.0], [0.0, 0.0]];
        let held = |label_n| Labelled { x_nd: held_nd.view(), label_n };
        let found = few_shot(&shots, held(&[0, 0, 1, 1]), held(&[0, 1, 1, 0]), 2).unwrap();
        // All weights are equally good, so the smallest is taken; the test labels are half wrong.
        assert_eq!((found.l2_exponent, found.chosen_on), (-10, 1.0));
        assert_eq!(found.accuracy, [0.5]);
        // The probe behind it is the closed form.
        let options = RidgeOptions { l2: 0.25, classes: Some(2), ..RidgeOptions::default() };
        let probe = RidgeProbe::fit(shot_nd.view(), &labels, &options).unwrap();
        let s = 1.0 / 1.00001;
        assert!((probe.weight_pc[[0, 0]] - 2.0 * s / (2.0 * s * s + 0.25)).abs() < 1e-14);
    }

    /// A wide feature that lies, a narrow one that tells: the first misleads only weakly regularised probes
    /// of few samples, so that the choice is not the first weight, and it is made on `valid` alone.
    #[test]
    fn the_weight_is_chosen_on_validation() {
        let wave = |n: usize, d: usize| ((n * 37 + d * 11) as f64 * 0.7).sin();
        let labels: Vec<usize> = (0..40).map(|n| n % 2).collect();
        let x_nd = Array2::from_shape_fn((40, 12), |(n, d)| {
            let sign = if n % 2 == 0 { 1.0 } else { -1.0 };
            wave(n, d) + if d == 0 { 0.6 * sign } else { 0.0 }
        });
        let part = |rows: std::ops::Range<usize>| x_nd.slice(ndarray::s![rows, ..]);
        let shots = [Labelled { x_nd: part(0..10), label_n: &labels[0..10] }];
        let valid = Labelled { x_nd: part(10..25), label_n: &labels[10..25] };
        let test = Labelled { x_nd: part(25..40), label_n: &labels[25..40] };
        let found = few_shot(&shots, valid, test, 2).unwrap();
        for exponent in L2_EXPONENTS {
            let at = accuracies(&shots, valid, (exponent, 2)).unwrap()[0];
            assert!(at <= found.chosen_on, "2^{exponent}");
            assert!(at < found.chosen_on || exponent >= found.l2_exponent);
        }
        let want = accuracies(&shots, test, (found.l2_exponent, 2)).unwrap();
        assert_eq!(found.accuracy, want);
        assert!(few_shot(&[], valid, test, 2).is_err());
    }
}
