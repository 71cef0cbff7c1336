//! The plan: who computes what, and with what weight it comes back.
//!
//! A router decides a plan, experts execute it, the plan combines. [`SparsePlan`] sends tokens to
//! experts; [`SoftPlan`] lets every expert read mixtures of all tokens. [`Plan::apply`] is the whole
//! layer in one sentence.
//!
//! Axis letters: `g` groups, `t` tokens, `d` model width, `e` experts, `n` routed rows, `s` slots.

mod build;
mod error;
mod flow;
mod soft;
mod sparse;

pub use error::PlanError;
pub use soft::SoftPlan;
pub use sparse::SparsePlan;

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;

/// Either kind of plan.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Tokens are sent to experts.
    Sparse(SparsePlan),
    /// Experts read mixtures of tokens.
    Soft(SoftPlan),
}

impl Plan {
    /// Computes the layer: dispatches `x_td`, lets `expert(e, rows)` map the rows of every expert,
    /// and combines the results, `[t, d] -> [t, d']` with `t` over all groups.
    ///
    /// Experts run in parallel; the result has the same bits whatever the number of threads. An
    /// expert without rows is called too, with a `[0, d]` view, because it knows the width.
    ///
    /// # Panics
    ///
    /// If `x_td` has another number of tokens than the plan, or an expert returns another number of
    /// rows than it was given or another width than the rest.
    pub fn apply(
        &self,
        x_td: ArrayView2<'_, f64>,
        expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
    ) -> Array2<f64> {
        match self {
            Self::Sparse(plan) => {
                let x_nd = plan.dispatch(x_td);
                plan.combine(run_experts(x_nd.view(), plan.offsets(), expert).view())
            }
            Self::Soft(plan) => {
                let x_sd = plan.dispatch(x_td);
                plan.combine(run_experts(x_sd.view(), &plan.offsets(), expert).view())
            }
        }
    }

    /// Number of experts, `e`.
    pub fn experts(&self) -> usize {
        match self {
            Self::Sparse(plan) => plan.experts(),
            Self::Soft(plan) => plan.experts(),
        }
    }

    /// 1 where a token is read by an expert, else 0, `[t, e]` with `t` over all groups.
    pub fn mask_te(&self) -> Array2<f64> {
        match self {
            Self::Sparse(plan) => plan.mask_te(),
            Self::Soft(plan) => Array2::ones((plan.dispatch_ts.nrows(), plan.experts())),
        }
    }

    /// The weight with which an expert's output enters a token, `[t, e]` with `t` over all groups;
    /// a soft plan's slots are summed.
    pub fn combine_te(&self) -> Array2<f64> {
        match self {
            Self::Sparse(plan) => plan.combine_te(),
            Self::Soft(plan) => plan.combine_te(),
        }
    }
}

impl From<SparsePlan> for Plan {
    fn from(plan: SparsePlan) -> Self {
        Self::Sparse(plan)
    }
}

impl From<SoftPlan> for Plan {
    fn from(plan: SoftPlan) -> Self {
        Self::Soft(plan)
    }
}

/// Lets expert `e` map the rows `offsets[e]..offsets[e + 1]`, `[n, d] -> [n, d']`.
fn run_experts(
    x_nd: ArrayView2<'_, f64>,
    offsets: &[usize],
    expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
) -> Array2<f64> {
    let parts: Vec<Array2<f64>> = offsets
        .par_windows(2)
        .enumerate()
        .map(|(e, span)| {
            let x_rd = x_nd.slice(s![span[0]..span[1], ..]);
            let y_rd = expert(e, x_rd);
            let (got, want) = (y_rd.shape(), x_rd.shape());
            assert_eq!(got[0], want[0], "expert {e} made {got:?} of {want:?}");
            y_rd
        })
        .collect();
    let views: Vec<_> = parts.iter().map(|y_rd| y_rd.view()).collect();
    concatenate(Axis(0), &views).unwrap_or_else(|_| {
        let shapes: Vec<_> = parts.iter().map(Array2::shape).collect();
        panic!("experts made rows of different widths: {shapes:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Two tokens, three experts: expert 0 reads both, expert 1 none, expert 2 the first.
    fn plan() -> Plan {
        SparsePlan::from_lists(2, &[vec![(1, 0.5), (0, 1.0)], vec![], vec![(0, 2.0)]])
            .unwrap()
            .into()
    }

    #[test]
    fn apply_by_hand() {
        let x_td = array![[1.0, 10.0], [2.0, 20.0]];
        // Expert e adds e + 1 to every row, and returns the first column alone.
        let y_td = plan()
            .apply(x_td.view(), |e, rows| rows.slice(s![.., ..1]).mapv(|v| v + e as f64 + 1.0));
        // Token 0: 1 (1 + 1) + 2 (1 + 3) = 10; token 1: 0.5 (2 + 1) = 1.5.
        assert_eq!(y_td, array![[10.0], [1.5]]);
    }

    #[test]
    fn dense_forms_by_hand() {
        assert_eq!(plan().mask_te(), array![[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
        assert_eq!(plan().combine_te(), array![[1.0, 0.0, 2.0], [0.5, 0.0, 0.0]]);
        assert_eq!(plan().experts(), 3);
    }

    #[test]
    #[should_panic(expected = "expert 2 made [2, 1] of [1, 1]")]
    fn an_expert_keeps_the_number_of_rows() {
        plan().apply(Array2::ones((2, 1)).view(), |e, rows| {
            if e == 2 { Array2::ones((2, 1)) } else { rows.to_owned() }
        });
    }

    #[test]
    #[should_panic(expected = "different widths: [[2, 1], [0, 2], [1, 3]]")]
    fn experts_agree_on_the_width() {
        plan().apply(Array2::ones((2, 1)).view(), |e, rows| Array2::ones((rows.nrows(), e + 1)));
    }
}
