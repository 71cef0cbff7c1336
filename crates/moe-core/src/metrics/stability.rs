//! How stable routing is: between checkpoints, between runs, and under a change of the input.
//!
//! Axis letters: `t` tokens, `k` choices, `e` experts, `m` runs.

use super::{MetricError, valid_tokens};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use std::collections::BTreeSet;

/// What has to differ for a token to count as re-routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangeOf {
    /// The expert chosen first.
    #[default]
    Top1,
    /// The chosen experts, in whatever order.
    Set,
}

/// Routing fluctuation: the share of tokens that two checkpoints route differently (X-MoE,
/// arXiv 2204.09179; StableMoE, arXiv 2204.08396). Take the mean over layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Fluctuation {
    /// Which tokens are routed differently; padded ones never are.
    pub changed_t: Vec<bool>,
    /// Their share.
    pub rate: f64,
}

impl Fluctuation {
    /// Compares the chosen experts `[t, k]`, best first, of an earlier and a later checkpoint.
    ///
    /// # Errors
    ///
    /// If there are no choices, or the shapes differ.
    pub fn of(
        earlier_tk: ArrayView2<'_, usize>,
        later_tk: ArrayView2<'_, usize>,
        change: ChangeOf,
    ) -> Result<Self, MetricError> {
        let none_t = Array1::from_elem(earlier_tk.nrows(), false);
        Self::without_padding(earlier_tk, later_tk, change, none_t.view())
    }

    /// As [`Fluctuation::of`], leaving the tokens out that are `true` in `padding_t`.
    ///
    /// # Errors
    ///
    /// As [`Fluctuation::of`], and if `padding_t` has another length or covers every token.
    pub fn without_padding(
        earlier_tk: ArrayView2<'_, usize>,
        later_tk: ArrayView2<'_, usize>,
        change: ChangeOf,
        padding_t: ArrayView1<'_, bool>,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("choices", earlier_tk.len())?;
        MetricError::check_shape("later choices", later_tk.shape(), earlier_tk.shape())?;
        let valid = valid_tokens(padding_t, earlier_tk.nrows())?;
        let mut changed_t = vec![false; earlier_tk.nrows()];
        for &t in &valid {
            changed_t[t] = differs(earlier_tk.row(t), later_tk.row(t), change);
        }
        let rate = changed_t.iter().filter(|&&changed| changed).count() as f64 / valid.len() as f64;
        Ok(Self { changed_t, rate })
    }
}

fn differs(a_k: ArrayView1<'_, usize>, b_k: ArrayView1<'_, usize>, change: ChangeOf) -> bool {
    match change {
        ChangeOf::Top1 => a_k[0] != b_k[0],
        ChangeOf::Set => a_k.iter().collect::<BTreeSet<_>>() != b_k.iter().collect(),
    }
}

/// Inter-run consistency: how alike the expert loads of separately trained runs are (X-MoE).
#[derive(Debug, Clone, PartialEq)]
pub struct Consistency {
    /// Pearson correlation of every two runs, `[m, m]`. A constant load correlates with itself only.
    pub pearson_mm: Array2<f64>,
    /// Mean of all of them, the diagonal included: the paper's measure.
    pub ic: f64,
    /// Mean off the diagonal; 1 for a single run.
    pub ic_off_diagonal: f64,
}

impl Consistency {
    /// Consistency of the loads `[m, e]`, one row per run, accumulated over the same batches.
    ///
    /// # Errors
    ///
    /// If there are no runs or experts, or a load is negative or not finite.
    pub fn of(load_me: ArrayView2<'_, f64>) -> Result<Self, MetricError> {
        MetricError::check_not_empty("loads", load_me.len())?;
        MetricError::check_finite("loads", load_me)?;
        MetricError::check_range("loads", load_me, f64::INFINITY)?;
        let runs = load_me.nrows();
        let unit: Vec<Array1<f64>> = load_me.outer_iter().map(unit_deviations).collect();
        let pearson_mm =
            Array2::from_shape_fn(
                (runs, runs),
                |(i, j)| {
                    if i == j { 1.0 } else { unit[i].dot(&unit[j]) }
                },
            );
        let off_diagonal = pearson_mm.sum() - runs as f64;
        let pairs = (runs * (runs - 1)) as f64;
        Ok(Self {
            ic: pearson_mm.sum() / (runs * runs) as f64,
            ic_off_diagonal: if runs == 1 { 1.0 } else { off_diagonal / pairs },
            pearson_mm,
        })
    }
}

/// Deviations from the mean, scaled to length 1; all zero for a constant load.
fn unit_deviations(load_e: ArrayView1<'_, f64>) -> Array1<f64> {
    // The mean of equal numbers may differ from them by rounding, which scaling would blow up.
    if load_e.iter().all(|load| *load == load_e[0]) {
        return Array1::zeros(load_e.len());
    }
    let max = load_e.fold(0.0, |a: f64, &b| a.max(b));
    let share_e = &load_e / max;
    let deviation_e = &share_e - share_e.mean().unwrap_or(0.0);
    let norm = deviation_e.dot(&deviation_e).sqrt();
    deviation_e / norm
}

