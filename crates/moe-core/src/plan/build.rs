//! Building sparse plans: from queued choices, from experts that choose, from lists, from groups.
//!
//! Axis letters: `g` groups, `t` tokens per group, `e` experts, `k` choices, `n` routed rows.

use super::{PlanError, SparsePlan};
use crate::capacity::DropOrder;
use crate::queue::Queue;
use crate::select::{Choices, top_k};
use ndarray::ArrayView2;
use rayon::prelude::*;

impl SparsePlan {
    /// One group in which every token goes to the experts it chose, as far as they have room.
    ///
    /// `capacity` is the number of rows an expert keeps; `None` keeps all, 0 none.
    ///
    /// # Errors
    ///
    /// If a choice names an expert out of range, a token chooses an expert twice, or a weight is
    /// not finite.
    pub fn from_choices(
        choices: &Choices,
        experts: usize,
        capacity: Option<usize>,
        order: DropOrder,
    ) -> Result<Self, PlanError> {
        Self::from_queue(choices, &Queue::of(choices, experts, capacity, order)?, experts)
    }

    /// One group of the choices that a queue kept.
    ///
    /// The gates may differ from those that made the queue: V-MoE prioritises by unnormalised
    /// weights whatever it combines with.
    ///
    /// # Errors
    ///
    /// As [`SparsePlan::from_choices`], and if `queue` has another shape than `choices`.
    pub fn from_queue(choices: &Choices, queue: &Queue, experts: usize) -> Result<Self, PlanError> {
        choices.check(experts)?;
        PlanError::check_shape("kept_tk", choices.expert_tk.shape(), queue.kept_tk.shape())?;
        let kept: Vec<(usize, usize)> = (0..choices.per_token())
            .flat_map(|rank| queue.order_t.iter().map(move |&token| (token, rank)))
            .filter(|&choice| queue.kept_tk[choice])
            .collect();
        let (offsets, mut sorted_n) =
            counting_sort(kept.iter().map(|&c| choices.expert_tk[c]), experts);
        // Already so, and found to be in one pass, unless the queue does not look at ranks.
        for rows in offsets.windows(2) {
            sorted_n[rows[0]..rows[1]].sort_by_key(|&i| queue.position_tk[kept[i]]);
        }
        let token_n = sorted_n.iter().map(|&i| kept[i].0).collect();
        let weight_n = sorted_n.iter().map(|&i| choices.gate_tk[kept[i]]).collect();
        Self::from_parts(1, choices.tokens(), offsets, token_n, weight_n)
    }

    /// One group in which every expert takes the `capacity` tokens that weigh most for it.
    ///
    /// A capacity beyond the tokens takes them all. The rows of an expert are in rank order.
    /// Zhou et al. 2022, *Mixture-of-Experts with Expert Choice Routing* (arXiv 2202.09368).
    ///
    /// # Errors
    ///
    /// If there are no experts, or a weight is not finite.
    pub fn expert_choice(
        weight_te: ArrayView2<'_, f64>,
        capacity: usize,
    ) -> Result<Self, PlanError> {
        let choose = |e: usize| -> Vec<(usize, f64)> {
            let column_t = weight_te.column(e);
            top_k(column_t.iter().copied(), capacity)
                .into_iter()
                .map(|t| (t, column_t[t]))
                .collect()
        };
        let lists: Vec<_> = (0..weight_te.ncols()).into_par_iter().map(choose).collect();
        Self::from_lists(weight_te.nrows(), &lists)
    }

    /// One group from the `(token, weight)` rows of every expert, `[e]` lists.
    ///
    /// # Errors
    ///
    /// If there are no experts, a token is out of range or given twice to an expert, or a weight is
    /// not finite.
    pub fn from_lists(tokens: usize, lists: &[Vec<(usize, f64)>]) -> Result<Self, PlanError> {
        let (token_n, weight_n) = lists.iter().flatten().copied().unzip();
        Self::from_parts(1, tokens, running_sum(lists.iter().map(Vec::len)), token_n, weight_n)
    }

