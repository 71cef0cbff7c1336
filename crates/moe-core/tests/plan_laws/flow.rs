//! Laws of moving tokens: dispatch, experts, combine.

use crate::cases::{Case, assert_near, case, gates, network, tokens};
use moe_core::{Choices, DropOrder, Plan, SoftPlan, SparsePlan, score};
use ndarray::{Array2, Axis};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn identity_experts_return_the_token_times_its_weights(case in case()) {
        let (plan, x_td) = (case.plan(), tokens(case.gate_te.nrows()));
        let want_td = &x_td * &plan.weight_per_token().insert_axis(Axis(1));
        let y_td = Plan::from(plan).apply(x_td.view(), |_, rows| rows.to_owned());
        assert_near(&y_td, &want_td);
    }

    #[test]
    fn identical_experts_are_the_dense_network(case in case()) {
        let choices = case.choices().renormalised();
        let plan = SparsePlan::from_choices(&choices, case.experts(), None, case.order).unwrap();
        let x_td = tokens(case.gate_te.nrows());
        let y_td = Plan::from(plan).apply(x_td.view(), |_, rows| network(0, rows));
        assert_near(&y_td, &network(0, x_td.view()));
    }

    #[test]
    fn one_expert_is_the_dense_network(t in 1usize..24) {
        let gate_te = score::softmax(tokens(t).slice(ndarray::s![.., ..1]));
        let choices = Choices::top_k(gate_te.view(), 1);
        let plan = SparsePlan::from_choices(&choices, 1, Some(t), DropOrder::BatchPriority).unwrap();
        let x_td = tokens(t);
        let y_td = Plan::from(plan).apply(x_td.view(), network);
        prop_assert_eq!(y_td, network(0, x_td.view()));
    }

    #[test]
    fn apply_is_the_sum_over_experts(case in case()) {
        // The definition: y_t = sum_e combine_te Expert_e(x_t), every expert computed on all tokens.
        let (plan, x_td) = (Plan::from(case.plan()), tokens(case.gate_te.nrows()));
        let mut want_td = Array2::zeros(x_td.dim());
        for (e, weight_t) in plan.combine_te().columns().into_iter().enumerate() {
            want_td += &(network(e, x_td.view()) * weight_t.insert_axis(Axis(1)));
        }
        assert_near(&plan.apply(x_td.view(), network), &want_td);
    }

    #[test]
    fn dense_forms_agree_with_the_rows(case in case()) {
        let plan = case.plan();
        let (mask_te, combine_te) = (plan.mask_te(), plan.combine_te());
        prop_assert_eq!(mask_te.sum() as usize, plan.token_n().len());
        for e in 0..plan.experts() {
            for (t, weight) in plan.rows(e) {
                prop_assert_eq!((mask_te[[t, e]], combine_te[[t, e]]), (1.0, weight));
            }
            prop_assert_eq!(mask_te.column(e).sum() as usize, plan.load()[e]);
        }
        prop_assert_eq!(&mask_te * &combine_te, combine_te);
        let kept_t: Vec<usize> = mask_te.sum_axis(Axis(1)).iter().map(|&n| n as usize).collect();
        prop_assert_eq!(plan.kept_per_token(), kept_t);
    }

    #[test]
    fn combine_is_the_transpose_of_a_weighted_dispatch(case in case()) {
        // <combine(y), x> = <y, weight * dispatch(x)>
        let (plan, x_td) = (case.plan(), tokens(case.gate_te.nrows()));
        let x_nd = plan.dispatch(x_td.view());
        let y_nd = network(1, x_nd.view());
        let left = (plan.combine(y_nd.view()) * &x_td).sum();
        let weight_n = ndarray::ArrayView1::from(plan.weight_n());
        let right = (y_nd * x_nd * weight_n.insert_axis(Axis(1))).sum();
        prop_assert!((left - right).abs() <= 1e-9 * right.abs().max(1.0), "{left} is not {right}");
    }

    #[test]
    fn a_soft_plan_of_identical_tokens_returns_them(gate_ts in gates(7, 6)) {
        // Columns of dispatch and rows of combine sum to 1, so mixtures of equals change nothing.
        let dispatch_ts = score::softmax(gate_ts.t()).reversed_axes();
        let plan = Plan::from(SoftPlan::new(dispatch_ts, score::softmax(gate_ts.view()), 2).unwrap());
        let x_td = Array2::from_elem((7, 3), 0.7);
        let y_td = plan.apply(x_td.view(), |_, rows| network(0, rows));
        assert_near(&y_td, &network(0, x_td.view()));
        assert_near(&plan.combine_te().sum_axis(Axis(1)).insert_axis(Axis(1)), &Array2::ones((7, 1)));
    }
}

/// Enough tokens for several tasks; the bits must not depend on who does them.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let (t, e) = (1000, 8);
    let logits_te = Array2::from_shape_fn((t, e), |(t, e)| ((t * 37 + e * 101) as f64).sin() * 3.0);
    let run = || {
        let gate_te = score::softmax(logits_te.view());
        let case = Case { gate_te, k: 3, capacity: 300, order: DropOrder::BatchPriority };
        let (x_td, plan) = (tokens(t), case.plan());
        let cos_te = score::cosine(x_td.view(), tokens(e).view(), 1e-12);
        let by_expert = SparsePlan::expert_choice(cos_te.view(), 200).unwrap();
        let y_td = Plan::from(plan.clone()).apply(x_td.view(), network);
        let z_td = Plan::from(by_expert.clone()).apply(x_td.view(), network);
        let log_te = score::log_softmax(logits_te.view());
        (case.gate_te, log_te, cos_te, plan, by_expert, y_td, z_td)
    };
    let with_threads = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
    };
    let alone = with_threads(1);
    for threads in [2, 3] {
        assert_eq!(with_threads(threads), alone, "{threads} threads");
    }
}