/// Intersection over union of the experts that a token has in `a_te` and in `b_te`, `[t]`; an empty
/// union counts 0 (V-MoE's code for routing under attack). A weight above 0 means chosen.
///
/// # Errors
///
/// If there are no weights, one is not finite, or the shapes differ.
pub fn routing_iou(
    a_te: ArrayView2<'_, f64>,
    b_te: ArrayView2<'_, f64>,
) -> Result<Vec<f64>, MetricError> {
    MetricError::check_not_empty("weights", a_te.len())?;
    MetricError::check_shape("the second weights", b_te.shape(), a_te.shape())?;
    MetricError::check_finite("weights", a_te.iter().chain(b_te))?;
    Ok(a_te.outer_iter().zip(b_te.outer_iter()).map(|(a_e, b_e)| iou(a_e, b_e)).collect())
}

fn iou(a_e: ArrayView1<'_, f64>, b_e: ArrayView1<'_, f64>) -> f64 {
    let pairs = || a_e.iter().zip(b_e).map(|(a, b)| (*a > 0.0, *b > 0.0));
    let union = pairs().filter(|(a, b)| *a || *b).count();
    let intersection = pairs().filter(|(a, b)| *a && *b).count();
    if union == 0 { 0.0 } else { intersection as f64 / union as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn fluctuation_by_hand() {
        let (a_tk, b_tk) = (array![[0, 1], [2, 3], [1, 0]], array![[1, 0], [2, 1], [1, 0]]);
        // First choices: 0 -> 1, 2 -> 2, 1 -> 1. Sets: the same, {2, 3} -> {2, 1}, the same.
        let top1 = Fluctuation::of(a_tk.view(), b_tk.view(), ChangeOf::Top1).unwrap();
        assert_eq!(top1, Fluctuation { changed_t: vec![true, false, false], rate: 1.0 / 3.0 });
        let set = Fluctuation::of(a_tk.view(), b_tk.view(), ChangeOf::Set).unwrap();
        assert_eq!(set, Fluctuation { changed_t: vec![false, true, false], rate: 1.0 / 3.0 });
        let padding_t = array![true, false, false];
        let rest = Fluctuation::without_padding(
            a_tk.view(),
            b_tk.view(),
            ChangeOf::Top1,
            padding_t.view(),
        );
        assert_eq!(rest, Ok(Fluctuation { changed_t: vec![false; 3], rate: 0.0 }));
    }

    #[test]
    fn fluctuation_of_what_does_not_fit_is_refused() {
        let of = |a: &Array2<usize>, b: &Array2<usize>| {
            Fluctuation::of(a.view(), b.view(), ChangeOf::Top1).unwrap_err().to_string()
        };
        let misfit = of(&array![[0], [1]], &array![[0]]);
        assert_eq!(misfit, "later choices: shape [1, 1], expected [2, 1]");
        assert!(of(&Array2::zeros((0, 1)), &Array2::zeros((0, 1))).contains("shape"));
    }

    #[test]
    fn consistency_by_hand() {
        // Deviations (-1, 0, 1), (1, 0, -1) and (-1, 1, 0): correlations -1, 1/2, -1/2.
        let load_me = array![[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 2.0, 1.0]];
        let got = Consistency::of(load_me.view()).unwrap();
        let want = array![[1.0, -1.0, 0.5], [-1.0, 1.0, -0.5], [0.5, -0.5, 1.0]];
        assert!((&got.pearson_mm - &want).iter().all(|v| v.abs() < 1e-15));
        // (3 + 2 (-1)) / 9, and 2 (-1) / 6.
        assert!((got.ic - 1.0 / 9.0).abs() < 1e-15);
        assert!((got.ic_off_diagonal + 1.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn a_constant_load_correlates_with_itself_only() {
        // The mean of three times 0.1 is not 0.1 in doubles.
        let load_me = array![[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [1.0, 2.0, 3.0]];
        assert_eq!(Consistency::of(load_me.view()).unwrap().pearson_mm, Array2::<f64>::eye(3));
        let single = Consistency::of(array![[1.0, 2.0]].view()).unwrap();
        assert_eq!((single.ic, single.ic_off_diagonal), (1.0, 1.0));
        assert!(Consistency::of(array![[-1.0, 2.0]].view()).is_err());
    }

    #[test]
    fn iou_by_hand() {
        let (a_te, b_te) =
            (array![[0.5, 0.2, 0.0], [0.0, 0.0, 0.0]], array![[0.1, 0.0, 0.3], [0.0, 0.0, 0.0]]);
        // {0, 1} and {0, 2}: one of three. Nothing and nothing: 0.
        assert_eq!(routing_iou(a_te.view(), b_te.view()), Ok(vec![1.0 / 3.0, 0.0]));
        assert!(routing_iou(a_te.view(), array![[1.0]].view()).is_err());
    }
}
