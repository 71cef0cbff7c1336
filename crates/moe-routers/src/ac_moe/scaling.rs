//! (1)-(7) on tensors. No gradient reaches the weights, so all of it is computed on detached tokens.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `k` choices, `c` clusters.

use super::config::{Config, Empty, Measure, Mix, Rescale};
use crate::router::{Routing, axes3};
use moe_core::RouteError;
use tch::{Kind, Tensor};

/// What the previous sparse layer says of the tokens.
#[derive(Debug)]
pub struct Labels {
    /// Its experts, best first, `[g, t, k]`, int64; the first column is the cluster.
    pub expert_gtk: Tensor,
    /// Their scores, `[g, t, k]`; needed to mix.
    pub score_gtk: Option<Tensor>,
    /// A number above every label: rows that the weights get.
    pub experts: usize,
}

impl Labels {
    /// Labels and scores of a previous routing whose tokens chose.
    ///
    /// # Errors
    /// If they did not.
    pub fn of(previous: &Routing) -> Result<Self, RouteError> {
        let what = "the previous layer's choices";
        let chosen = previous.chosen.as_ref().ok_or(RouteError::Missing { what })?;
        let expert_gtk = chosen.choices.expert_gtk.shallow_clone();
        let score_gtk = Some(previous.logits_gte.detach().gather(-1, &expert_gtk, false));
        Ok(Self { expert_gtk, score_gtk, experts: chosen.experts as usize })
    }

    /// One where token `t` has cluster `c`, `[g, t, c]`.
    fn membership(&self, clusters: usize, like: &Tensor) -> Tensor {
        self.expert_gtk.select(-1, 0).one_hot(clusters as i64).to_kind(like.kind())
    }

    /// Clusters up to the largest label of the group, `[g, c, 1]`, bool.
    fn used(&self, clusters: usize) -> Tensor {
        let largest_g1 = self.expert_gtk.flatten(1, 2).amax([1i64].as_slice(), true);
        let options = (Kind::Int64, self.expert_gtk.device());
        Tensor::arange(clusters as i64, options).le_tensor(&largest_g1).unsqueeze(-1)
    }
}

/// Statistics of the clusters.
#[derive(Debug)]
pub struct Clusters {
    /// Spread of each feature, `[g, c, d]`; 0 for an empty cluster.
    pub dispersion_gcd: Tensor,
    /// Mean of each feature, `[g, c, d]`; 0 for an empty cluster.
    pub mean_gcd: Tensor,
    /// Tokens, `[g, c, 1]`.
    pub count_gc1: Tensor,
}

/// Scaled tokens.
#[derive(Debug)]
pub struct Scaling {
    /// Weights of the clusters, `[g, c, d]`; `None` without labels.
    pub weights_gcd: Option<Tensor>,
    /// Weights of the tokens, `[g, t, d]`, constants.
    pub token_weights_gtd: Tensor,
    /// The scaled tokens, `[g, t, d]`, with the tokens' graph.
    pub scaled_gtd: Tensor,
}

/// (2).
pub fn dispersion(measure: Measure, x_gtd: &Tensor, labels: &Labels, clusters: usize) -> Clusters {
    let x_gtd = x_gtd.detach();
    let member_gtc = labels.membership(clusters, &x_gtd);
    let sums = |v_gtd: &Tensor| member_gtc.transpose(1, 2).matmul(v_gtd);
    let count_gc1 = sums(&x_gtd.narrow(-1, 0, 1).ones_like());
    let mean_gcd = sums(&x_gtd) / count_gc1.clamp_min(1.0);
    let off_gtd = &x_gtd - rows_of(&mean_gcd, &labels.expert_gtk.select(-1, 0));
    let dispersion_gcd = match measure {
        Measure::Mad => sums(&off_gtd.abs()) / count_gc1.clamp_min(1.0),
        Measure::Var => sums(&off_gtd.square()) / count_gc1.clamp_min(1.0),
        Measure::Pairwise => {
            let pairs_gc1: Tensor = &count_gc1 * (&count_gc1 - 1.0);
            sums(&distance_within(&x_gtd, &member_gtc)) / pairs_gc1.clamp_min(1.0)
        }
    };
    Clusters { dispersion_gcd, mean_gcd, count_gc1 }
}

/// The row of each token's cluster, `[g, c, d]` and `[g, t]` to `[g, t, d]`.
fn rows_of(v_gcd: &Tensor, label_gt: &Tensor) -> Tensor {
    let (g, c, d) = axes3(v_gcd);
    let first_g1 = (Tensor::arange(g, (Kind::Int64, v_gcd.device())) * c).unsqueeze(-1);
    let row_n = (label_gt + first_g1).flatten(0, -1);
    v_gcd.reshape([g * c, d]).index_select(0, &row_n).view([g, -1, d])
}

/// Sum over the other tokens of its cluster of a token's distance in each feature, `[g, t, d]`.
/// Takes `[g, t, t, d]` for a moment; no preset asks for it.
fn distance_within(x_gtd: &Tensor, member_gtc: &Tensor) -> Tensor {
    let same_gtt1 = member_gtc.matmul(&member_gtc.transpose(1, 2)).unsqueeze(-1);
    let distance_gttd = (x_gtd.unsqueeze(1) - x_gtd.unsqueeze(2)).abs();
    (distance_gttd * same_gtt1).sum_dim_intlist(2, false, None)
}

