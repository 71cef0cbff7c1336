//! How well a score tells pictures of no known class from those of the known ones, and accuracy among some of
//! the classes: the measures of ImageNet-O, ImageNet-A and ImageNet-R (Hendrycks et al. 2021, Natural
//! Adversarial Examples, arXiv 1907.07174; The Many Faces of Robustness, arXiv 2006.16241).
//!
//! Axis letters: `u` unknown samples, `n` samples, known ones where both occur, `v` classes.

use super::MetricError;
use super::probe::predictions;
use crate::score::softmax;
use ndarray::{Array1, ArrayView1, ArrayView2, Axis};

/// The share of unknown samples at which false alarms are counted.
const RECALL: f64 = 0.95;

/// A detector of unknown samples, which are the positive class: a larger score is more unknown.
///
/// Samples of one score stand or fall together, as in scikit-learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Area under the ROC curve: the chance that an unknown sample has a larger score than a known one, equal
    /// scores counted half. 0.5 is chance.
    pub auroc: f64,
    /// Average precision, `sum over thresholds (R_i - R_(i-1)) P_i` without interpolation, as
    /// `average_precision_score` of scikit-learn. Chance is the share of unknown samples among all.
    pub aupr: f64,
    /// Share of known samples above the threshold at which the recall of unknown ones is *closest* to 95 %; of
    /// equally close recalls the higher one, of equal recalls below 1 the lowest threshold. That is what the
    /// code of ImageNet-O does (`fpr_and_fdr_at_recall`); others ask for a recall of at least 95 %.
    pub fpr95: f64,
}

/// Samples whose score is at least that of a threshold.
#[derive(Debug, Clone, Copy)]
struct Above {
    unknown: f64,
    known: f64,
}

impl Detection {
    /// By the scores of unknown samples, `[u]`, and of known ones, `[n]`.
    ///
    /// # Errors
    ///
    /// If there are none of either, or a score is not finite.
    pub fn of(
        unknown_u: ArrayView1<'_, f64>,
        known_n: ArrayView1<'_, f64>,
    ) -> Result<Self, MetricError> {
        for (what, scores) in [("unknown scores", unknown_u), ("known scores", known_n)] {
            MetricError::check_not_empty(what, scores.len())?;
            MetricError::check_finite(what, scores)?;
        }
        let curve = curve(unknown_u, known_n);
        let all = Above { unknown: unknown_u.len() as f64, known: known_n.len() as f64 };
        Ok(Self { auroc: auroc(&curve, all), aupr: aupr(&curve, all), fpr95: fpr95(&curve, all) })
    }
}

/// What lies at or above every distinct score, from the largest score down.
fn curve(unknown_u: ArrayView1<'_, f64>, known_n: ArrayView1<'_, f64>) -> Vec<Above> {
    let unknown = unknown_u.iter().map(|&score| (score, true));
    let mut samples: Vec<_> = unknown.chain(known_n.iter().map(|&score| (score, false))).collect();
    samples.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut above = Above { unknown: 0.0, known: 0.0 };
    // `==`, unlike the order of the sort, holds 0 and -0 for one score; they lie side by side.
    let ties = samples.chunk_by(|a, b| a.0 == b.0).map(|tie| {
        let unknown = tie.iter().filter(|(_, unknown)| *unknown).count();
        above.unknown += unknown as f64;
        above.known += (tie.len() - unknown) as f64;
        above
    });
    ties.collect()
}

/// Every threshold with the one before it; before the first nothing is above.
fn steps(curve: &[Above]) -> impl Iterator<Item = (Above, Above)> + '_ {
    let none = Above { unknown: 0.0, known: 0.0 };
    std::iter::once(none).chain(curve.iter().copied()).zip(curve.iter().copied())
}

/// Trapezoids below the curve of recall over false alarms.
fn auroc(curve: &[Above], all: Above) -> f64 {
    let area = steps(curve).map(|(a, b)| (b.known - a.known) * (a.unknown + b.unknown) / 2.0);
    area.sum::<f64>() / (all.unknown * all.known)
}

fn aupr(curve: &[Above], all: Above) -> f64 {
    let part = |(a, b): (Above, Above)| {
        (b.unknown - a.unknown) / all.unknown * (b.unknown / (b.unknown + b.known))
    };
    steps(curve).map(part).sum()
}

