//! The balance loss `E sum_e f_e P_e` in the forms of the code bases.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

/// How the code bases scale the terms of the balance loss, `E sum_e f_e P_e`.
///
/// They differ by constant factors, so a coefficient means nothing without the form. In recipes the
/// names are in kebab case; snake case is understood too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuxForm {
    /// `f = count / T`, `P` = mean; at least `k` (flaxformer, Hugging Face transformers; with
    /// `k` = 1 Switch, GShard and Mesh TensorFlow).
    #[default]
    #[serde(alias = "sum_k")]
    SumK,
    /// `f = count / (T k)`, `P` = mean; at least 1 (Megatron-LM).
    #[serde(alias = "div_k")]
    DivK,
    /// `f = count / (T k)`, `P = mean / k`; at least `1 / k` (fastmoe, CompeteSMoE).
    Fastmoe,
}

/// The terms of a balance loss, and the loss.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadBalance {
    /// `f_e`: how much each expert was chosen, `[e]`. Constant for the gradient.
    pub fraction_e: Array1<f64>,
    /// `P_e`: how probable each expert was, `[e]`. The gradient flows through it.
    pub mean_prob_e: Array1<f64>,
    /// `E sum_e f_e P_e`.
    pub loss: f64,
}

impl LoadBalance {
    /// The loss of the choices `expert_tk`, before any drop, under the distributions `prob_te`.
    ///
    /// # Panics
    ///
    /// If the arrays differ in tokens, have none, or an expert is out of range.
    pub fn of(
        prob_te: ArrayView2<'_, f64>,
        expert_tk: ArrayView2<'_, usize>,
        form: AuxForm,
    ) -> Self {
        let (prob, chosen) = (prob_te.shape(), expert_tk.shape());
        assert_eq!(prob[0], chosen[0], "balance of prob_te {prob:?} and expert_tk {chosen:?}");
        assert!(prob[0] > 0, "balance of no tokens: prob_te {prob:?}");
        let (tokens, k) = (chosen[0] as f64, chosen[1] as f64);
        let (choices, scale) = match form {
            AuxForm::SumK => (tokens, 1.0),
            AuxForm::DivK => (tokens * k, 1.0),
            AuxForm::Fastmoe => (tokens * k, k),
        };
        let fraction_e = count(expert_tk, prob) / choices;
        let mean_prob_e = prob_te.sum_axis(Axis(0)) / (tokens * scale);
        let loss = prob[1] as f64 * fraction_e.dot(&mean_prob_e);
        Self { fraction_e, mean_prob_e, loss }
    }
}

impl LoadBalance {
    /// The loss of the tokens that are no padding; all zero if there are none.
    ///
    /// # Panics
    ///
    /// If the arrays differ in tokens, or an expert is out of range.
    pub fn of_valid(
        prob_te: ArrayView2<'_, f64>,
        expert_tk: ArrayView2<'_, usize>,
        form: AuxForm,
        padding_t: Option<&[bool]>,
    ) -> Self {
        let prob_te = valid_rows(prob_te, padding_t);
        if prob_te.is_empty() {
            let zero_e = Array1::zeros(prob_te.ncols());
            return Self { fraction_e: zero_e.clone(), mean_prob_e: zero_e, loss: 0.0 };
        }
        Self::of(prob_te.view(), valid_rows(expert_tk, padding_t).view(), form)
    }
}

/// The rows of the tokens that are no padding, `[t, n]`; all of them for `None`.
///
/// # Panics
///
/// If there is not one flag per row.
pub fn valid_rows<T: Clone>(rows_tn: ArrayView2<'_, T>, padding_t: Option<&[bool]>) -> Array2<T> {
    let Some(padding_t) = padding_t else { return rows_tn.to_owned() };
    let (shape, flags) = (rows_tn.shape(), padding_t.len());
    assert_eq!(shape[0], flags, "rows {shape:?} with {flags} padding flags");
    let valid: Vec<usize> = (0..flags).filter(|&t| !padding_t[t]).collect();
    rows_tn.select(Axis(0), &valid)
}

/// How often each expert was chosen, `[e]`.
fn count(expert_tk: ArrayView2<'_, usize>, prob: &[usize]) -> Array1<f64> {
    let mut count_e = Array1::zeros(prob[1]);
    for &expert in expert_tk {
        assert!(expert < prob[1], "balance of expert {expert} under prob_te {prob:?}");
        count_e[expert] += 1.0;
    }
    count_e
}

