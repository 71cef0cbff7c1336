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
        let (offsets, sorted_n) =
            counting_sort(kept.iter().map(|&c| choices.expert_tk[c]), experts);
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
pub(super) fn counting_sort(
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
