//! Laws of groups: they never see each other.

use crate::cases::{Case, ORDERS, gates, network, tokens};
use moe_core::{Plan, SparsePlan};
use ndarray::{Axis, concatenate, s};
use proptest::prelude::*;

/// Two or three groups of one size, routed alike.
fn groups() -> impl Strategy<Value = Vec<Case>> {
    (2usize..=3, 1usize..=8, 1usize..=5).prop_flat_map(|(g, t, e)| {
        let settings = (1..=e, 1..=t, prop::sample::select(&ORDERS[..]));
        (prop::collection::vec(gates(t, e), g), settings).prop_map(
            |(gates, (k, capacity, order))| {
                gates.into_iter().map(|gate_te| Case { gate_te, k, capacity, order }).collect()
            },
        )
    })
}

fn stack(cases: &[Case]) -> SparsePlan {
    let plans: Vec<SparsePlan> = cases.iter().map(Case::plan).collect();
    SparsePlan::stack(&plans).unwrap()
}

proptest! {
    #[test]
    fn a_stack_holds_its_plans(cases in groups()) {
        let stacked = stack(&cases);
        prop_assert_eq!(stacked.groups(), cases.len());
        for (g, case) in cases.iter().enumerate() {
            prop_assert_eq!(stacked.group(g), case.plan());
            prop_assert_eq!(stacked.group_load(g), case.plan().load());
            prop_assert!(stacked.group_load(g).iter().all(|&rows| rows <= case.capacity));
        }
    }

    #[test]
    fn a_stack_computes_what_its_plans_do_apart(cases in groups()) {
        let (stacked, t) = (stack(&cases), cases[0].gate_te.nrows());
        let x_td = tokens(t * cases.len());
        let apart: Vec<_> = (cases.iter().enumerate())
            .map(|(g, case)| {
                let x_td = x_td.slice(s![g * t..(g + 1) * t, ..]);
                Plan::from(case.plan()).apply(x_td, network)
            })
            .collect();
        let views: Vec<_> = apart.iter().map(|y_td| y_td.view()).collect();
        let together = Plan::from(stacked).apply(x_td.view(), network);
        prop_assert_eq!(together, concatenate(Axis(0), &views).unwrap());
    }

    #[test]
    fn one_group_does_not_disturb_another(cases in groups()) {
        let mut changed = cases.clone();
        changed[1].gate_te.invert_axis(Axis(0));
        prop_assert_eq!(stack(&changed).group(0), stack(&cases).group(0));
    }

    #[test]
    fn stacking_is_associative(cases in groups()) {
        let (first, rest) = cases.split_at(1);
        prop_assert_eq!(SparsePlan::stack(&[stack(first), stack(rest)]).unwrap(), stack(&cases));
    }

    #[test]
    fn rows_are_sorted_by_expert_then_group(cases in groups()) {
        let stacked = stack(&cases);
        for e in 0..stacked.experts() {
            let groups: Vec<_> = stacked.rows(e).map(|(token, _)| token / stacked.tokens()).collect();
            prop_assert!(groups.is_sorted());
        }
    }
}
