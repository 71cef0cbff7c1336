//! The collapse identity: how the gate of dot-product routing pulls a token towards the experts.
//!
//! With `h' = h + S_k f`, `S = softmax(emb h)`, the chosen expert `k` and its output `f` held fixed,
//! `dh'/dh = I + sum_j S_k (delta_kj - S_j) f e_j^T`: the second term has its rows in the span of the
//! expert embeddings. A measure, not a part of the router.

use moe_core::{score, top_k};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use tch::Tensor;

/// The second term of the identity at one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Collapse {
    /// `S`, `[e]`.
    pub prob_e: Array1<f64>,
    /// `k`, the largest.
    pub index: usize,
    /// `S_k (delta_kj - S_j)`, `[e]`; they sum to 0.
    pub coefficient_e: Array1<f64>,
    /// `sum_j coefficient_j f e_j^T`, `[d, d]`: row by output, column by input.
    pub jacobian_dd: Array2<f64>,
}

impl Collapse {
    /// At token `h_d`, for embeddings `[e, d]` and the chosen expert's output `f_d`.
    ///
    /// # Panics
    /// If the widths differ or there are no experts.
    pub fn of(
        h_d: ArrayView1<'_, f64>,
        emb_ed: ArrayView2<'_, f64>,
        f_d: ArrayView1<'_, f64>,
    ) -> Self {
        let logits_e = emb_ed.dot(&h_d);
        let prob_e = score::softmax(logits_e.view().insert_axis(Axis(0))).row(0).to_owned();
        let index = top_k(prob_e.iter().copied(), 1)[0];
        let gate = prob_e[index];
        let mut coefficient_e = prob_e.mapv(|p| -gate * p);
        coefficient_e[index] += gate;
        let pull_d = coefficient_e.dot(&emb_ed);
        let jacobian_dd = f_d.insert_axis(Axis(1)).dot(&pull_d.view().insert_axis(Axis(0)));
        Self { prob_e, index, coefficient_e, jacobian_dd }
    }
}

/// The same as derivatives that libtorch takes of `S_k(h) f`, not as the formula.
#[derive(Debug)]
pub struct TensorCollapse {
    /// `S`, `[e]`.
    pub prob_e: Tensor,
    /// `k`, a scalar, int64.
    pub index: Tensor,
    /// Derivative of `S_k` by the logits, `[e]`.
    pub coefficient_e: Tensor,
    /// Derivative of `S_k f` by the token, `[d, d]`.
    pub jacobian_dd: Tensor,
}

impl TensorCollapse {
    /// At token `h_d`, for embeddings `[e, d]` and the chosen expert's output `f_d`.
    pub fn of(h_d: &Tensor, emb_ed: &Tensor, f_d: &Tensor) -> Self {
        let h_d = h_d.detach().set_requires_grad(true);
        let logits_e = emb_ed.detach().mv(&h_d);
        let prob_e = logits_e.softmax(-1, logits_e.kind());
        let index_1 = prob_e.detach().argsort_stable(true, 0, true).narrow(0, 0, 1);
        let gate = prob_e.index_select(0, &index_1).sum(logits_e.kind());
        let (keep_graph, create_graph) = (false, false);
        let grads = Tensor::run_backward(&[gate], &[&logits_e, &h_d], keep_graph, create_graph);
        Self {
            prob_e: prob_e.detach(),
            index: index_1.squeeze(),
            coefficient_e: grads[0].shallow_clone(),
            jacobian_dd: f_d.detach().outer(&grads[1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Against central differences of `S_k(h) f`.
    #[test]
    fn jacobian_is_the_derivative() {
        let (h_d, f_d) = (array![0.3, -0.2], array![1.5, 0.5]);
        let emb_ed = array![[1.0, 0.2], [-0.4, 0.9], [0.1, 0.1]];
        let got = Collapse::of(h_d.view(), emb_ed.view(), f_d.view());
        let limit = crate::tolerance::tolerance(tch::Kind::Double).gradient;
        assert!(got.coefficient_e.sum().abs() < limit);
        for column in 0..2 {
            let gate = |step: f64| {
                let mut h_d = h_d.clone();
                h_d[column] += step;
                Collapse::of(h_d.view(), emb_ed.view(), f_d.view()).prob_e[got.index]
            };
            let slope = (gate(1e-5) - gate(-1e-5)) / 2e-5;
            for row in 0..2 {
                assert!((got.jacobian_dd[[row, column]] - slope * f_d[row]).abs() < limit);
            }
        }
    }
}
