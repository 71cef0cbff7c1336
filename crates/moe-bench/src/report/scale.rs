//! Axes: ranges that hold on odd data, and the way from values to places on the page.

use std::ops::Range;

use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordf64;

/// Values beyond this are failures of a run, not something to draw to scale.
const LIMIT: f64 = 1e9;

/// Whether a value can stand on an axis.
pub(super) fn plottable(value: f64) -> bool {
    value.abs() < LIMIT
}

/// A range that holds all plottable values with a margin on both sides; `0..1` if there are none.
pub(super) fn hull(values: impl IntoIterator<Item = f64>, margin: f64) -> Range<f64> {
    let values = values.into_iter().filter(|value| plottable(*value));
    let Some((low, high)) = values.fold(None, widen) else {
        return 0.0..1.0;
    };
    // One value alone would span nothing.
    let pad = (high - low).max(low.abs().max(1e-3) * 1e-3) * margin;
    low - pad..high + pad
}

fn widen(hull: Option<(f64, f64)>, value: f64) -> Option<(f64, f64)> {
    let (low, high) = hull.unwrap_or((value, value));
    Some((low.min(value), high.max(value)))
}

/// The upper end for values of which a few may be far out: `reach` times as far from the least as
/// the upper quartile, if that is less than the largest.
pub(super) fn robust_top(values: &[f64], reach: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| plottable(*value)).collect();
    sorted.sort_by(f64::total_cmp);
    let (Some(&least), Some(&largest)) = (sorted.first(), sorted.last()) else {
        return 1.0;
    };
    let quartile = sorted[sorted.len() * 3 / 4];
    if quartile > least { largest.min(least + reach * (quartile - least)) } else { largest }
}

/// Linear map from values to places.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    /// Values.
    pub(super) from: Range<f64>,
    /// Places of the first and the last value.
    pub(super) to: Range<f64>,
}

impl Scale {
    /// Place of a value.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = (value - self.from.start) / (self.from.end - self.from.start);
        self.to.start + share * (self.to.end - self.to.start)
    }

    /// Whether a value lies on the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        (self.from.start..=self.from.end).contains(&value)
    }
}

/// At most `count` round values within a range, the ones at which the charts put their labels.
pub(super) fn ticks(range: &Range<f64>, count: usize) -> Vec<f64> {
    RangedCoordf64::from(range.clone()).key_points(BoldPoints(count))
}

/// Decimals that tell these values apart and lose nothing, six at most.
pub(super) fn decimals(ticks: &[f64]) -> usize {
    let exact = |decimals: &usize| {
        let unit = 10_f64.powi(*decimals as i32);
        ticks.iter().all(|tick| (tick * unit - (tick * unit).round()).abs() < 1e-6)
    };
    (0..6).find(exact).unwrap_or(6)
}

/// Moves sorted places apart until neighbours are `gap` from each other, without leaving `bounds`
/// if there is room.
pub(super) fn spread_out(places: &mut [f64], gap: f64, bounds: Range<f64>) {
    let mut floor = bounds.start;
    for place in places.iter_mut() {
        *place = place.max(floor);
        floor = *place + gap;
    }
    let mut ceiling = bounds.end;
    for place in places.iter_mut().rev() {
        *place = place.min(ceiling);
        ceiling = *place - gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hulls_are_never_empty() {
        for values in [vec![], vec![2.0], vec![0.0, 0.0], vec![f64::NAN, f64::INFINITY, 1e300]] {
            let range = hull(values, 0.1);
            assert!(range.start < range.end && range.end.is_finite(), "{range:?}");
        }
    }

    #[test]
    fn one_diverged_run_does_not_squash_the_others() {
        assert_eq!(robust_top(&[1.0, 1.1, 1.2, 1.3, 50.0], 3.0), 1.0 + 3.0 * (1.3 - 1.0));
        assert_eq!(robust_top(&[1.0, 1.1, 1.2], 3.0), 1.2);
        assert_eq!(robust_top(&[], 3.0), 1.0);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = ticks(&(1.513..1.688), 4);
        assert_eq!(decimals(&ticks), 2);
        let shown: Vec<String> = ticks.iter().map(|tick| format!("{tick:.2}")).collect();
        assert_eq!(shown, ["1.55", "1.60", "1.65"]);
    }

    #[test]
    fn labels_are_moved_apart() {
        let mut places = [1.0, 2.0, 3.0, 99.0];
        spread_out(&mut places, 10.0, 0.0..100.0);
        assert_eq!(places, [1.0, 11.0, 21.0, 99.0]);
        let mut low = [95.0, 96.0];
        spread_out(&mut low, 10.0, 0.0..100.0);
        assert_eq!(low, [90.0, 100.0]);
    }
}
