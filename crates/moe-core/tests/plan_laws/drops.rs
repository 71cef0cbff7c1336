//! Laws of capacity: who is kept, who is dropped.

use crate::cases::{Case, ORDERS, case};
use moe_core::{DropOrder, Queue, SparsePlan};
use proptest::prelude::*;

/// The tokens an expert reads, with their weights.
fn kept(plan: &SparsePlan, expert: usize) -> Vec<(usize, f64)> {
    plan.rows(expert).collect()
}

/// Whether every row of `less` is a row of `more`.
fn contains(more: &SparsePlan, less: &SparsePlan) -> bool {
    (0..less.experts()).all(|e| less.rows(e).all(|row| kept(more, e).contains(&row)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_expert_is_over_capacity(case in case()) {
        prop_assert!(case.plan().load().iter().all(|&rows| rows <= case.capacity));
    }

    #[test]
    fn a_row_is_dropped_only_by_a_full_expert(case in case()) {
        let wanted_e = case.plan_with(None).load();
        for (rows, wanted) in case.plan().load().into_iter().zip(wanted_e) {
            prop_assert_eq!(rows, wanted.min(case.capacity));
        }
    }

    #[test]
    fn nothing_is_dropped_without_a_capacity(case in case()) {
        let plan = case.plan_with(None);
        prop_assert_eq!(plan.token_n().len(), case.gate_te.nrows() * case.k);
        prop_assert!(plan.kept_per_token().iter().all(|&choices| choices == case.k));
    }

    #[test]
    fn the_weights_that_go_in_come_out(case in case()) {
        let choices = case.choices();
        let total_t = case.plan_with(None).weight_per_token();
        for (gate_k, total) in choices.gate_tk.rows().into_iter().zip(&total_t) {
            prop_assert!((gate_k.sum() - total).abs() < 1e-12);
        }
        for e in 0..case.experts() {
            // With a capacity too, a kept weight is the gate itself.
            prop_assert!(case.plan().rows(e).all(|(t, weight)| weight == case.gate_te[[t, e]]));
        }
    }

    #[test]
    fn a_chosen_gate_is_never_below_one_left_out(case in case()) {
        let plan = case.plan_with(None);
        let mask_te = plan.mask_te();
        for (gate_e, mask_e) in case.gate_te.rows().into_iter().zip(mask_te.rows()) {
            let of = |side: f64| gate_e.iter().zip(mask_e).filter(move |(_, m)| **m == side).map(|(g, _)| *g);
            let least_chosen = of(1.0).fold(f64::INFINITY, f64::min);
            prop_assert!(of(0.0).all(|left_out| left_out < least_chosen));
        }
    }

    #[test]
    fn more_capacity_never_takes_a_place_away(case in case()) {
        let more = case.plan_with(Some(case.capacity + 1));
        prop_assert!(contains(&more, &case.plan()));
    }

    #[test]
    fn enough_capacity_makes_all_orders_equal(case in case()) {
        let roomy = Some(case.gate_te.nrows());
        let free = Case { order: DropOrder::Arrival, ..case.clone() }.plan_with(None);
        for order in ORDERS {
            let plan = Case { order, ..case.clone() }.plan_with(roomy);
            prop_assert_eq!(plan.combine_te(), free.combine_te());
            prop_assert_eq!(plan.mask_te(), free.mask_te());
        }
        prop_assert_eq!(Case { order: DropOrder::Arrival, ..case }.plan_with(roomy), free);
    }

    #[test]
    fn priority_keeps_the_heaviest(case in case(), by_sum in any::<bool>()) {
        // With one choice per token the first gate and the sum of gates are the same.
        let order = if by_sum { DropOrder::BatchPrioritySum } else { DropOrder::BatchPriority };
        let case = Case { k: 1, order, ..case };
        let (plan, free) = (case.plan(), case.plan_with(None));
        for e in 0..case.experts() {
            let kept = kept(&plan, e);
            let lightest = kept.iter().map(|row| row.1).fold(f64::INFINITY, f64::min);
            prop_assert!(free.rows(e).filter(|row| !kept.contains(row)).all(|row| row.1 < lightest));
        }
    }

    #[test]
    fn arrival_keeps_the_earliest(case in case()) {
        let case = Case { k: 1, order: DropOrder::Arrival, ..case };
        let (plan, free) = (case.plan(), case.plan_with(None));
        for e in 0..case.experts() {
            let earliest: Vec<_> = free.rows(e).take(case.capacity).collect();
            prop_assert!(earliest.is_sorted_by_key(|row| row.0));
            prop_assert_eq!(kept(&plan, e), earliest);
        }
    }

    #[test]
    fn a_second_choice_never_displaces_a_first(case in case()) {
        // The order by sum depends on k, so the first choices alone would queue differently.
        prop_assume!(case.order != DropOrder::BatchPrioritySum);
        let first_only = Case { k: 1, ..case.clone() }.plan();
        prop_assert!(contains(&case.plan(), &first_only));
    }

    #[test]
    fn in_every_queue_first_choices_come_first(case in case()) {
        let choices = case.choices();
        for e in 0..case.experts() {
            let rank = |t: usize| choices.expert_tk.row(t).iter().position(|&chosen| chosen == e);
            let ranks: Vec<_> = case.plan().rows(e).map(|(t, _)| rank(t)).collect();
            prop_assert!(ranks.is_sorted(), "{ranks:?}");
        }
    }

    #[test]
    fn positions_of_an_expert_count_up(case in case()) {
        let choices = case.choices();
        let queue = Queue::of(&choices, case.experts(), Some(case.capacity), case.order).unwrap();
        let mut positions_e = vec![Vec::new(); case.experts()];
        for (choice, &e) in choices.expert_tk.indexed_iter() {
            let position = queue.position_tk[choice];
            positions_e[e].push(position);
            prop_assert_eq!(queue.kept_tk[choice], position < case.capacity as i64);
        }
        for mut positions in positions_e {
            positions.sort_unstable();
            prop_assert!(positions.iter().copied().eq(0..positions.len() as i64));
        }
    }

    #[test]
    fn the_absent_neither_read_nor_displace(case in case(), every in 2usize..4) {
        // Leaving tokens out of the queue is the same as routing without them.
        let choices = case.choices();
        let present = |t: usize| !t.is_multiple_of(every);
        let present_tk = ndarray::Array2::from_shape_fn(choices.expert_tk.dim(), |(t, _)| present(t));
        let (capacity, e) = (Some(case.capacity), case.experts());
        let queue = Queue::of_present(&choices, present_tk.view(), e, capacity, case.order).unwrap();
        let plan = SparsePlan::from_queue(&choices, &queue, e).unwrap();
        let here: Vec<usize> = (0..case.gate_te.nrows()).filter(|&t| present(t)).collect();
        let gate_te = case.gate_te.select(ndarray::Axis(0), &here);
        let without = Case { gate_te, ..case }.plan();
        for expert in 0..e {
            let renumbered: Vec<_> = without.rows(expert).map(|(t, w)| (here[t], w)).collect();
            prop_assert_eq!(kept(&plan, expert), renumbered);
        }
    }

    #[test]
    fn expert_choice_is_perfectly_balanced(case in case()) {
        let plan = SparsePlan::expert_choice(case.gate_te.view(), case.capacity).unwrap();
        prop_assert!(plan.load().iter().all(|&rows| rows == case.capacity));
        let mask_te = plan.mask_te();
        for (e, gate_t) in case.gate_te.columns().into_iter().enumerate() {
            let lightest = plan.rows(e).map(|row| row.1).fold(f64::INFINITY, f64::min);
            for (t, &gate) in gate_t.iter().enumerate() {
                prop_assert_eq!(gate >= lightest, mask_te[[t, e]] == 1.0);
            }
        }
    }
}