/// Balance loss `E sum_e f_e P_e` of the choices `expert_tk`, before any drop, under the
/// distributions `prob_te`.
///
/// Fedus et al. 2021 (Switch, arXiv 2101.03961), equations (4) to (6), for `k` = 1; Lepikhin et al.
/// 2020 (GShard, arXiv 2006.16668) counts first choices, so give it those alone.
///
/// # Panics
///
/// As [`LoadBalance::of`].
pub fn load_balance(
    prob_te: ArrayView2<'_, f64>,
    expert_tk: ArrayView2<'_, usize>,
    form: AuxForm,
) -> f64 {
    LoadBalance::of(prob_te, expert_tk, form).loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[track_caller]
    fn assert_near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} is not {want}");
    }

    #[test]
    fn load_balance_by_hand() {
        let prob_te = array![[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]];
        let expert_tk = array![[0, 1], [1, 0]];
        // Counts 2, 2, 0; mean probabilities 0.375, 0.375, 0.25; 3 (2 * 0.375 + 2 * 0.375) = 4.5,
        // over T = 2, over T k = 4, and over T k and again k.
        let loss = |form| load_balance(prob_te.view(), expert_tk.view(), form);
        assert_eq!(loss(AuxForm::SumK), 2.25);
        assert_eq!(loss(AuxForm::DivK), 1.125);
        assert_eq!(loss(AuxForm::Fastmoe), 0.5625);
        let terms = LoadBalance::of(prob_te.view(), expert_tk.view(), AuxForm::Fastmoe);
        assert_eq!(terms.fraction_e, array![0.5, 0.5, 0.0]);
        assert_eq!(terms.mean_prob_e, array![0.1875, 0.1875, 0.125]);
    }

    #[test]
    fn a_balanced_layer_reaches_the_least_loss() {
        let prob_te = Array2::from_elem((6, 3), 1.0 / 3.0);
        let expert_tk = Array2::from_shape_fn((6, 2), |(t, rank)| (t + rank) % 3);
        for (form, least) in [(AuxForm::SumK, 2.0), (AuxForm::DivK, 1.0), (AuxForm::Fastmoe, 0.5)] {
            assert_near(load_balance(prob_te.view(), expert_tk.view(), form), least);
        }
    }

    #[test]
    fn padding_leaves_counts_and_means() {
        let prob_te = array![[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]];
        let expert_tk = array![[0], [0], [1]];
        let of = |padding: [bool; 3]| {
            LoadBalance::of_valid(
                prob_te.view(),
                expert_tk.view(),
                AuxForm::SumK,
                Some(padding.as_slice()),
            )
        };
        // Tokens 0 and 2: f = (1/2, 1/2), P = (0.375, 0.625), loss 2 (0.1875 + 0.3125) = 1.
        let terms = of([false, true, false]);
        assert_eq!(terms.mean_prob_e, array![0.375, 0.625]);
        assert_eq!((terms.fraction_e, terms.loss), (array![0.5, 0.5], 1.0));
        assert_eq!(of([true; 3]).loss, 0.0);
    }

    #[test]
    #[should_panic(expected = "prob_te [2, 2] and expert_tk [1, 1]")]
    fn load_balance_names_both_shapes() {
        load_balance(Array2::ones((2, 2)).view(), array![[0]].view(), AuxForm::SumK);
    }

    #[test]
    #[should_panic(expected = "no tokens: prob_te [0, 2]")]
    fn load_balance_needs_tokens() {
        load_balance(Array2::ones((0, 2)).view(), Array2::zeros((0, 1)).view(), AuxForm::SumK);
    }

    #[test]
    #[should_panic(expected = "expert 2 under prob_te [1, 2]")]
    fn load_balance_names_the_expert() {
        load_balance(Array2::ones((1, 2)).view(), array![[2]].view(), AuxForm::SumK);
    }

    #[test]
    fn forms_read_both_spellings() {
        for name in ["\"sum-k\"", "\"sum_k\""] {
            assert_eq!(serde_json::from_str::<AuxForm>(name).unwrap(), AuxForm::SumK);
        }
        for name in ["\"div-k\"", "\"div_k\""] {
            assert_eq!(serde_json::from_str::<AuxForm>(name).unwrap(), AuxForm::DivK);
        }
        assert_eq!(serde_json::to_string(&AuxForm::Fastmoe).unwrap(), "\"fastmoe\"");
    }
}
