//! Balanced assignment: every expert takes the same number of tokens, and the sum of scores is as
//! large as it can be.
//!
//! Lewis et al. 2021 (BASE layers, arXiv 2103.16716), equation (3). The authors approximate with an
//! auction; this solver is exact. Tokens come one after the other; each enters by the best chain of
//! moves that ends at an expert with room (successive shortest paths over the experts alone, so that
//! a token costs at worst `E^3 + E T` operations, not `T^2`).
//!
//! Axis letters: `t` tokens, `e` experts.

use crate::reference::RouteError;
use ndarray::{Array2, ArrayView2};

/// Bits of a score's fixed-point form: 47 more than an `f64` carries, and room for sums in `i128`.
const BITS: i32 = 100;

/// The expert of every token, `[t]`, exactly `t / e` tokens each, with the largest sum of scores.
///
/// Sums are exact (fixed point, 100 bits below the largest score), so that rounding decides nothing.
///
/// ```
/// // Both tokens like expert 0; the second loses less by leaving.
/// let score_te = ndarray::array![[5.0, 1.0], [4.0, 3.0]];
/// assert_eq!(moe_core::assignment::balanced(score_te.view()), Ok(vec![0, 1]));
/// ```
///
/// # Errors
///
/// If the experts do not divide the tokens, or a score is not finite.
pub fn balanced(score_te: ArrayView2<'_, f64>) -> Result<Vec<usize>, RouteError> {
    let (tokens, experts) = score_te.dim();
    if experts == 0 || !tokens.is_multiple_of(experts) {
        let expected = (tokens.next_multiple_of(experts.max(1)), experts.max(1));
        return Err(RouteError::Shape { what: "scores", expected, got: (tokens, experts) });
    }
    RouteError::check_finite("scores", score_te)?;
    let mut state = State::new(fixed_point(score_te), tokens / experts);
    (0..tokens).for_each(|token| state.enter(token));
    Ok(state.expert_t)
}

/// Sum of the scores of the assigned pairs.
///
/// # Panics
///
/// If `expert_t` has another length than `score_te` rows, or names an expert out of range.
pub fn objective(score_te: ArrayView2<'_, f64>, expert_t: &[usize]) -> f64 {
    assert_eq!(score_te.nrows(), expert_t.len(), "score_te {:?}", score_te.shape());
    expert_t.iter().enumerate().map(|(t, &e)| score_te[[t, e]]).sum()
}

/// Scores as integers: multiplied by the power of two that lifts the largest to `BITS` bits.
fn fixed_point(score_te: ArrayView2<'_, f64>) -> Array2<i128> {
    let largest = score_te.fold(0f64, |a, v| a.max(v.abs()));
    if largest == 0.0 {
        return Array2::zeros(score_te.dim());
    }
    // In two halves: the whole power may be out of range where its product is not.
    let lift = BITS - largest.log2().floor() as i32;
    let (half, rest) = (2f64.powi(lift / 2), 2f64.powi(lift - lift / 2));
    score_te.mapv(|v| (v * half * rest) as i128)
}

/// What a move gains that no token can make: less than any sum of scores, and no overflow when one is
/// added.
const NO_MOVE: i128 = i128::MIN / 2;

struct State {
    score_te: Array2<i128>,
    /// Tokens that an expert takes.
    room: usize,
    expert_t: Vec<usize>,
    members_e: Vec<Vec<usize>>,
    /// What the sum gains by the best move from row to column, [`NO_MOVE`] without one.
    gain_ee: Array2<i128>,
    /// The token of that move.
    moved_ee: Array2<usize>,
}

impl State {
    fn new(score_te: Array2<i128>, room: usize) -> Self {
        let (tokens, experts) = score_te.dim();
        Self {
            room,
            expert_t: vec![usize::MAX; tokens],
            members_e: vec![Vec::new(); experts],
            gain_ee: Array2::from_elem((experts, experts), NO_MOVE),
            moved_ee: Array2::zeros((experts, experts)),
            score_te,
        }
    }

    /// Lets a token in; the assignment of all tokens so far stays optimal.
    fn enter(&mut self, token: usize) {
        let (gain_e, before_e) = self.chains(token);
        let free = (0..gain_e.len()).filter(|&e| self.members_e[e].len() < self.room);
        // `max_by_key` keeps the last of equals: reversed, so that ties go to the lower expert.
        let mut end = free.rev().max_by_key(|&e| gain_e[e]).expect("room for every token");
        let mut changed = vec![end];
        while let Some(start) = before_e[end] {
            self.place(self.moved_ee[[start, end]], end);
            end = start;
            changed.push(end);
        }
        self.place(token, end);
        changed.into_iter().for_each(|e| self.renew_moves(e));
    }

