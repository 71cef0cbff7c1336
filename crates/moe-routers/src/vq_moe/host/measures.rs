//! What the codes and the experts say of a layer, on the host.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` codes, `n` rows.

use crate::vq_moe::{COS_FLOOR, reanchor};
use moe_core::{AuxForm, balance::LoadBalance, score};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use std::collections::BTreeSet;

/// Share of the tokens that have each code, `[c]`.
pub fn usage(code_t: &[usize], codes: usize) -> Array1<f64> {
    let mut usage_c = Array1::zeros(codes);
    for &code in code_t {
        usage_c[code] += 1.0 / code_t.len() as f64;
    }
    usage_c
}

/// Number of codes in use, as the exponential of their entropy; the epsilon is the release's.
pub fn perplexity(usage_c: ArrayView1<'_, f64>) -> f64 {
    (-usage_c.mapv(|p| p * (p + 1e-10).ln()).sum()).exp()
}

/// New usage, rate and codes of a codebook after a step whose tokens had `code_t`.
pub fn reanchored(
    decay: f64,
    codebook_cd: ArrayView2<'_, f64>,
    code_t: &[usize],
    usage_c: ArrayView1<'_, f64>,
    anchor_cd: ArrayView2<'_, f64>,
) -> (Array1<f64>, Array1<f64>, Array2<f64>) {
    let codes = codebook_cd.nrows();
    let share_c = usage(code_t, codes);
    let usage_c = ndarray::Zip::from(&usage_c)
        .and(&share_c)
        .map_collect(|&usage, &share| reanchor::usage(decay, usage, share));
    let rate_c = usage_c.mapv(|usage| reanchor::rate(decay, usage, codes));
    let rate_c1 = rate_c.view().insert_axis(Axis(1));
    let codebook_cd = &codebook_cd * &(1.0 - &rate_c1) + &anchor_cd * &rate_c1;
    (usage_c, rate_c, codebook_cd)
}

/// `E sum_e f_e P_e` over softmax(logits / temperature), `f` the share of all choices; the release
/// divides it by k.
pub fn balance_terms(
    logits_te: ArrayView2<'_, f64>,
    expert_tk: ArrayView2<'_, usize>,
    temperature: f64,
    over_k: bool,
) -> LoadBalance {
    let prob_te = score::softmax((&logits_te / temperature).view());
    let mut balance = LoadBalance::of(prob_te.view(), expert_tk, AuxForm::DivK);
    if over_k {
        balance.loss /= expert_tk.ncols() as f64;
    }
    balance
}

/// Share of tokens that have the same set of experts in two routings.
pub fn consistency(before_tk: ArrayView2<'_, usize>, now_tk: ArrayView2<'_, usize>) -> f64 {
    let set = |row: ArrayView1<'_, usize>| row.iter().copied().collect::<BTreeSet<_>>();
    let pairs = before_tk.rows().into_iter().zip(now_tk.rows());
    pairs.filter(|(a, b)| set(*a) == set(*b)).count() as f64 / before_tk.nrows() as f64
}

/// Mean |cosine| of different rows: 1 if all are parallel.
pub fn collapse(y_nd: ArrayView2<'_, f64>) -> f64 {
    let n = y_nd.nrows();
    let cos_nn = score::cosine(y_nd, y_nd, COS_FLOOR);
    let all = cos_nn.mapv(f64::abs).sum() - cos_nn.diag().mapv(f64::abs).sum();
    all / (n * (n - 1)) as f64
}