    /// The groups of several plans, one after the other.
    ///
    /// # Errors
    ///
    /// If there are none, or they differ in tokens per group or in experts.
    pub fn stack(plans: &[Self]) -> Result<Self, PlanError> {
        let first = plans.first().ok_or(PlanError::NoGroups)?;
        let size = |plan: &Self| [plan.tokens, plan.experts()];
        for plan in plans {
            PlanError::check_shape("[t, e] of a stacked plan", &size(first), &size(plan))?;
        }
        let bases = running_sum(plans.iter().map(Self::all_tokens));
        let (token_n, weight_n) = (0..first.experts())
            .flat_map(|expert| {
                plans.iter().zip(&bases).map(move |(plan, base)| (plan, expert, base))
            })
            .flat_map(|(plan, expert, base)| plan.rows(expert).map(move |(t, w)| (base + t, w)))
            .unzip();
        let load_e = (0..first.experts()).map(|e| plans.iter().map(|p| p.span(e).len()).sum());
        let groups = plans.iter().map(Self::groups).sum();
        Self::from_parts(groups, first.tokens, running_sum(load_e), token_n, weight_n)
    }

    /// One of the groups, on its own.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn group(&self, group: usize) -> Self {
        assert!(group < self.groups, "group {group} of a plan of {} groups", self.groups);
        let lists: Vec<_> =
            (0..self.experts()).map(|expert| self.group_rows(expert, group).collect()).collect();
        Self::from_lists(self.tokens, &lists).expect("a group of a plan keeps its invariants")
    }
}

/// Sums of the first 0, 1, 2, ... counts.
fn running_sum(counts: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut sums = vec![0];
    sums.extend(counts.scan(0, |sum, count| {
        *sum += count;
        Some(*sum)
    }));
    sums
}

