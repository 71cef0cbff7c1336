//! Soft plans: every slot of an expert reads a mixture of all tokens of a group.
//!
//! Axis letters: `t` tokens, `d` model width, `e` experts, `s` slots; expert `e` owns the slots
//! `e * slots_per_expert` to `(e + 1) * slots_per_expert`.

use super::PlanError;
use ndarray::{Array2, ArrayView2, Axis};

/// Every slot reads a mixture of all tokens, every token a mixture of all slots; one group.
///
/// Puigcerver et al. 2023, *From Sparse to Soft Mixtures of Experts* (Soft MoE, arXiv 2308.00951).
#[derive(Debug, Clone, PartialEq)]
pub struct SoftPlan {
    /// How a slot reads the tokens, `[t, s]`; columns sum to 1.
    pub dispatch_ts: Array2<f64>,
    /// How a token reads the slots, `[t, s]`; rows sum to 1.
    pub combine_ts: Array2<f64>,
    /// Slots an expert owns; `s = e * slots_per_expert`.
    pub slots_per_expert: usize,
}

impl SoftPlan {
    /// A plan whose two matrices fit each other and the slots per expert.
    ///
    /// That columns and rows sum to 1 is the router's affair and not checked.
    ///
    /// # Errors
    ///
    /// If the shapes differ, or `s` is not a positive multiple of `slots_per_expert`.
    pub fn new(
        dispatch_ts: Array2<f64>,
        combine_ts: Array2<f64>,
        slots_per_expert: usize,
    ) -> Result<Self, PlanError> {
        PlanError::check_shape("combine_ts", dispatch_ts.shape(), combine_ts.shape())?;
        let slots = dispatch_ts.ncols();
        if slots == 0 || !slots.is_multiple_of(slots_per_expert) {
            return Err(PlanError::Slots { slots, slots_per_expert });
        }
        Ok(Self { dispatch_ts, combine_ts, slots_per_expert })
    }

    /// Number of experts, `e`.
    pub fn experts(&self) -> usize {
        self.dispatch_ts.ncols() / self.slots_per_expert
    }

    /// Where the slots of each expert start, and the end, `[e + 1]`.
    pub fn offsets(&self) -> Vec<usize> {
        (0..=self.experts()).map(|e| e * self.slots_per_expert).collect()
    }

    /// What every slot reads, `[t, d] -> [s, d]`.
    ///
    /// # Panics
    ///
    /// If `x_td` has another number of tokens than the plan.
    pub fn dispatch(&self, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
        let (x, plan) = (x_td.shape(), self.dispatch_ts.shape());
        assert_eq!(x[0], plan[0], "dispatch of x_td {x:?} by dispatch_ts {plan:?}");
        self.dispatch_ts.t().dot(&x_td)
    }

    /// What every token reads back, `[s, d] -> [t, d]`.
    ///
    /// # Panics
    ///
    /// If `y_sd` has another number of slots than the plan.
    pub fn combine(&self, y_sd: ArrayView2<'_, f64>) -> Array2<f64> {
        let (y, plan) = (y_sd.shape(), self.combine_ts.shape());
        assert_eq!(y[0], plan[1], "combine of y_sd {y:?} by combine_ts {plan:?}");
        self.combine_ts.dot(&y_sd)
    }

    /// The weight of every expert in every token, summed over its slots, `[t, e]`.
    pub fn combine_te(&self) -> Array2<f64> {
        let mut weight_te = Array2::zeros((self.combine_ts.nrows(), self.experts()));
        self.combine_ts
            .axis_chunks_iter(Axis(1), self.slots_per_expert)
            .zip(weight_te.columns_mut())
            .for_each(|(weight_ts, mut weight_t)| weight_t.assign(&weight_ts.sum_axis(Axis(1))));
        weight_te
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plan;
    use ndarray::array;

    /// Two tokens, two experts of one slot each.
    fn plan() -> SoftPlan {
        SoftPlan::new(array![[0.25, 1.0], [0.75, 0.0]], array![[0.5, 0.5], [0.1, 0.9]], 1).unwrap()
    }

    #[test]
    fn apply_by_hand() {
        let x_td = array![[4.0, 0.0], [8.0, 4.0]];
        // Slot 0 reads 0.25 (4, 0) + 0.75 (8, 4) = (7, 3), slot 1 reads (4, 0).
        assert_eq!(plan().dispatch(x_td.view()), array![[7.0, 3.0], [4.0, 0.0]]);
        // Expert 0 doubles: (14, 6); expert 1 multiplies by 10: (40, 0).
        let scale = [2.0, 10.0];
        let y_td = Plan::from(plan()).apply(x_td.view(), |e, rows| &rows * scale[e]);
        // Token 0: half of each, (27, 3). Token 1: 0.1 (14, 6) + 0.9 (40, 0) = (37.4, 0.6).
        let want_td = array![[27.0, 3.0], [37.4, 0.6]];
        assert!((y_td - want_td).iter().all(|v| v.abs() < 1e-12));
    }

    #[test]
    fn slots_of_an_expert_add_up() {
        let combine_ts = array![[0.1, 0.2, 0.3, 0.4]];
        let plan = SoftPlan::new(Array2::ones((1, 4)), combine_ts, 2).unwrap();
        assert_eq!((plan.experts(), plan.offsets()), (2, vec![0, 2, 4]));
        let weight_te = plan.combine_te();
        assert!((&weight_te - &array![[0.3, 0.7]]).iter().all(|v| v.abs() < 1e-12));
        let plan = Plan::from(plan);
        assert_eq!((plan.combine_te(), plan.mask_te()), (weight_te, array![[1.0, 1.0]]));
        assert_eq!(plan.experts(), 2);
    }

    #[test]
    fn misfits_are_refused() {
        let new = |t, slots, per| {
            SoftPlan::new(Array2::ones((2, 4)), Array2::ones((t, slots)), per)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        assert_eq!(new(2, 4, 4), Ok(()));
        assert_eq!(
            new(3, 4, 2).unwrap_err(),
            "combine_ts has shape [3, 4], but [2, 4] was expected"
        );
        for per in [0, 3, 5] {
            let error = new(2, 4, per).unwrap_err();
            assert_eq!(error, format!("4 slots do not divide among experts of {per} slots each"));
        }
        assert!(SoftPlan::new(Array2::ones((2, 0)), Array2::ones((2, 0)), 1).is_err());
    }

    #[test]
    #[should_panic(expected = "dispatch of x_td [3, 1] by dispatch_ts [2, 2]")]
    fn dispatch_names_both_shapes() {
        plan().dispatch(Array2::ones((3, 1)).view());
    }

    #[test]
    #[should_panic(expected = "combine of y_sd [3, 1] by combine_ts [2, 2]")]
    fn combine_names_both_shapes() {
        plan().combine(Array2::ones((3, 1)).view());
    }
}
