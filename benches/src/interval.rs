//! A median with an interval that assumes nothing about how times are distributed.

/// Chance that the interval leaves out the true median, by either end.
const MISSED: f64 = 0.025;

/// The middle of a sample and the interval that has the true median in 95 cases of 100.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Median {
    /// The sample's median.
    pub middle: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Median {
    /// Of a sample. The ends are order statistics: the sign test's interval, which is the whole range
    /// below six values.
    ///
    /// # Panics
    /// If there are no values, or one is NaN.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
        let (last, cut) = (values.len() - 1, cut(values.len()));
        let middle = (values[last / 2] + values[values.len() / 2]) / 2.0;
        Self { middle, low: values[cut], high: values[last - cut] }
    }
}

/// How many values lie beyond each end: the most for which fewer heads than that, of `n` fair coins,
/// are rarer than [`MISSED`].
fn cut(n: usize) -> usize {
    let mut chance = 0.5f64.powi(n as i32);
    let (mut below, mut cut) = (chance, 0);
    while below <= MISSED {
        cut += 1;
        chance *= (n - cut + 1) as f64 / cut as f64;
        below += chance;
    }
    cut.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the sign test: with 15 values P(at most 3 heads) = 0.0176 and P(at most 4) =
    /// 0.0592, so the ends are the 4th smallest and the 4th largest; with 21 they are the 6th; with
    /// 5 the chance of no head is 0.031 and nothing can be cut.
    #[test]
    fn ends_are_those_of_the_sign_test() {
        for (n, low) in [(5, 0.0), (15, 3.0), (21, 5.0)] {
            let median = Median::of((0..n).rev().map(f64::from).collect());
            let last = f64::from(n - 1);
            assert_eq!(median, Median { middle: last / 2.0, low, high: last - low });
        }
    }
}
