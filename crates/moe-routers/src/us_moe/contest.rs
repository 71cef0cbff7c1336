//! Contests among pairs of token and expert: (4), and token and expert choice as the same thing with
//! other opponents.
//!
//! Axis letters: `g` groups, `t` tokens, `e` experts, `n` pairs, token-major, `p` of them, `q` contests.

use super::{Config, Group};
use crate::order::largest;
use crate::router::axes3;
use moe_core::top_k;
use ndarray::{Array2, ArrayView2};
use tch::{Device, Kind, Tensor};

/// Which tokens compete together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowd {
    /// Group of each token, below `groups`, `[t]`.
    pub group_t: Vec<usize>,
    /// Number of groups.
    pub groups: usize,
    /// Tokens that take part, `[t]`; the others get nothing and do not count.
    pub valid_t: Vec<bool>,
}

impl Crowd {
    /// One group of the router, its tokens together or each alone.
    pub fn one(group: Group, tokens: usize, padding_t: Option<&[bool]>) -> Self {
        let group_t = match group {
            Group::All => vec![0; tokens],
            Group::Token => (0..tokens).collect(),
        };
        let valid_t = (0..tokens).map(|t| padding_t.is_none_or(|padding_t| !padding_t[t]));
        let groups = if group == Group::All { 1 } else { tokens };
        Self { group_t, groups, valid_t: valid_t.collect() }
    }

    /// Tokens that take part in each group, `[g]`.
    fn sizes(&self) -> Vec<usize> {
        let mut tokens_g = vec![0; self.groups];
        for (&group, _) in self.group_t.iter().zip(&self.valid_t).filter(|(_, valid)| **valid) {
            tokens_g[group] += 1;
        }
        tokens_g
    }
}

/// In each contest the `budget_q` best pairs win, the lower flat index in a tie. `contest` names the
/// contest of a pair; a pair of an invalid token has none.
fn compete_host(
    score_te: ArrayView2<'_, f64>,
    crowd: &Crowd,
    contest: impl Fn(usize, usize) -> usize,
    budget_q: &[usize],
) -> Array2<bool> {
    let mut pairs_q = vec![Vec::new(); budget_q.len()];
    for (t, e) in ndarray::indices(score_te.dim()) {
        if crowd.valid_t[t] {
            pairs_q[contest(t, e)].push((t, e));
        }
    }
    let mut mask_te = Array2::from_elem(score_te.dim(), false);
    for (pairs, &budget) in pairs_q.iter().zip(budget_q) {
        for winner in top_k(pairs.iter().map(|&pair| score_te[pair]), budget) {
            mask_te[pairs[winner]] = true;
        }
    }
    mask_te
}

/// (4): the selected pairs, `[t, e]`, and the budget of each group.
///
/// # Panics
/// If the crowd has not as many tokens as there are scores.
pub fn select_host(
    config: &Config,
    score_te: ArrayView2<'_, f64>,
    crowd: &Crowd,
) -> (Array2<bool>, Vec<usize>) {
    let experts = score_te.ncols();
    let budget_g: Vec<usize> =
        crowd.sizes().into_iter().map(|tokens| config.budget(tokens, experts)).collect();
    let mask_te = compete_host(score_te, crowd, |t, _| crowd.group_t[t], &budget_g);
    (mask_te, budget_g)
}

/// Each token its k best experts by the same scores, `[t, e]`.
///
/// # Panics
/// As [`select_host`].
pub fn token_choice_host(
    config: &Config,
    score_te: ArrayView2<'_, f64>,
    crowd: &Crowd,
) -> Array2<bool> {
    let budget_t = vec![config.top_k as usize; score_te.nrows()];
    compete_host(score_te, crowd, |t, _| t, &budget_t)
}

/// In each group each expert its `k S / E` best tokens by the same scores, `[t, e]`.
///
/// # Panics
/// As [`select_host`].
pub fn expert_choice_host(
    config: &Config,
    score_te: ArrayView2<'_, f64>,
    crowd: &Crowd,
) -> Array2<bool> {
    let experts = score_te.ncols();
    let places = |tokens| std::iter::repeat_n(config.places(tokens, experts), experts);
    let budget_ge: Vec<usize> = crowd.sizes().into_iter().flat_map(places).collect();
    compete_host(score_te, crowd, |t, e| crowd.group_t[t] * experts + e, &budget_ge)
}

/// A [`Crowd`] on the device.
#[derive(Debug)]
pub struct TensorCrowd {
    /// Group of each token, `[t]`, int64.
    pub group_t: Tensor,
    /// Number of groups.
    pub groups: i64,
    /// Tokens that take part, `[t]`, bool.
    pub valid_t: Tensor,
}

impl TensorCrowd {
    /// A copy of a crowd of the host.
    pub fn from_host(crowd: &Crowd, device: Device) -> Self {
        let group_t: Vec<i64> = crowd.group_t.iter().map(|&g| g as i64).collect();
        Self {
            group_t: Tensor::from_slice(&group_t).to_device(device),
            groups: crowd.groups as i64,
            valid_t: Tensor::from_slice(&crowd.valid_t).to_device(device),
        }
    }

