//! Laws of the parts: a plan is rebuilt from them, and damaged parts are refused.

use crate::cases::case;
use moe_core::{PlanError, SparsePlan};
use proptest::prelude::*;

/// The parts of a plan, to take apart, damage and put together again.
#[derive(Clone)]
struct Parts {
    groups: usize,
    tokens: usize,
    offsets: Vec<usize>,
    token_n: Vec<usize>,
    weight_n: Vec<f64>,
}

impl Parts {
    fn of(plan: &SparsePlan) -> Self {
        Self {
            groups: plan.groups(),
            tokens: plan.tokens(),
            offsets: plan.offsets().to_vec(),
            token_n: plan.token_n().to_vec(),
            weight_n: plan.weight_n().to_vec(),
        }
    }

    fn build(self) -> Result<SparsePlan, PlanError> {
        SparsePlan::from_parts(self.groups, self.tokens, self.offsets, self.token_n, self.weight_n)
    }

    fn damaged(&self, damage: impl FnOnce(&mut Self)) -> Result<SparsePlan, PlanError> {
        let mut parts = self.clone();
        damage(&mut parts);
        parts.build()
    }
}

proptest! {
    #[test]
    fn parts_and_lists_rebuild_the_plan(case in case()) {
        let plan = case.plan();
        prop_assert_eq!(Parts::of(&plan).build(), Ok(plan.clone()));
        let lists: Vec<Vec<_>> = (0..plan.experts()).map(|e| plan.rows(e).collect()).collect();
        prop_assert_eq!(SparsePlan::from_lists(plan.tokens(), &lists), Ok(plan));
    }

    #[test]
    fn damaged_parts_are_refused(case in case(), at in any::<prop::sample::Index>()) {
        let parts = Parts::of(&case.plan());
        let (rows, row) = (parts.token_n.len(), at.index(parts.token_n.len()));
        let refused = |damage: fn(&mut Parts, usize)| parts.damaged(|p| damage(p, row)).is_err();
        prop_assert!(refused(|p, row| p.weight_n[row] = f64::NAN));
        prop_assert!(refused(|p, row| p.token_n[row] = p.tokens));
        prop_assert!(refused(|p, _| p.offsets[0] = 1));
        prop_assert!(refused(|p, _| p.weight_n.push(0.0)));
        prop_assert!(refused(|p, _| p.token_n.truncate(p.token_n.len() - 1)));
        prop_assert!(refused(|p, _| p.offsets.clear()));
        prop_assert!(refused(|p, _| *p.offsets.last_mut().unwrap() += 1));
        if parts.offsets.len() > 2 {
            prop_assert!(refused(|p, _| p.offsets[1] = p.token_n.len() + 1));
        }
        if let Some(start) = (1..rows).find(|&row| !parts.offsets.contains(&row)) {
            // Rows start - 1 and start are of the same expert.
            prop_assert!(parts.damaged(|p| p.token_n[start] = p.token_n[start - 1]).is_err());
        }
    }

    #[test]
    fn rows_out_of_group_order_are_refused(case in case()) {
        let plan = case.plan();
        let mut parts = Parts::of(&SparsePlan::stack(&[plan.clone(), plan.clone()]).unwrap());
        let busy = plan.load().iter().position(|&rows| rows > 0).unwrap();
        let (first, last) = (parts.offsets[busy], parts.offsets[busy + 1] - 1);
        parts.token_n.swap(first, last);
        let PlanError::GroupOrder { expert, .. } = parts.build().unwrap_err() else {
            return Err(TestCaseError::fail("refused for another reason"));
        };
        prop_assert_eq!(expert, busy);
    }
}
