//! Candidates take turns; ratios are taken within a round.

use super::Ratio;
use anyhow::Result;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Instant;

/// Something to time.
pub struct Candidate {
    /// Name in tables.
    pub name: String,
    run: Box<dyn FnMut() -> Result<Option<f64>>>,
    /// Seconds outside the experts and in all, summed by the candidate itself.
    shares: Option<Rc<Cell<[f64; 2]>>>,
    /// Bytes of its weights over those of the size's element type.
    pub weight_share: f64,
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Candidate {
    /// A candidate that runs `run` once per round.
    pub fn new(name: &str, mut run: impl FnMut() + 'static) -> Self {
        let run = move || {
            run();
            Ok(None)
        };
        Self { name: name.into(), run: Box::new(run), shares: None, weight_share: 1.0 }
    }

    /// A candidate that says itself how many seconds a round took: one in another process.
    pub fn timed(name: &str, mut run: impl FnMut() -> Result<f64> + 'static) -> Self {
        let run = move || run().map(Some);
        Self { name: name.into(), run: Box::new(run), shares: None, weight_share: 1.0 }
    }

    /// With the sums that it keeps: seconds outside the experts, and seconds in all.
    pub fn with_shares(self, shares: Rc<Cell<[f64; 2]>>) -> Self {
        Self { shares: Some(shares), ..self }
    }

    /// With weights of this share of the element type's bytes.
    pub fn with_weight_share(self, weight_share: f64) -> Self {
        Self { weight_share, ..self }
    }

    /// Share of its time that it spent outside the experts.
    pub fn routing_share(&self) -> Option<f64> {
        let [outside, all] = self.shares.as_ref()?.get();
        (all > 0.0).then(|| outside / all)
    }

    /// Runs it once; the seconds it took.
    ///
    /// # Errors
    /// As [`Rounds::run`].
    pub fn time(&mut self) -> Result<f64> {
        let start = Instant::now();
        let own = (self.run)()?;
        Ok(own.unwrap_or(start.elapsed().as_secs_f64()))
    }
}

/// Seconds by candidate and round.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounds {
    /// One list per candidate, one number per round.
    pub seconds: Vec<Vec<f64>>,
}

/// Rounds before the measured ones.
const WARM_UP: usize = 2;

impl Rounds {
    /// Runs every candidate once per round, at least 5 and at most `most` rounds, and no new round
    /// after `seconds`. Every round begins with another candidate, so that none always follows the
    /// same one.
    ///
    /// # Errors
    /// What a candidate in another process says, or that it is gone.
    pub fn run(candidates: &mut [Candidate], most: usize, seconds: f64) -> Result<Self> {
        for _ in 0..WARM_UP {
            for candidate in candidates.iter_mut() {
                let _ = candidate.time()?;
            }
        }
        // What was summed while warming up is not measured.
        candidates.iter().filter_map(|c| c.shares.as_ref()).for_each(|shares| shares.set([0.0; 2]));
        let mut found = vec![Vec::new(); candidates.len()];
        let start = Instant::now();
        for round in 0..most.max(5) {
            if round >= 5 && start.elapsed().as_secs_f64() > seconds {
                break;
            }
            for offset in 0..candidates.len() {
                let index = (round + offset) % candidates.len();
                found[index].push(candidates[index].time()?);
            }
        }
        Ok(Self { seconds: found })
    }

    /// Number of rounds.
    pub fn count(&self) -> usize {
        self.seconds.first().map_or(0, Vec::len)
    }

    /// Median seconds of a candidate.
    pub fn median(&self, index: usize) -> f64 {
        median(&mut self.seconds[index].clone())
    }

    /// Median over rounds of one candidate's time over another's.
    pub fn ratio_of(&self, above: usize, below: usize) -> Ratio {
        let (ratio, ci) = self.ratio(&self.seconds[above], below);
        Ratio { ratio, ci }
    }

    /// Median over rounds of `bound` over the candidate, with its 95 % interval.
    pub fn ratio(&self, bound: &[f64], index: usize) -> (f64, [f64; 2]) {
        let mut ratios: Vec<f64> =
            bound.iter().zip(&self.seconds[index]).map(|(bound, own)| bound / own).collect();
        let middle = median(&mut ratios);
        (middle, interval(&ratios))
    }
}

/// Median; sorts `values`.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n % 2 {
        _ if n == 0 => f64::NAN,
        1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Distribution-free 95 % interval of the median of sorted values: the pair of order statistics that a
/// binomial(n, 1/2) leaves outside with at most 2.5 % on each side; the range where there are too few.
fn interval(sorted: &[f64]) -> [f64; 2] {
    let n = sorted.len();
    if n == 0 {
        return [f64::NAN; 2];
    }
    let (mut below, mut term, mut at) = (0.0, 0.5f64.powi(n as i32), 0);
    while below + term <= 0.025 && at < n / 2 {
        below += term;
        term *= (n - at) as f64 / (at + 1) as f64;
        at += 1;
    }
    let lower = at.saturating_sub(1);
    [sorted[lower], sorted[n - 1 - lower]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_by_hand() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }

    /// For n = 10 the published interval is the 2nd and 9th value (97.9 %), for n = 5 the range, for
    /// n = 20 the 6th and 15th (95.9 %).
    #[test]
    fn intervals_from_the_table() {
        let sorted = |n: usize| -> Vec<f64> { (1..=n).map(|v| v as f64).collect() };
        assert_eq!(interval(&sorted(5)), [1.0, 5.0]);
        assert_eq!(interval(&sorted(10)), [2.0, 9.0]);
        assert_eq!(interval(&sorted(20)), [6.0, 15.0]);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The machine was twice as slow in the second round; the ratio does not move.
        let rounds = Rounds { seconds: vec![vec![1.0, 2.0, 1.0], vec![2.0, 4.0, 2.0]] };
        assert_eq!(rounds.ratio(&rounds.seconds[0], 1).0, 0.5);
        assert_eq!((rounds.median(1), rounds.count()), (2.0, 3));
    }

    #[test]
    fn a_candidate_in_another_process_is_believed_and_its_error_ends_the_measurement() {
        let mut left = 8;
        let mut far = [Candidate::timed("far", move || {
            left -= 1;
            anyhow::ensure!(left > 0, "it is gone");
            Ok(2.5)
        })];
        assert_eq!(Rounds::run(&mut far, 5, 0.0).unwrap().seconds, [[2.5; 5]]);
        assert_eq!(Rounds::run(&mut far, 5, 0.0).unwrap_err().to_string(), "it is gone");
    }

    #[test]
    fn everybody_runs_equally_often() {
        let counts = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
        let mut candidates: Vec<Candidate> = counts
            .iter()
            .map(|count| {
                let count = Rc::clone(count);
                Candidate::new("c", move || count.set(count.get() + 1))
            })
            .collect();
        let rounds = Rounds::run(&mut candidates, 7, f64::INFINITY).unwrap();
        assert_eq!((rounds.count(), counts[0].get(), counts[1].get()), (7, 9, 9));
    }
}