    /// Tokens that take part in each group, `[g]`, int64.
    fn sizes(&self) -> Tensor {
        self.group_t.masked_select(&self.valid_t).bincount(None::<Tensor>, self.groups)
    }

    /// As [`compete_host`]: winners of the contests `contest_te`, int64. Two stable sorts and no copy
    /// to the host.
    fn compete(&self, score_te: &Tensor, contest_te: &Tensor, budget_q: &Tensor) -> Tensor {
        let contests = budget_q.numel() as i64;
        // One more contest, with nothing to win, for tokens that take no part.
        let out_t1 = self.valid_t.logical_not().unsqueeze(-1);
        let contest_n = contest_te.masked_fill(&out_t1, contests).flatten(0, -1);
        let nothing = Tensor::zeros([1], (Kind::Int64, budget_q.device()));
        let budget_q = Tensor::cat(&[budget_q, &nothing], 0);
        let by_score_n = score_te.detach().flatten(0, -1).argsort_stable(true, 0, true);
        let by_contest_n = contest_n.index_select(0, &by_score_n).argsort_stable(true, 0, false);
        let pair_n = by_score_n.index_select(0, &by_contest_n);
        let contest_n = contest_n.index_select(0, &pair_n);
        let length_q = contest_n.bincount(None::<Tensor>, contests + 1);
        let start_q = length_q.cumsum(0, Kind::Int64) - length_q;
        let place_n = Tensor::arange(pair_n.numel() as i64, (Kind::Int64, pair_n.device()))
            - start_q.index_select(0, &contest_n);
        let wins_n = place_n.lt_tensor(&budget_q.index_select(0, &contest_n));
        wins_n.zeros_like().scatter(0, &pair_n, &wins_n).view_as(score_te)
    }
}

/// (4): the selected pairs, `[t, e]`, bool, and the budget of each group, int64.
pub fn select(config: &Config, score_te: &Tensor, crowd: &TensorCrowd) -> (Tensor, Tensor) {
    let budget_g = config.budgets(&crowd.sizes(), score_te.size()[1]);
    let contest_te = crowd.group_t.unsqueeze(-1).expand_as(score_te);
    (crowd.compete(score_te, &contest_te, &budget_g), budget_g)
}

/// (4) for the equal groups of a router, `[g, t, e]`, their tokens together or each alone: the selected
/// pairs, bool. One selection in every contest, where [`select`] sorts all pairs.
pub fn select_in_groups(
    config: &Config,
    score_gte: &Tensor,
    padding_gt: Option<&Tensor>,
) -> Tensor {
    let (g, t, e) = axes3(score_gte);
    let (contests, tokens) = match config.group {
        Group::All => (g, t),
        Group::Token => (g * t, 1),
    };
    let options = (Kind::Int64, score_gte.device());
    let most = config.budget(tokens as usize, e as usize) as i64;
    let mut score_gte = score_gte.detach();
    let mut budget_q1 = Tensor::full([contests, 1], most, options);
    if let Some(padding_gt) = padding_gt {
        // Behind every pair that takes part, of which there are at least as many as the budget.
        score_gte = score_gte.masked_fill(&padding_gt.unsqueeze(-1), f64::NEG_INFINITY);
        let valid_qt = padding_gt.logical_not().reshape([contests, tokens]);
        let size_q1 = valid_qt.sum_dim_intlist(-1, true, Kind::Int64);
        budget_q1 = config.budgets(&size_q1, e);
    }
    let score_qn = score_gte.reshape([contests, tokens * e]);
    let pair_qp = largest(&score_qn, most);
    let wins_qp = Tensor::arange(most, options).lt_tensor(&budget_q1).expand_as(&pair_qp);
    let nothing_qn = score_qn.zeros_like().to_kind(Kind::Bool);
    nothing_qn.scatter(-1, &pair_qp, &wins_qp).view([g, t, e])
}

/// Each token its k best experts by the same scores, `[t, e]`, bool.
pub fn token_choice(config: &Config, score_te: &Tensor, crowd: &TensorCrowd) -> Tensor {
    let token_t = Tensor::arange(score_te.size()[0], (Kind::Int64, score_te.device()));
    let budget_t = token_t.full_like(config.top_k as i64);
    crowd.compete(score_te, &token_t.unsqueeze(-1).expand_as(score_te), &budget_t)
}

/// In each group each expert its `k S / E` best tokens by the same scores, `[t, e]`, bool.
pub fn expert_choice(config: &Config, score_te: &Tensor, crowd: &TensorCrowd) -> Tensor {
    let experts = score_te.size()[1];
    let expert_e = Tensor::arange(experts, (Kind::Int64, score_te.device()));
    let contest_te = crowd.group_t.unsqueeze(-1) * experts + expert_e;
    let places_g = config.places_of(&crowd.sizes(), experts);
    let budget_ge = places_g.unsqueeze(-1).expand([crowd.groups, experts], false).flatten(0, -1);
    crowd.compete(score_te, &contest_te, &budget_ge)
}
