//! Laws of symmetry: neither tokens nor experts have a privileged place.

use crate::cases::{Case, assert_near, case, network, tokens};
use moe_core::Plan;
use ndarray::Axis;
use proptest::prelude::*;

/// A case, and permutations of its tokens and of its experts.
fn permuted() -> impl Strategy<Value = (Case, Vec<usize>, Vec<usize>)> {
    case().prop_flat_map(|case| {
        let (t, e) = case.gate_te.dim();
        let shuffled = |n: usize| Just((0..n).collect::<Vec<_>>()).prop_shuffle();
        (Just(case), shuffled(t), shuffled(e))
    })
}

proptest! {
    #[test]
    fn permuting_tokens_permutes_outputs((case, order_t, _) in permuted()) {
        let x_td = tokens(case.gate_te.nrows());
        let y_td = Plan::from(case.plan_with(None)).apply(x_td.view(), network);
        let moved = Case { gate_te: case.gate_te.select(Axis(0), &order_t), ..case };
        let moved_x_td = x_td.select(Axis(0), &order_t);
        let moved_y_td = Plan::from(moved.plan_with(None)).apply(moved_x_td.view(), network);
        prop_assert_eq!(moved_y_td, y_td.select(Axis(0), &order_t));
    }

    #[test]
    fn permuting_tokens_changes_nothing_under_priority((case, order_t, _) in permuted()) {
        // Who is dropped depends on weights alone, and these are distinct.
        let case = Case { order: moe_core::DropOrder::BatchPriority, ..case };
        let moved = Case { gate_te: case.gate_te.select(Axis(0), &order_t), ..case.clone() };
        prop_assert_eq!(moved.plan().mask_te(), case.plan().mask_te().select(Axis(0), &order_t));
    }

    #[test]
    fn permuting_experts_permutes_columns((case, _, order_e) in permuted()) {
        let moved = Case { gate_te: case.gate_te.select(Axis(1), &order_e), ..case.clone() };
        let (plan, moved_plan) = (case.plan(), moved.plan());
        prop_assert_eq!(moved_plan.combine_te(), plan.combine_te().select(Axis(1), &order_e));
        for (to, &from) in order_e.iter().enumerate() {
            prop_assert!(moved_plan.rows(to).eq(plan.rows(from)));
        }
        // Each expert keeps its network, so outputs change by the order of summation at most.
        let x_td = tokens(case.gate_te.nrows());
        let y_td = Plan::from(plan).apply(x_td.view(), network);
        let moved_y_td = Plan::from(moved_plan).apply(x_td.view(), |e, rows| network(order_e[e], rows));
        assert_near(&moved_y_td, &y_td);
    }
}
