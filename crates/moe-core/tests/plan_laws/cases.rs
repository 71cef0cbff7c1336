//! The cases laws are tried on, and small helpers.

use moe_core::{Choices, DropOrder, SparsePlan};
use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;

pub(crate) const ORDERS: [DropOrder; 3] =
    [DropOrder::Arrival, DropOrder::BatchPriority, DropOrder::BatchPrioritySum];

/// Gates of one group, and how to route it.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Distinct gates in 0..=1, `[t, e]`.
    pub(crate) gate_te: Array2<f64>,
    /// Choices per token, 1 to `e`.
    pub(crate) k: usize,
    /// Rows an expert keeps, 1 to `t`.
    pub(crate) capacity: usize,
    /// Who is dropped.
    pub(crate) order: DropOrder,
}

impl Case {
    pub(crate) fn choices(&self) -> Choices {
        Choices::top_k(self.gate_te.view(), self.k)
    }

    pub(crate) fn experts(&self) -> usize {
        self.gate_te.ncols()
    }

    pub(crate) fn plan(&self) -> SparsePlan {
        self.plan_with(Some(self.capacity))
    }

    pub(crate) fn plan_with(&self, capacity: Option<usize>) -> SparsePlan {
        SparsePlan::from_choices(&self.choices(), self.experts(), capacity, self.order).unwrap()
    }
}

/// Distinct gates, `[t, e]`: a shuffled ramp.
pub(crate) fn gates(t: usize, e: usize) -> impl Strategy<Value = Array2<f64>> {
    let ramp: Vec<f64> = (1..=t * e).map(|i| i as f64 / (t * e) as f64).collect();
    Just(ramp)
        .prop_shuffle()
        .prop_map(move |values| Array2::from_shape_vec((t, e), values).expect("t * e values"))
}

/// Any case of up to 24 tokens and 8 experts.
pub(crate) fn case() -> impl Strategy<Value = Case> {
    (1usize..=24, 1usize..=8)
        .prop_flat_map(|(t, e)| (gates(t, e), 1..=e, 1..=t, prop::sample::select(&ORDERS[..])))
        .prop_map(|(gate_te, k, capacity, order)| Case { gate_te, k, capacity, order })
}

/// Token vectors to send through a plan, `[t, 3]`, all different.
pub(crate) fn tokens(t: usize) -> Array2<f64> {
    Array2::from_shape_fn((t, 3), |(t, d)| (1 + t * 3 + d) as f64)
}

/// An expert network that is not linear and different for every expert.
pub(crate) fn network(expert: usize, x_nd: ArrayView2<'_, f64>) -> Array2<f64> {
    x_nd.mapv(|v| (v * (expert as f64 + 0.5)).sin() + expert as f64)
}

#[track_caller]
pub(crate) fn assert_near(got: &Array2<f64>, want: &Array2<f64>) {
    assert_eq!(got.dim(), want.dim());
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
    assert!(got.iter().zip(want).all(close), "{got} is not {want}");
}
