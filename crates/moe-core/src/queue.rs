//! Queueing: which of a group's choices an expert of limited capacity keeps.
//!
//! Axis letters: `t` tokens, `k` choices.

use crate::capacity::DropOrder;
use crate::plan::PlanError;
use crate::select::{Choices, key};
use ndarray::{Array2, ArrayView2};
use std::cmp::Reverse;

/// What became of every choice of one group.
///
/// Choices queue in the order of [`DropOrder`]. An expert keeps the choices that find fewer than
/// `capacity` before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Choices of the same expert that queued earlier, `[t, k]`, rejected ones counted too; -1 for
    /// a choice that never queued.
    pub position_tk: Array2<i64>,
    /// Whether the choice got a place, `[t, k]`.
    pub kept_tk: Array2<bool>,
    /// The order in which tokens are visited, `[t]`; theirs where choices are visited one by one.
    pub order_t: Vec<usize>,
}

impl Queue {
    /// Queues every choice.
    ///
    /// `capacity` is the number of rows an expert keeps; `None` keeps all, 0 none.
    ///
    /// # Errors
    ///
    /// If the two arrays of `choices` differ in shape, a choice names an expert out of range, or a
    /// token chooses an expert twice.
    pub fn of(
        choices: &Choices,
        experts: usize,
        capacity: Option<usize>,
        order: DropOrder,
    ) -> Result<Self, PlanError> {
        let all_tk = Array2::from_elem(choices.expert_tk.dim(), true);
        Self::of_present(choices, all_tk.view(), experts, capacity, order)
    }

    /// Queues the choices that are `true` in `present_tk`, `[t, k]`; the others take no place.
    ///
    /// This is how padded tokens, and second choices that a random policy took back, stay out.
    ///
    /// # Errors
    ///
    /// As [`Queue::of`], and if `present_tk` has another shape.
    pub fn of_present(
        choices: &Choices,
        present_tk: ArrayView2<'_, bool>,
        experts: usize,
        capacity: Option<usize>,
        order: DropOrder,
    ) -> Result<Self, PlanError> {
        choices.check(experts)?;
        PlanError::check_shape("present_tk", choices.expert_tk.shape(), present_tk.shape())?;
        let order_t = order.visit(choices.gate_tk.view());
        let mut position_tk = Array2::from_elem(present_tk.dim(), -1);
        let mut arrived_e = vec![0; experts];
        let mut arrive = |choice: (usize, usize)| {
            if present_tk[choice] {
                let arrived = &mut arrived_e[choices.expert_tk[choice]];
                position_tk[choice] = *arrived;
                *arrived += 1;
            }
        };
        match order.one_by_one(choices.gate_tk.view()) {
            Some(visits) => visits.into_iter().for_each(arrive),
            None => (0..choices.per_token())
                .for_each(|rank| order_t.iter().for_each(|&t| arrive((t, rank)))),
        }
        let places = capacity.map_or(i64::MAX, |rows| i64::try_from(rows).unwrap_or(i64::MAX));
        let kept_tk = position_tk.mapv(|position| (0..places).contains(&position));
        Ok(Self { position_tk, kept_tk, order_t })
    }
}

impl DropOrder {
    /// The order in which tokens with these weights (`[t, k]`, rank order) are visited.
    pub fn visit(self, gate_tk: ArrayView2<'_, f64>) -> Vec<usize> {
        let mut order_t: Vec<usize> = (0..gate_tk.nrows()).collect();
        let priority_t: Vec<f64> = match self {
            Self::Arrival | Self::Position | Self::Gate => return order_t,
            // A token without choices may come at any time.
            Self::BatchPriority => gate_tk
                .rows()
                .into_iter()
                .map(|gate_k| gate_k.first().copied().unwrap_or(0.0))
                .collect(),
            Self::BatchPrioritySum => {
                gate_tk.rows().into_iter().map(|gate_k| gate_k.sum()).collect()
            }
        };
        order_t.sort_by_key(|&token| Reverse(key(priority_t[token])));
        order_t
    }