/// (3)-(6) over the clusters that are true in `used_gc1`; the others get weight 1.
///
/// # Errors
/// If a cluster that counts has `s + eps <= 0`. Copies one number to the host to know, but only if
/// `eps` is 0: a spread is never negative.
pub fn weights(config: &Config, found: &Clusters, used_gc1: &Tensor) -> Result<Tensor, RouteError> {
    let active_gc1 = match config.empty {
        Empty::AsCode => used_gc1.shallow_clone(),
        Empty::Neutral => used_gc1.logical_and(&found.count_gc1.ge(config.min_count as f64)),
    };
    let active_gcd = active_gc1.expand_as(&found.dispersion_gcd);
    let spread_gcd = (&found.dispersion_gcd + config.eps).where_scalarother(&active_gcd, 1.0);
    if config.eps == 0.0 {
        let least = spread_gcd.min().double_value(&[]);
        if least <= 0.0 {
            return Err(super::no_spread(least));
        }
    }
    let rows_g11 = active_gc1.to_kind(spread_gcd.kind()).sum_dim_intlist(1, true, None);
    let w_gcd = spread_gcd.reciprocal().where_scalarother(&active_gcd, 0.0); // (3)
    let w_gcd = limited(config, w_gcd, &rows_g11);
    Ok(w_gcd.where_scalarother(&active_gcd, 1.0))
}

/// (4)-(6) on weights that are 0 in the rows that do not count.
fn limited(config: &Config, mut w_gcd: Tensor, rows_g11: &Tensor) -> Tensor {
    let per_feature = |w_gcd: &Tensor| w_gcd.sum_dim_intlist(1, true, None) / rows_g11;
    let mean = |w_gcd: &Tensor| per_feature(w_gcd).mean_dim(-1, true, None);
    let before_g11 = mean(&w_gcd); // (4)
    if config.clip > 0.0 {
        w_gcd = w_gcd.minimum(&(&before_g11 * config.clip)); // (5)
    }
    match config.rescale {
        Rescale::None => w_gcd,
        Rescale::PerFeature => &w_gcd / per_feature(&w_gcd),
        Rescale::GlobalPre => w_gcd / before_g11,
        Rescale::GlobalPost => &w_gcd / mean(&w_gcd),
    }
}

/// (7): the weights of every token, `[g, t, d]`.
fn token_weights(
    config: &Config,
    weights_gcd: &Tensor,
    labels: &Labels,
) -> Result<Tensor, RouteError> {
    let score = labels.score_gtk.as_ref().map(Tensor::detach);
    let (_, c, _) = axes3(weights_gcd);
    let share_gtk = match (config.mix, score) {
        (Mix::Top1, _) => return Ok(rows_of(weights_gcd, &labels.expert_gtk.select(-1, 0))),
        (_, None) => return Err(RouteError::Missing { what: "prev_scores" }),
        (Mix::Soft, Some(score_gtk)) => score_gtk.softmax(-1, weights_gcd.kind()),
        (Mix::Raw, Some(score_gtk)) => score_gtk,
    };
    let member_gtkc = labels.expert_gtk.one_hot(c).to_kind(weights_gcd.kind());
    let share_gtc = (member_gtkc * share_gtk.unsqueeze(-1)).sum_dim_intlist(2, false, None);
    Ok(share_gtc.matmul(weights_gcd))
}

/// (1)-(7): the scaled tokens. Without labels nothing is scaled; `frozen_cd` takes the place of the
/// weights of all groups.
///
/// # Errors
/// Labels of another number of tokens or without a row of weights, no spread, missing scores.
pub fn scale(
    config: &Config,
    x_gtd: &Tensor,
    labels: Option<&Labels>,
    frozen_cd: Option<&Tensor>,
) -> Result<Scaling, RouteError> {
    let Some(labels) = labels else {
        let token_weights_gtd = x_gtd.detach().ones_like();
        let scaled_gtd = x_gtd.shallow_clone();
        return Ok(Scaling { weights_gcd: None, token_weights_gtd, scaled_gtd });
    };
    let ((g, t, _), (of_g, of_t, _)) = (axes3(x_gtd), axes3(&labels.expert_gtk));
    if (g, t) != (of_g, of_t) {
        let [expected, got] = [(g, t), (of_g, of_t)].map(|(g, t)| (g as usize, t as usize));
        return Err(RouteError::Shape { what: "previous choices", expected, got });
    }
    let weights_gcd = match frozen_cd {
        Some(frozen_cd) => {
            let rows = frozen_cd.size()[0];
            super::check_frozen(labels.experts, rows as usize)?;
            frozen_cd.detach().unsqueeze(0).expand([g, rows, -1], false)
        }
        None => group_weights(config, x_gtd, labels)?,
    };
    let token_weights_gtd = token_weights(config, &weights_gcd, labels)?;
    let scaled_gtd = &token_weights_gtd * x_gtd;
    Ok(Scaling { weights_gcd: Some(weights_gcd), token_weights_gtd, scaled_gtd })
}

/// (1)-(6). A group has as many clusters as its labels need; rows beyond stay out of every mean.
fn group_weights(config: &Config, x_gtd: &Tensor, labels: &Labels) -> Result<Tensor, RouteError> {
    let clusters = super::cluster_count(config, labels.experts)?;
    let found = dispersion(config.measure, x_gtd, labels, clusters);
    let used_gc1 = match config.num_clusters {
        0 => labels.used(clusters),
        _ => found.count_gc1.ge(0.0),
    };
    weights(config, &found, &used_gc1)
}
