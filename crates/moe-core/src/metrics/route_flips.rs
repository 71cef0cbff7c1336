//! Route flips: tokens that go to other experts when the input is damaged.
//!
//! Axis letters: `k` choices.

use std::collections::BTreeSet;

/// A count over tokens of one layer, clean and damaged.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RouteFlips {
    compared: usize,
    flipped: usize,
    overlap: f64,
}

impl RouteFlips {
    /// Counts a token with the experts that it went to, clean and damaged, in whatever order.
    pub fn add(&mut self, clean_k: &[usize], damaged_k: &[usize]) {
        let (clean, damaged): (BTreeSet<_>, BTreeSet<_>) =
            (clean_k.iter().collect(), damaged_k.iter().collect());
        let union = clean.union(&damaged).count();
        self.compared += 1;
        self.flipped += usize::from(clean != damaged);
        // V-MoE's code counts an empty union as no overlap.
        self.overlap += clean.intersection(&damaged).count() as f64 / union.max(1) as f64;
    }

    /// Tokens that were counted.
    pub fn compared(&self) -> usize {
        self.compared
    }

    /// Share of the tokens whose set of experts is another; `None` without tokens.
    pub fn rate(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.flipped as f64 / self.compared as f64)
    }

    /// Mean intersection over union of the two sets (V-MoE's code for routing under attack); `None` without
    /// tokens.
    pub fn iou(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.overlap / self.compared as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same set in another order, one of two exchanged, one of two lost, nothing twice: two flips of four;
    /// overlaps 1, 1/3, 1/2, 0.
    #[test]
    fn flips_by_hand() {
        let mut flips = RouteFlips::default();
        assert_eq!((flips.rate(), flips.iou()), (None, None));
        for (clean, damaged) in
            [(&[0, 1][..], &[1, 0][..]), (&[0, 1], &[2, 0]), (&[3, 4], &[4]), (&[], &[])]
        {
            flips.add(clean, damaged);
        }
        assert_eq!((flips.compared(), flips.rate()), (4, Some(0.5)));
        assert!((flips.iou().unwrap() - 11.0 / 24.0).abs() < 1e-15);
    }
}
