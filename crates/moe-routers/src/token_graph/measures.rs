//! What is measured of choices and graphs, on the host.
//!
//! Axis letters: `t` tokens, `n` columns, `e` experts, `k` choices, `l` layers.

use moe_core::RouteError;
use ndarray::{Array1, ArrayView1, ArrayView2, ArrayView3, Axis};

/// How far a row of a stochastic matrix may be from 1.
const ROW_SUM: f64 = 1e-6;

/// `-sum p ln p` of each row, with `0 ln 0 = 0`.
pub fn row_entropy(p_te: ArrayView2<'_, f64>) -> Array1<f64> {
    p_te.map_axis(Axis(1), |row| row.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum())
}

/// Refuses rows that are negative or do not sum to 1.
///
/// # Errors
/// `stochastic`, with the name of the array.
pub fn check_stochastic(key: &'static str, p_tn: ArrayView2<'_, f64>) -> Result<(), RouteError> {
    let good = |row: ArrayView1<'_, f64>| {
        row.iter().all(|p| *p >= 0.0) && (row.sum() - 1.0).abs() <= ROW_SUM
    };
    match p_tn.rows().into_iter().position(|row| !good(row)) {
        None => Ok(()),
        Some(t) => {
            let reason = format!("is not stochastic: row {t} is {}", p_tn.row(t));
            Err(RouteError::Setting { key, reason })
        }
    }
}

/// What mixing does to the entropy and the spread of choices, for any stochastic graph: `lower <=
/// entropy <= upper`, and `tv_mixed <= contraction * tv_own`.
#[derive(Debug, Clone, PartialEq)]
pub struct EntropyBounds {
    /// `sum_j S_ij H(r_j)`, `[t]`.
    pub lower_t: Array1<f64>,
    /// `H(pi_i)`, `[t]`.
    pub entropy_t: Array1<f64>,
    /// `lower + H(S_i)`, `[t]`.
    pub upper_t: Array1<f64>,
    /// Largest total variation between rows of `r`.
    pub tv_own: f64,
    /// Between rows of `pi`.
    pub tv_mixed: f64,
    /// Between rows of `S`.
    pub contraction: f64,
}

/// Of choices `r [t, e]` under a graph `S [t, t]`.
pub fn entropy_bounds(
    prob_te: ArrayView2<'_, f64>,
    graph_tt: ArrayView2<'_, f64>,
) -> EntropyBounds {
    let mixed_te = graph_tt.dot(&prob_te);
    let lower_t = graph_tt.dot(&row_entropy(prob_te));
    EntropyBounds {
        upper_t: &lower_t + &row_entropy(graph_tt),
        lower_t,
        entropy_t: row_entropy(mixed_te.view()),
        tv_own: largest_distance(prob_te),
        tv_mixed: largest_distance(mixed_te.view()),
        contraction: largest_distance(graph_tt),
    }
}

/// Largest total variation (half the L1 distance) between two rows.
fn largest_distance(p_te: ArrayView2<'_, f64>) -> f64 {
    let pairs = p_te.rows().into_iter().flat_map(|a| {
        let distance = move |b| (&a - &b).mapv(f64::abs).sum() / 2.0;
        p_te.rows().into_iter().map(distance).collect::<Vec<f64>>()
    });
    pairs.fold(0.0, f64::max)
}

/// Share of tokens whose first expert, or whose set of experts, differs from a reference checkpoint's,
/// of every layer; `[l, t, k]` both.
pub fn fluctuation(
    before_ltk: ArrayView3<'_, usize>,
    after_ltk: ArrayView3<'_, usize>,
    by_set: bool,
) -> Vec<f64> {
    let kept = |row_k: ArrayView1<'_, usize>| {
        let mut kept: Vec<usize> =
            row_k.iter().copied().take(if by_set { row_k.len() } else { 1 }).collect();
        kept.sort_unstable();
        kept
    };
    let layer = |(before_tk, after_tk): (ArrayView2<'_, usize>, ArrayView2<'_, usize>)| {
        let pairs = before_tk.rows().into_iter().zip(after_tk.rows());
        let changed = pairs.filter(|(before_k, after_k)| kept(*before_k) != kept(*after_k));
        changed.count() as f64 / before_tk.nrows() as f64
    };
    before_ltk.outer_iter().zip(after_ltk.outer_iter()).map(layer).collect()
}
