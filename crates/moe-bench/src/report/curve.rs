//! Curves over training steps: seeds brought together, smoothed and thinned.

use std::collections::BTreeMap;

use super::scale::plottable;

/// Points that a drawn curve has at most.
pub(super) const DETAIL: usize = 200;

/// All seeds at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Training step.
    pub(super) step: u64,
    /// Mean over seeds.
    pub(super) mean: f64,
    /// Least over seeds.
    pub(super) low: f64,
    /// Largest over seeds.
    pub(super) high: f64,
}

/// Brings seeds together at the steps where every seed has a value that can be drawn.
pub(super) fn over_seeds(curves: &[&[(u64, f64)]]) -> Vec<Point> {
    let mut values: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for &(step, value) in curves.iter().copied().flatten() {
        values.entry(step).or_default().extend(Some(value).filter(|value| plottable(*value)));
    }
    values.retain(|_, values| values.len() == curves.len());
    values.into_iter().map(|(step, values)| point(step, &values)).collect()
}

fn point(step: u64, values: &[f64]) -> Point {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Point { step, mean, low, high }
}

/// What one run differs from another by, at the steps they share.
pub(super) fn difference(run: &[(u64, f64)], other: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let other: BTreeMap<u64, f64> = other.iter().copied().collect();
    run.iter().filter_map(|(step, value)| Some((*step, value - other.get(step)?))).collect()
}

/// Moving average of the means over about a sixteenth of the curve to both sides.
pub(super) fn smooth(curve: &[Point]) -> Vec<Point> {
    let reach = curve.len() / 16;
    let averaged = |at: usize| {
        // Where the curve falls steeply, at its start, only a symmetric window keeps its height. At
        // its flat end a window that shrinks to one point would show noise.
        let before = reach.min(at);
        let after = before.min(curve.len() - 1 - at);
        let window = &curve[at - before..=at + after];
        let mean = window.iter().map(|point| point.mean).sum::<f64>() / window.len() as f64;
        Point { mean, ..curve[at] }
    };
    (0..curve.len()).map(averaged).collect()
}

/// At most `limit` of the items, evenly spaced, the first and the last among them.
pub(super) fn thin<T: Clone>(items: &[T], limit: usize) -> Vec<T> {
    if items.len() <= limit || limit < 2 {
        return items.to_vec();
    }
    let at = |k: usize| k * (items.len() - 1) / (limit - 1);
    (0..limit).map(|k| items[at(k)].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_meet_where_all_have_values() {
        let curves: [&[(u64, f64)]; 2] =
            [&[(1, 1.0), (2, 2.0), (3, f64::NAN)], &[(1, 3.0), (3, 1.0)]];
        assert_eq!(over_seeds(&curves), [Point { step: 1, mean: 2.0, low: 1.0, high: 3.0 }]);
        assert!(over_seeds(&[]).is_empty());
    }

    #[test]
    fn differences_only_at_shared_steps() {
        assert_eq!(difference(&[(1, 3.0), (2, 2.0)], &[(2, 0.5), (9, 1.0)]), [(2, 1.5)]);
    }

    #[test]
    fn smoothing_keeps_the_height_of_a_falling_start() {
        let line: Vec<Point> = (0..160).map(|step| point(step, &[-(step as f64)])).collect();
        let smoothed = smooth(&line);
        assert_eq!(smoothed.len(), 160);
        assert!(smoothed[..150].iter().zip(&line).all(|(a, b)| (a.mean - b.mean).abs() < 1e-9));
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn smoothing_takes_noise_off_the_end() {
        let noise: Vec<Point> = (0..160).map(|step| point(step, &[(step % 2) as f64])).collect();
        assert!((smooth(&noise)[159].mean - 0.5).abs() < 0.1);
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let items: Vec<usize> = (0..1000).collect();
        let kept = thin(&items, 200);
        assert_eq!((kept.len(), kept[0], kept[199]), (200, 0, 999));
        assert_eq!(thin(&items[..3], 200), [0, 1, 2]);
    }
}