fn fpr95(curve: &[Above], all: Above) -> f64 {
    let distance = |above: &Above| (above.unknown / all.unknown - RECALL).abs();
    // Thresholds below the first that finds everything only add false alarms.
    let full = curve.partition_point(|above| above.unknown < all.unknown);
    let kept = curve[..=full].iter().rev();
    // Of equal ones `min_by` takes the first: the lowest threshold.
    let best = kept.min_by(|a, b| distance(a).total_cmp(&distance(b)));
    best.expect("the last threshold finds everything").known / all.known
}

/// How unknown each sample is to a classifier with these logits `[n, v]`: `-max softmax`, ImageNet-O's score.
///
/// # Errors
///
/// If there are no logits, or one is not finite.
pub fn unknown_score(logit_nv: ArrayView2<'_, f64>) -> Result<Array1<f64>, MetricError> {
    MetricError::check_not_empty("logits", logit_nv.len())?;
    MetricError::check_finite("logits", logit_nv)?;
    let largest = |p_v: ArrayView1<'_, f64>| p_v.iter().copied().fold(0.0, f64::max);
    Ok(softmax(logit_nv).map_axis(Axis(1), |p_v| -largest(p_v)))
}

/// Samples with logits `[n, v]` whose label has the largest logit among `classes`; of equally large ones the
/// first in `classes` counts. So ImageNet-A and ImageNet-R score models of 1,000 classes on their 200.
///
/// # Errors
///
/// If there are no logits or classes, a logit is not finite, labels are not `[n]`, or a class is none of `v`.
pub fn right_among(
    logit_nv: ArrayView2<'_, f64>,
    label_n: &[usize],
    classes: &[usize],
) -> Result<usize, MetricError> {
    MetricError::check_not_empty("logits", logit_nv.len())?;
    MetricError::check_not_empty("classes", classes.len())?;
    MetricError::check_finite("logits", logit_nv)?;
    MetricError::check_shape("labels", &[label_n.len()], &[logit_nv.nrows()])?;
    MetricError::check_below("classes", classes, logit_nv.ncols())?;
    let among = predictions(logit_nv.select(Axis(1), classes).view());
    Ok(among.iter().zip(label_n).filter(|(place, label)| classes[**place] == **label).count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};
    use proptest::prelude::*;

    const TOLERANCE: f64 = 1e-12;

    #[track_caller]
    fn assert_near(got: f64, want: f64) {
        assert!((got - want).abs() <= TOLERANCE, "{got} is not {want}");
    }

    fn of(unknown: &[f64], known: &[f64]) -> Detection {
        Detection::of(Array1::from(unknown.to_vec()).view(), Array1::from(known.to_vec()).view())
            .unwrap()
    }

    /// Unknown 4, 3, 1, known 3, 2: of six pairs the unknown one is larger in 4 > 3, 4 > 2 and 3 > 2, and
    /// 3 = 3 counts half. Going down, precisions are 1/1, 2/3, 2/4, 3/5 at recalls 1/3, 2/3, 2/3, 1, whose
    /// last one is closest to 0.95: all known ones lie above it.
    #[test]
    fn three_and_two_samples_by_hand() {
        let got = of(&[4.0, 3.0, 1.0], &[3.0, 2.0]);
        assert_near(got.auroc, 3.5 / 6.0);
        assert_near(got.aupr, (1.0 + 2.0 / 3.0 + 0.6) / 3.0);
        assert_eq!(got.fpr95, 1.0);
    }

    /// Twenty unknown samples at 21 to 2, and known ones at 22, 2.5 and 1. The recall is 19/20 at 3 and at
    /// 2.5, and of the two the lower threshold counts, which has two of three known ones above it.
    #[test]
    fn the_threshold_with_a_recall_of_95_per_cent() {
        let unknown: Vec<f64> = (2..22).map(f64::from).collect();
        assert_near(of(&unknown, &[22.0, 2.5, 1.0]).fpr95, 2.0 / 3.0);
        // Two of three is nearer to 0.95 than none, though no threshold is exact.
        assert_near(of(&[3.0, 2.0, 1.0], &[2.5, 1.5, 0.0]).fpr95, 2.0 / 3.0);
    }

    #[test]
    fn apart_alike_and_upside_down() {
        let want = |auroc, aupr, fpr95| Detection { auroc, aupr, fpr95 };
        assert_eq!(of(&[2.0, 3.0], &[1.0, 0.0]), want(1.0, 1.0, 0.0));
        assert_eq!(of(&[1.0, 1.0], &[1.0, 1.0, 1.0, 1.0]), want(0.5, 1.0 / 3.0, 1.0));
        assert_eq!(of(&[0.0, -0.0], &[-0.0, 0.0]), want(0.5, 0.5, 1.0));
        assert_eq!(of(&[0.0], &[1.0, 2.0]), want(0.0, 1.0 / 3.0, 1.0));
    }

    /// Odds of 3 to 1 and of 1 to 1: shares of 3/4 and 1/2.
    #[test]
    fn the_score_by_hand() {
        let logit_nv = array![[3f64.ln(), 0.0], [1.0, 1.0]];
        let got = unknown_score(logit_nv.view()).unwrap();
        assert_near(got[0], -0.75);
        assert_near(got[1], -0.5);
        // Sizes that overflow without care.
        assert_eq!(unknown_score(array![[1e4, 0.0]].view()).unwrap(), array![-1.0]);
    }

    /// All four classes: only the last is right. Among classes 1 and 3 the first two are right, too: their
    /// mistakes were classes that do not take part.
    #[test]
    fn accuracy_among_two_of_four_classes_by_hand() {
        let logit_nv = array![
            [9.0, 2.0, 0.0, 1.0],
            [0.0, 1.0, 9.0, 2.0],
            [9.0, 2.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 1.0]
        ];
        let right = |classes: &[usize]| right_among(logit_nv.view(), &[1, 3, 3, 3], classes);
        assert_eq!(right(&[0, 1, 2, 3]), Ok(1));
        assert_eq!(right(&[1, 3]), Ok(3));
        assert_eq!(right(&[3, 1]), Ok(3));
        assert!(right(&[]).unwrap_err().to_string().contains("empty"));
        assert!(right(&[4]).unwrap_err().to_string().contains("out of range 0..4"));
        assert!(right_among(logit_nv.view(), &[1], &[1]).is_err());
    }

    #[test]
    fn what_has_no_curve_is_refused() {
        let refused = |unknown: Array1<f64>, known: Array1<f64>| {
            Detection::of(unknown.view(), known.view()).unwrap_err().to_string()
        };
        assert!(refused(array![], array![1.0]).contains("unknown scores are empty"));
        assert!(refused(array![1.0], array![]).contains("known scores are empty"));
        assert!(refused(array![1.0], array![f64::NAN]).contains("not finite"));
        assert!(unknown_score(Array2::zeros((0, 3)).view()).is_err());
        assert!(unknown_score(array![[f64::INFINITY]].view()).is_err());
    }

    /// Made with scikit-learn 1.9.1 on the scores below, labels 1 for unknown ones: `roc_auc_score`,
    /// `average_precision_score`, and the threshold search of ImageNet-O's code in NumPy.
    #[test]
    fn as_scikit_learn_says() {
        // Sixteen levels leave 18 different scores among 100 samples, 1,009 leave 345 among 400.
        for (unknown, known, levels, scale, want) in [
            (40, 60, 16, 0.5, [0.6577083333333333, 0.6901354679802956, 1.0]),
            (150, 250, 1009, 0.75, [0.6158933333333333, 0.5893923842612829, 0.928]),
        ] {
            let share = |value: usize| (value % levels) as f64 / levels as f64;
            let unknown_u = (0..unknown).map(|i| share(37 * i + 11 * (i % 7) + levels / 4));
            let known_n = (0..known).map(|i| scale * share(53 * i + 5 * (i % 3)));
            let got = Detection::of(
                unknown_u.collect::<Array1<_>>().view(),
                known_n.collect::<Array1<_>>().view(),
            );
            let Detection { auroc, aupr, fpr95 } = got.unwrap();
            for (got, want) in [auroc, aupr, fpr95].into_iter().zip(want) {
                assert_near(got, want);
            }
        }
    }

    /// Counts of pairs, and of samples above every score, one by one.
    fn reference(unknown: &[f64], known: &[f64]) -> Detection {
        let pair = |u: f64, n: f64| f64::from(u8::from(u > n)) + f64::from(u8::from(u == n)) / 2.0;
        let pairs = unknown.iter().flat_map(|u| known.iter().map(move |n| pair(*u, *n)));
        let above = |scores: &[f64], t: f64| scores.iter().filter(|s| **s >= t).count() as f64;
        let [all_u, all_n] = [unknown.len() as f64, known.len() as f64];
        // Every unknown sample adds the precision at its own score.
        let precision = |t: f64| above(unknown, t) / (above(unknown, t) + above(known, t));
        let least = unknown.iter().copied().fold(f64::INFINITY, f64::min);
        let mut thresholds: Vec<f64> = [unknown, known].concat();
        thresholds.retain(|t| *t >= least);
        thresholds.sort_by(f64::total_cmp);
        let mut best = (f64::INFINITY, 0.0);
        for t in thresholds {
            let distance = (above(unknown, t) / all_u - 0.95).abs();
            if distance < best.0 {
                best = (distance, above(known, t) / all_n);
            }
        }
        Detection {
            auroc: pairs.sum::<f64>() / (all_u * all_n),
            aupr: unknown.iter().map(|t| precision(*t)).sum::<f64>() / all_u,
            fpr95: best.1,
        }
    }

    /// Few different values, so that many are equal.
    fn scores() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec((0_u8..12).prop_map(|s| f64::from(s) / 4.0 - 1.0), 1..60)
    }

    proptest! {
        #[test]
        fn as_the_counts_say(unknown in scores(), known in scores()) {
            let (got, want) = (of(&unknown, &known), reference(&unknown, &known));
            prop_assert!((got.auroc - want.auroc).abs() <= TOLERANCE, "{got:?} {want:?}");
            prop_assert!((got.aupr - want.aupr).abs() <= TOLERANCE, "{got:?} {want:?}");
            prop_assert_eq!(got.fpr95, want.fpr95);
        }

        #[test]
        fn only_the_order_of_scores_counts(unknown in scores(), known in scores()) {
            let stretch = |s: &Vec<f64>| s.iter().map(|s| (3.0 * s).exp()).collect::<Vec<_>>();
            let turned = |s: &Vec<f64>| s.iter().rev().copied().collect::<Vec<_>>();
            let got = of(&unknown, &known);
            prop_assert_eq!(got, of(&stretch(&unknown), &stretch(&known)));
            prop_assert_eq!(got, of(&turned(&unknown), &turned(&known)));
        }

        /// Whoever counts as unknown: the other view has the rest of the area.
        #[test]
        fn the_two_views_share_the_area(unknown in scores(), known in scores()) {
            let negated = |s: &Vec<f64>| s.iter().map(|s| -s).collect::<Vec<_>>();
            let (got, other) = (of(&unknown, &known).auroc, of(&known, &unknown).auroc);
            prop_assert!((got + other - 1.0).abs() <= TOLERANCE);
            prop_assert!((of(&negated(&known), &negated(&unknown)).auroc - got).abs() <= TOLERANCE);
        }

        #[test]
        fn all_are_shares(unknown in scores(), known in scores()) {
            let Detection { auroc, aupr, fpr95 } = of(&unknown, &known);
            let least = 1.0 / (unknown.len() + known.len()) as f64;
            prop_assert!((0.0..=1.0 + TOLERANCE).contains(&auroc));
            prop_assert!((least..=1.0 + TOLERANCE).contains(&aupr));
            prop_assert!((0.0..=1.0).contains(&fpr95));
        }

        /// Classes that do not take part, whatever their logits, change nothing; all classes are plain accuracy.
        #[test]
        fn accuracy_among_some_classes(
            values in proptest::collection::vec(-4_i8..4, 5 * 6), labels in proptest::collection::vec(0_usize..3, 6)
        ) {
            let logit_nv = Array2::from_shape_fn((6, 5), |(n, v)| f64::from(values[5 * n + v]));
            let mut other_nv = logit_nv.clone();
            other_nv.slice_mut(ndarray::s![.., 3..]).fill(7.0);
            let some = right_among(logit_nv.view(), &labels, &[0, 1, 2]).unwrap();
            prop_assert_eq!(some, right_among(other_nv.view(), &labels, &[0, 1, 2]).unwrap());
            let all = right_among(logit_nv.view(), &labels, &[0, 1, 2, 3, 4]).unwrap();
            let plain = predictions(logit_nv.view()).iter().zip(&labels).filter(|(a, b)| a == b).count();
            prop_assert_eq!(all, plain);
            prop_assert!(all <= some, "a label that beats all classes beats some of them");
        }
    }
}