    /// The best sum with which `token` can make some expert one longer, and the expert before it in
    /// the chain of moves. Ends because an optimal assignment has no cycle that gains.
    fn chains(&self, token: usize) -> (Vec<i128>, Vec<Option<usize>>) {
        let mut gain_e = self.score_te.row(token).to_vec();
        let mut before_e = vec![None; gain_e.len()];
        // Moves that start at an expert need another look only when its own sum has grown.
        let mut grown_e = vec![true; gain_e.len()];
        while grown_e.contains(&true) {
            for (start, step_e) in self.gain_ee.outer_iter().enumerate() {
                if !std::mem::take(&mut grown_e[start]) {
                    continue;
                }
                let base = gain_e[start];
                for (end, step) in step_e.iter().enumerate() {
                    if base + step > gain_e[end] {
                        gain_e[end] = base + step;
                        before_e[end] = Some(start);
                        grown_e[end] = true;
                    }
                }
            }
        }
        (gain_e, before_e)
    }

    fn place(&mut self, token: usize, expert: usize) {
        if let Some(members) = self.members_e.get_mut(self.expert_t[token]) {
            members.retain(|&member| member != token);
        }
        self.members_e[expert].push(token);
        self.expert_t[token] = expert;
    }

    /// The best moves away from `start`, the later token's among equals.
    fn renew_moves(&mut self, start: usize) {
        let (mut gain_e, mut moved_e) = (self.gain_ee.row_mut(start), self.moved_ee.row_mut(start));
        gain_e.fill(NO_MOVE);
        for &token in &self.members_e[start] {
            let score_e = self.score_te.row(token);
            let own = score_e[start];
            for (end, score) in score_e.iter().enumerate() {
                let better = (score - own, token) > (gain_e[end], moved_e[end]);
                if better && end != start {
                    (gain_e[end], moved_e[end]) = (score - own, token);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    /// The largest sum over all assignments with `room` tokens per expert, by trying them all.
    fn brute(score_te: ArrayView2<'_, f64>, token: usize, room_e: &mut [usize]) -> f64 {
        if token == score_te.nrows() {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for e in 0..room_e.len() {
            if room_e[e] > 0 {
                room_e[e] -= 1;
                best = best.max(score_te[[token, e]] + brute(score_te, token + 1, room_e));
                room_e[e] += 1;
            }
        }
        best
    }

    /// By moving from expert 0 to 1 the tokens lose 7, 2, 0 and 7: the two that lose least go, though
    /// token 1 has the second largest score of all at expert 0.
    #[test]
    fn by_hand() {
        let score_te = array![[9.0, 2.0], [8.0, 6.0], [3.0, 3.0], [7.0, 0.0]];
        let expert_t = balanced(score_te.view()).unwrap();
        assert_eq!(expert_t, [0, 1, 1, 0]);
        assert_eq!(objective(score_te.view(), &expert_t), 9.0 + 6.0 + 3.0 + 7.0);
    }

    #[test]
    fn extremes_of_the_exponent_are_exact() {
        for size in [f64::MIN_POSITIVE, 1e-300, 1.0, 1e300] {
            let score_te = array![[3.0, 1.0], [3.0, 1.0 + f64::EPSILON]].mapv(|v: f64| v * size);
            assert_eq!(balanced(score_te.view()).unwrap(), [0, 1], "{size:e}");
        }
    }

    #[test]
    fn what_cannot_be_balanced_is_refused() {
        let error = balanced(Array2::zeros((5, 3)).view()).unwrap_err().to_string();
        assert_eq!(error, "scores has shape (5, 3), but (6, 3) was expected");
        let error = balanced(array![[0.0, f64::NAN], [0.0, 0.0]].view()).unwrap_err();
        assert!(error.to_string().contains("finite"));
    }

    proptest! {
        /// Small whole numbers, so that ties are common and sums exact.
        #[test]
        fn no_assignment_is_better(values in proptest::collection::vec(-4i8..5, 18), split in 0usize..3) {
            let (experts, room) = [(3, 2), (2, 3), (6, 1)][split];
            let score_te = Array2::from_shape_fn((6, experts), |(t, e)| {
                f64::from(values[(t * experts + e * 5) % 18])
            });
            let expert_t = balanced(score_te.view()).unwrap();
            for e in 0..experts {
                prop_assert_eq!(expert_t.iter().filter(|&&x| x == e).count(), room);
            }
            let want = brute(score_te.view(), 0, &mut vec![room; experts]);
            prop_assert_eq!(objective(score_te.view(), &expert_t), want);
        }

        #[test]
        fn real_scores_too(values in proptest::collection::vec(-1.0..1.0f64, 18)) {
            let score_te = Array2::from_shape_vec((6, 3), values).unwrap();
            let got = objective(score_te.view(), &balanced(score_te.view()).unwrap());
            prop_assert!((got - brute(score_te.view(), 0, &mut [2; 3])).abs() < 1e-12);
        }
    }
}