    /// The choices `(token, rank)` in the order in which they are visited, for the orders that do not
    /// look at ranks.
    fn one_by_one(self, gate_tk: ArrayView2<'_, f64>) -> Option<Vec<(usize, usize)>> {
        let mut visits: Vec<_> = match self {
            Self::Position | Self::Gate => gate_tk.indexed_iter().map(|(at, _)| at).collect(),
            _ => return None,
        };
        if self == Self::Gate {
            visits.sort_by_key(|&at| Reverse(key(gate_tk[at])));
        }
        Some(visits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn choices() -> Choices {
        // Four tokens, three experts, two choices each.
        Choices {
            expert_tk: array![[0, 1], [0, 2], [1, 0], [0, 1]],
            gate_tk: array![[0.5, 0.4], [0.6, 0.1], [0.5, 0.3], [0.7, 0.3]],
        }
    }

    #[test]
    fn arrival_by_hand() {
        let queue = Queue::of(&choices(), 3, Some(2), DropOrder::Arrival).unwrap();
        // First choices 0, 0, 1, 0 give expert 0 the positions 0, 1, 2 and expert 1 the position 0;
        // second ones follow: expert 1 at 1, expert 2 at 0, expert 0 at 3, expert 1 at 2.
        assert_eq!(queue.position_tk, array![[0, 1], [1, 0], [0, 3], [2, 2]]);
        assert_eq!(
            queue.kept_tk,
            array![[true, true], [true, true], [true, false], [false, false]]
        );
        assert_eq!(queue.order_t, [0, 1, 2, 3]);
    }

    #[test]
    fn batch_priority_by_hand() {
        let queue = Queue::of(&choices(), 3, Some(2), DropOrder::BatchPriority).unwrap();
        // First gates 0.5, 0.6, 0.5, 0.7: tokens 3, 1, then 0 before 2 (tie).
        assert_eq!(queue.order_t, [3, 1, 0, 2]);
        // First choices: 3 -> 0 at 0, 1 -> 0 at 1, 0 -> 0 at 2, 2 -> 1 at 0.
        // Second ones: 3 -> 1 at 1, 1 -> 2 at 0, 0 -> 1 at 2, 2 -> 0 at 3.
        assert_eq!(queue.position_tk, array![[2, 2], [1, 0], [0, 3], [0, 1]]);
        assert_eq!(
            queue.kept_tk,
            array![[false, false], [true, true], [true, false], [true, true]]
        );
    }

    #[test]
    fn batch_priority_sum_by_hand() {
        // Sums 0.9, 0.7, 0.8, 1.0.
        assert_eq!(DropOrder::BatchPrioritySum.visit(choices().gate_tk.view()), [3, 0, 2, 1]);
    }

    #[test]
    fn position_and_gate_do_not_look_at_ranks() {
        // Expert 0 is chosen by tokens 0, 1, 3 first and 2 second, with gates 0.5, 0.6, 0.7, 0.3;
        // expert 1 by tokens 0 and 3 second and 2 first, with gates 0.4, 0.3, 0.5.
        let queue = Queue::of(&choices(), 3, Some(2), DropOrder::Position).unwrap();
        assert_eq!(queue.position_tk, array![[0, 0], [1, 0], [1, 2], [3, 2]]);
        let queue = Queue::of(&choices(), 3, Some(2), DropOrder::Gate).unwrap();
        assert_eq!(queue.position_tk, array![[2, 1], [1, 0], [0, 3], [0, 2]]);
        assert_eq!(
            queue.kept_tk,
            array![[false, true], [true, true], [true, false], [true, false]]
        );
    }

    #[test]
    fn the_absent_take_no_place() {
        // Token 0 is padding, the second choice of token 3 was taken back.
        let present_tk = array![[false, false], [true, true], [true, true], [true, false]];
        let queue =
            Queue::of_present(&choices(), present_tk.view(), 3, Some(2), DropOrder::Arrival)
                .unwrap();
        assert_eq!(queue.position_tk, array![[-1, -1], [0, 0], [0, 2], [1, -1]]);
        assert_eq!(
            queue.kept_tk,
            array![[false, false], [true, true], [true, false], [true, false]]
        );
    }

    #[test]
    fn no_capacity_keeps_all_and_zero_none() {
        for (capacity, kept) in [(None, true), (Some(usize::MAX), true), (Some(0), false)] {
            let queue = Queue::of(&choices(), 3, capacity, DropOrder::Arrival).unwrap();
            assert!(queue.kept_tk.iter().all(|&k| k == kept), "capacity {capacity:?}");
        }
    }

    #[test]
    fn no_choices_make_an_empty_queue() {
        let none = Choices { expert_tk: Array2::zeros((2, 0)), gate_tk: Array2::zeros((2, 0)) };
        let queue = Queue::of(&none, 3, Some(1), DropOrder::BatchPriority).unwrap();
        assert_eq!((queue.kept_tk.dim(), queue.order_t), ((2, 0), vec![0, 1]));
    }

    #[test]
    fn impossible_choices_are_refused() {
        let refused = |choices: &Choices, experts| {
            Queue::of(choices, experts, None, DropOrder::Arrival).unwrap_err().to_string()
        };
        let error = refused(&choices(), 2);
        assert_eq!(error, "choice 1 of token 1 is expert 2, out of range: there are 2");
        let twice =
            Choices { expert_tk: array![[0, 1], [2, 2]], gate_tk: array![[1.0, 1.0], [1.0, 1.0]] };
        assert_eq!(refused(&twice, 3), "expert 2 reads token 1 twice");
        let ragged = Choices { gate_tk: array![[1.0]], ..choices() };
        assert_eq!(refused(&ragged, 3), "gate_tk has shape [1, 1], but [4, 2] was expected");
        let present_tk = array![[true]];
        let error = Queue::of_present(&choices(), present_tk.view(), 3, None, DropOrder::Arrival);
        assert!(error.unwrap_err().to_string().starts_with("present_tk has shape [1, 1]"));
    }
}
