//! Curves cut where they leave the chart, which the drawing library does not do.

use std::ops::Range;

type Spot = (f64, f64);

/// The pieces of a curve whose heights lie within `range`.
pub(super) fn clip(curve: &[Spot], range: &Range<f64>) -> Vec<Vec<Spot>> {
    let mut pieces: Vec<Vec<Spot>> = Vec::new();
    for pair in curve.windows(2) {
        let Some((from, to)) = clip_pair(pair[0], pair[1], range) else {
            continue;
        };
        match pieces.last_mut() {
            Some(piece) if piece.last() == Some(&from) => piece.push(to),
            _ => pieces.push(vec![from, to]),
        }
    }
    pieces
}

fn clip_pair(from: Spot, to: Spot, range: &Range<f64>) -> Option<(Spot, Spot)> {
    let above = from.1.min(to.1) > range.end;
    let below = from.1.max(to.1) < range.start;
    (!above && !below).then(|| (to_edge(from, to, range), to_edge(to, from, range)))
}

/// `spot`, or where the way to `other` crosses into the range.
fn to_edge(spot: Spot, other: Spot, range: &Range<f64>) -> Spot {
    let height = spot.1.clamp(range.start, range.end);
    if height == spot.1 {
        return spot;
    }
    let share = (height - spot.1) / (other.1 - spot.1);
    (spot.0 + share * (other.0 - spot.0), height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_end_at_the_edge() {
        let curve = [(0.0, 3.0), (1.0, 1.0), (2.0, 1.0), (3.0, 5.0), (4.0, 5.0), (5.0, 0.0)];
        let pieces = clip(&curve, &(0.0..2.0));
        assert_eq!(
            pieces,
            [vec![(0.5, 2.0), (1.0, 1.0), (2.0, 1.0), (2.25, 2.0)], vec![(4.6, 2.0), (5.0, 0.0)]]
        );
    }

    #[test]
    fn what_is_outside_disappears() {
        assert!(clip(&[(0.0, 3.0), (1.0, 4.0)], &(0.0..2.0)).is_empty());
        assert!(clip(&[(0.0, 1.0)], &(0.0..2.0)).is_empty());
    }
}