/// Sorts items by key, stably and in linear time: where each key's items start (and the end), and
/// the items' numbers in sorted order.
fn counting_sort(
    keys: impl Iterator<Item = usize> + Clone,
    key_count: usize,
) -> (Vec<usize>, Vec<usize>) {
    let mut counts = vec![0; key_count];
    keys.clone().for_each(|key| counts[key] += 1);
    let offsets = running_sum(counts.into_iter());
    let mut next = offsets.clone();
    let mut sorted = vec![0; offsets[key_count]];
    for (item, key) in keys.enumerate() {
        sorted[next[key]] = item;
        next[key] += 1;
    }
    (offsets, sorted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn rows(plan: &SparsePlan) -> Vec<Vec<(usize, f64)>> {
        (0..plan.experts()).map(|expert| plan.rows(expert).collect()).collect()
    }

    /// Three tokens; first choices 0, 0, 1, second ones 1, 2, 0.
    fn choices() -> Choices {
        let score_te = array![[0.5, 0.4, 0.1], [0.7, 0.1, 0.2], [0.3, 0.6, 0.1]];
        Choices::top_k(score_te.view(), 2)
    }

    #[test]
    fn from_choices_by_hand() {
        let plan = SparsePlan::from_choices(&choices(), 3, None, DropOrder::Arrival).unwrap();
        // Expert 0: first choice of tokens 0 and 1, then second choice of token 2; and so on.
        let want = [vec![(0, 0.5), (1, 0.7), (2, 0.3)], vec![(2, 0.6), (0, 0.4)], vec![(1, 0.2)]];
        assert_eq!(rows(&plan), want);
        assert_eq!((plan.groups(), plan.tokens()), (1, 3));
        let plan = SparsePlan::from_choices(&choices(), 3, Some(1), DropOrder::Arrival).unwrap();
        assert_eq!(rows(&plan), [[(0, 0.5)], [(2, 0.6)], [(1, 0.2)]]);
        // By falling first gate the tokens come 1, 2, 0.
        let plan = SparsePlan::from_choices(&choices(), 3, Some(2), DropOrder::BatchPriority);
        let want = [vec![(1, 0.7), (0, 0.5)], vec![(2, 0.6), (0, 0.4)], vec![(1, 0.2)]];
        assert_eq!(rows(&plan.unwrap()), want);
    }

    #[test]
    fn gates_may_change_after_queueing() {
        let queue = Queue::of(&choices(), 3, Some(1), DropOrder::BatchPriority).unwrap();
        let plan = SparsePlan::from_queue(&choices().renormalised(), &queue, 3).unwrap();
        let want = [[(1, 0.7 / (0.7 + 0.2))], [(2, 0.6 / (0.6 + 0.3))], [(1, 0.2 / (0.7 + 0.2))]];
        assert_eq!(rows(&plan), want);
    }

    #[test]
    fn a_queue_of_other_choices_is_refused() {
        let queue = Queue::of(&choices(), 3, None, DropOrder::Arrival).unwrap();
        let other = Choices::top_k(array![[0.5, 0.5]].view(), 2);
        let error = SparsePlan::from_queue(&other, &queue, 2).unwrap_err().to_string();
        assert_eq!(error, "kept_tk has shape [3, 2], but [1, 2] was expected");
        let error = SparsePlan::from_queue(&choices(), &queue, 2).unwrap_err();
        assert_eq!(error, PlanError::Expert { token: 1, rank: 1, expert: 2, experts: 2 });
    }

    #[test]
    fn expert_choice_by_hand() {
        let weight_te = array![[0.9, 0.1], [0.2, 0.8], [0.6, 0.8]];
        let plan = SparsePlan::expert_choice(weight_te.view(), 2).unwrap();
        assert_eq!(rows(&plan), [[(0, 0.9), (2, 0.6)], [(1, 0.8), (2, 0.8)]]);
        assert_eq!(SparsePlan::expert_choice(weight_te.view(), 9).unwrap().load(), [3, 3]);
        assert_eq!(SparsePlan::expert_choice(weight_te.view(), 0).unwrap().load(), [0, 0]);
        let nothing = SparsePlan::expert_choice(ndarray::Array2::zeros((3, 0)).view(), 1);
        assert_eq!(nothing, Err(PlanError::NoExperts));
    }

    #[test]
    fn stack_by_hand() {
        let one = SparsePlan::from_lists(2, &[vec![(1, 0.5)], vec![(0, 0.25)]]).unwrap();
        let two = SparsePlan::from_lists(2, &[vec![(0, 1.0), (1, 2.0)], vec![]]).unwrap();
        let stacked = SparsePlan::stack(&[one.clone(), two.clone()]).unwrap();
        assert_eq!(rows(&stacked), [vec![(1, 0.5), (2, 1.0), (3, 2.0)], vec![(0, 0.25)]]);
        assert_eq!((stacked.groups(), stacked.tokens()), (2, 2));
        assert_eq!((stacked.group(0), stacked.group(1)), (one.clone(), two));
        let taller = SparsePlan::stack(&[stacked.clone(), one.clone()]).unwrap();
        assert_eq!((taller.groups(), taller.group(2)), (3, one));
        assert_eq!(taller.group_load(1), [2, 0]);
    }

    #[test]
    fn misfits_do_not_stack() {
        let of = |tokens, experts| SparsePlan::from_lists(tokens, &vec![vec![]; experts]).unwrap();
        assert_eq!(SparsePlan::stack(&[]), Err(PlanError::NoGroups));
        for other in [of(3, 2), of(2, 3)] {
            let error = SparsePlan::stack(&[of(2, 2), other]).unwrap_err();
            assert!(matches!(error, PlanError::Shape { .. }), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "group 1 of a plan of 1 groups")]
    fn a_group_too_far_panics() {
        SparsePlan::from_lists(1, &[vec![]]).unwrap().group(1);
    }

    #[test]
    fn counting_sort_is_stable() {
        let sorted = counting_sort([2, 0, 2, 0, 3].into_iter(), 4);
        assert_eq!(sorted, (vec![0, 2, 2, 4, 5], vec![1, 3, 0, 2, 4]));
    }
}
