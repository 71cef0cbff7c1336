//! Selection: the `k` best of a row, and what every token of a group chose.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices.
//!
//! **Invariant:** ties go to the lower index, here and everywhere in the workspace. Zero and minus
//! zero tie. A NaN score is a programmer error, but a deterministic one: the order is IEEE's total
//! order, in which a NaN with the sign bit clear outranks infinity and one with it set ranks last.

use crate::plan::PlanError;
use crate::score::ROWS_PER_TASK;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};
use std::cmp::Reverse;

/// An integer that is larger for a larger score: integers compare faster, and totally.
///
/// This is the key of [`f64::total_cmp`], but for the two zeros, which it would tell apart.
pub(crate) fn key(score: f64) -> i64 {
    let bits = if score == 0.0 { 0 } else { score.to_bits().cast_signed() };
    // Among negative numbers a larger magnitude is a smaller number: turn their magnitude around.
    bits ^ if bits < 0 { i64::MAX } else { 0 }
}

/// Indices of the `k` largest values, largest first; the lower index wins a tie.
///
/// All indices come back when there are no more than `k`.
///
/// ```
/// assert_eq!(moe_core::top_k([0.2, 0.5, 0.5, 0.1], 3), [1, 2, 0]);
/// ```
pub fn top_k(values: impl IntoIterator<Item = f64>, k: usize) -> Vec<usize> {
    let mut best = Vec::new();
    rank(values.into_iter(), k, &mut best);
    best.into_iter().map(|(_, index)| index).collect()
}

/// Up to this many, the best so far are cheaper to keep sorted than everything is to partition.
const INSERTION_LIMIT: usize = 24;

/// A score's key, turned around so that the natural order puts larger scores first, and its index.
type Entry = (Reverse<i64>, usize);

/// Leaves the entries of the `k` largest values in `best`, in rank order.
fn rank(values: impl Iterator<Item = f64>, k: usize, best: &mut Vec<Entry>) {
    best.clear();
    let mut entries = values.enumerate().map(|(index, value)| (Reverse(key(value)), index));
    if k > INSERTION_LIMIT {
        best.extend(entries);
        return partition(best, k);
    }
    best.extend(entries.by_ref().take(k));
    best.sort_unstable();
    let Some(&(mut worst, _)) = best.last() else { return };
    for entry in entries {
        // An equal value stays out: the one inside has the lower index.
        if entry.0 < worst {
            replace_last(best, entry);
            worst = best[k - 1].0;
        }
    }
}

/// Drops the last of the sorted entries for `entry`, which is put where it belongs.
fn replace_last(best: &mut [Entry], entry: Entry) {
    let mut place = best.len() - 1;
    while place > 0 && entry.0 < best[place - 1].0 {
        best[place] = best[place - 1];
        place -= 1;
    }
    best[place] = entry;
}

/// Cuts `entries` down to the `k` first in order: linear in their number, then `k log k`.
fn partition(entries: &mut Vec<Entry>, k: usize) {
    if k < entries.len() {
        entries.select_nth_unstable(k);
        entries.truncate(k);
    }
    entries.sort_unstable();
}

/// What the tokens of one group chose, in rank order, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// The experts a token chose, `[t, k]`; distinct within a row.
    pub expert_tk: Array2<usize>,
    /// The weight of each choice, `[t, k]`.
    pub gate_tk: Array2<f64>,
}

impl Choices {
    /// Every token takes its `k` best experts of `score_te`; the gates are those scores.
    ///
    /// # Panics
    ///
    /// If there are fewer than `k` experts.
    pub fn top_k(score_te: ArrayView2<'_, f64>, k: usize) -> Self {
        let (tokens, experts) = score_te.dim();
        assert!(k <= experts, "top_k {k} of score_te [{tokens}, {experts}]");
        let mut expert_tk = Array2::zeros((tokens, k));
        let mut gate_tk = Array2::zeros((tokens, k));
        let rows_out = (expert_tk.axis_iter_mut(Axis(0)).into_par_iter())
            .zip(gate_tk.axis_iter_mut(Axis(0)).into_par_iter());
        (score_te.axis_iter(Axis(0)).into_par_iter())
            .zip(rows_out)
            .with_min_len(ROWS_PER_TASK)
            .for_each_init(Vec::new, |best, (score_e, (mut expert_k, mut gate_k))| {
                rank(score_e.iter().copied(), k, best);
                for (rank, &(_, expert)) in best.iter().enumerate() {
                    (expert_k[rank], gate_k[rank]) = (expert, score_e[expert]);
                }
            });
        Self { expert_tk, gate_tk }
    }

    /// The same choices with other weights, `[t, k]`: renormalised, rescaled, or read from another
    /// score than the one that selected.
    ///
    /// # Panics
    ///
    /// If the shapes differ.
    pub fn with_gates(self, gate_tk: Array2<f64>) -> Self {
        assert_eq!(
            self.expert_tk.dim(),
            gate_tk.dim(),
            "expert_tk {:?} with gate_tk {:?}",
            self.expert_tk.shape(),
            gate_tk.shape()
        );
        Self { gate_tk, ..self }
    }

    /// The same choices, each weight divided by the sum of its token's weights.
    ///
    /// A token whose weights sum to zero gets NaN, which [`SparsePlan`](crate::SparsePlan) refuses.
    pub fn renormalised(self) -> Self {
        let sum_t1 = self.gate_tk.sum_axis(Axis(1)).insert_axis(Axis(1));
        let gate_tk = &self.gate_tk / &sum_t1;
        self.with_gates(gate_tk)
    }

    /// Number of tokens, `t`.
    pub fn tokens(&self) -> usize {
        self.expert_tk.nrows()
    }

    /// Choices per token, `k`.
    pub fn per_token(&self) -> usize {
        self.expert_tk.ncols()
    }

    /// Refuses gates of another shape, an expert out of range, and one expert twice for a token.
    pub(crate) fn check(&self, experts: usize) -> Result<(), PlanError> {
        PlanError::check_shape("gate_tk", self.expert_tk.shape(), self.gate_tk.shape())?;
        let mut last_token = vec![usize::MAX; experts];
        for (token, expert_k) in self.expert_tk.outer_iter().enumerate() {
            for (rank, &expert) in expert_k.iter().enumerate() {
                if expert >= experts {
                    return Err(PlanError::Expert { token, rank, expert, experts });
                }
                if std::mem::replace(&mut last_token[expert], token) == token {
                    return Err(PlanError::Twice { expert, token });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    /// The definition: sort everything, stably, by falling value.
    fn top_k_by_sorting(values: &[f64], k: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|&index| Reverse(key(values[index])));
        order.truncate(k);
        order
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top_k([0.5, 0.7, 0.5, 0.7], 3), [1, 3, 0]);
        assert_eq!(top_k([-0.0, 0.0, -0.0], 2), [0, 1]);
    }

    #[test]
    fn fewer_values_than_k_all_come_back() {
        assert_eq!(top_k([1.0, 2.0], 5), [1, 0]);
        assert_eq!(top_k([1.0, 2.0], INSERTION_LIMIT + 1), [1, 0]);
        assert_eq!(top_k([1.0, 2.0], 0), [0usize; 0]);
        assert_eq!(top_k([], 3), [0usize; 0]);
    }

    #[test]
    fn exactly_k_values_are_sorted() {
        for k in [INSERTION_LIMIT, INSERTION_LIMIT + 1] {
            assert_eq!(top_k((0..k).map(|i| i as f64), k), (0..k).rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn nan_follows_the_total_order() {
        let (nan, inf) = (f64::NAN.copysign(1.0), f64::INFINITY);
        assert_eq!(top_k([inf, nan, -nan, -inf], 4), [1, 0, 3, 2]);
    }

    #[test]
    fn choices_by_hand() {
        let score_te = array![[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]];
        let choices = Choices::top_k(score_te.view(), 2);
        assert_eq!(choices.expert_tk, array![[1, 2], [0, 2]]);
        assert_eq!(choices.gate_tk, array![[0.6, 0.3], [0.4, 0.4]]);
        assert_eq!((choices.tokens(), choices.per_token()), (2, 2));
    }

    #[test]
    fn renormalised_by_hand() {
        let score_te = array![[0.125, 0.5, 0.375]];
        let choices = Choices::top_k(score_te.view(), 2).renormalised();
        // 0.5 / 0.875 and 0.375 / 0.875
        assert_eq!(choices.expert_tk, array![[1, 2]]);
        assert_eq!(choices.gate_tk, array![[4.0 / 7.0, 3.0 / 7.0]]);
    }

    #[test]
    #[should_panic(expected = "top_k 4 of score_te [1, 3]")]
    fn too_many_choices_panic() {
        Choices::top_k(array![[0.1, 0.6, 0.3]].view(), 4);
    }

    #[test]
    #[should_panic(expected = "expert_tk [1, 2] with gate_tk [2, 1]")]
    fn gates_of_another_shape_panic() {
        Choices::top_k(array![[0.1, 0.6, 0.3]].view(), 2).with_gates(array![[1.0], [1.0]]);
    }

    proptest! {
        /// Few distinct values, so that ties are common; both algorithms.
        #[test]
        fn top_k_is_a_stable_sort_cut_short(
            values in proptest::collection::vec((-3i8..3).prop_map(f64::from), 0..90), k in 0usize..60,
        ) {
            prop_assert_eq!(top_k(values.iter().copied(), k), top_k_by_sorting(&values, k));
        }

        #[test]
        fn choices_rank_every_row(values in proptest::collection::vec(-3i8..3, 300), k in 0usize..=4) {
            // 75 rows: enough for more than one task
            let score_te = Array2::from_shape_fn((75, 4), |(t, e)| f64::from(values[t * 4 + e]));
            let choices = Choices::top_k(score_te.view(), k);
            for (t, score_e) in score_te.outer_iter().enumerate() {
                let want = top_k_by_sorting(&score_e.to_vec(), k);
                let gates: Vec<f64> = want.iter().map(|&e| score_e[e]).collect();
                prop_assert_eq!(choices.expert_tk.row(t).to_vec(), want);
                prop_assert_eq!(choices.gate_tk.row(t).to_vec(), gates);
            }
        }
    }
}
