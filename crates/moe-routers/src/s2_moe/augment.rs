//! The noisy copy (1) of S2MoE on libtorch.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `q` sequences of a group.

use super::{Config, Noise, StatsAxis};
use crate::router::axes3;
use tch::{Kind, Tensor};

/// What (1) is given besides the tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Perturbation<'a> {
    /// Multiplicative draw, `[g, t, d]`; absent counts as zero unless both are absent.
    pub eps1_gtd: Option<&'a Tensor>,
    /// Additive draw, `[g, t, d]`. Without any draw the augmentation is off.
    pub eps2_gtd: Option<&'a Tensor>,
    /// Number of the sequence of each token, from 0, `[g, t]`, int64; `None`: a group is a sequence.
    pub sequence_gt: Option<&'a Tensor>,
    /// Scale after instance normalisation, `[d]`.
    pub in_weight_d: Option<&'a Tensor>,
    /// Shift after instance normalisation, `[d]`.
    pub in_bias_d: Option<&'a Tensor>,
}

/// A noisy copy and the statistics that made it, each `[g, t, d]`.
#[derive(Debug)]
pub struct Augmented {
    /// `x^`.
    pub x_gtd: Tensor,
    /// Mean of the token's sequence, or of the token (`features`).
    pub mean_gtd: Tensor,
    /// Standard deviation likewise; of the population for instance normalisation.
    pub std_gtd: Tensor,
}

/// Mean, variance and whether there is only one value to take them of; broadcast to `[g, t, d]`.
struct Moments {
    mean_gtd: Tensor,
    var_gtd: Tensor,
    single_gt1: Tensor,
}

/// Which sequence each token counts in, ones and zeros, `[g, t, q]`; padding counts in none.
fn members(x_gtd: &Tensor, sequence_gt: Option<&Tensor>, padding_gt: Option<&Tensor>) -> Tensor {
    let (g, t, _) = axes3(x_gtd);
    let member_gtq = match sequence_gt {
        Some(sequence_gt) => {
            let sequences = sequence_gt.max().int64_value(&[]) + 1;
            sequence_gt.one_hot(sequences).to_kind(x_gtd.kind())
        }
        None => Tensor::ones([g, t, 1], (x_gtd.kind(), x_gtd.device())),
    };
    match padding_gt {
        Some(padding_gt) => member_gtq.masked_fill(&padding_gt.unsqueeze(-1), 0.0),
        None => member_gtq,
    }
}

/// Over the tokens of each sequence; the sum of squares is divided by `n - ddof`.
fn over_tokens(x_gtd: &Tensor, member_gtq: &Tensor, ddof: f64) -> Moments {
    let count_gq1 = member_gtq.sum_dim_intlist(1, false, None).unsqueeze(-1);
    let sum = |of_gtd: &Tensor| member_gtq.transpose(1, 2).matmul(of_gtd);
    // A number that no token bears leaves an empty sequence, which nobody reads.
    let mean_gtd = member_gtq.matmul(&(sum(x_gtd) / count_gq1.clamp_min(1.0)));
    let squares_gqd = sum(&(x_gtd - &mean_gtd).square());
    let var_gtd = member_gtq.matmul(&(squares_gqd / (&count_gq1 - ddof).clamp_min(1.0)));
    let single_gt1 = member_gtq.matmul(&count_gq1).le(1.0);
    Moments { mean_gtd, var_gtd, single_gt1 }
}

/// Over the features of each token.
fn over_features(x_gtd: &Tensor, ddof: f64) -> Moments {
    let (g, t, d) = axes3(x_gtd);
    let mean_gt1 = x_gtd.mean_dim(-1, true, None);
    let squares_gt1 = (x_gtd - &mean_gt1).square().sum_dim_intlist(-1, true, None);
    Moments {
        mean_gtd: mean_gt1.expand_as(x_gtd),
        var_gtd: (squares_gt1 / (d as f64 - ddof).max(1.0)).expand_as(x_gtd),
        single_gt1: Tensor::full([g, t, 1], i64::from(d == 1), (Kind::Bool, x_gtd.device())),
    }
}

/// Square root whose gradient at 0 is 0 rather than infinite: constant features have no spread.
fn root(var_gtd: &Tensor) -> Tensor {
    let spread_gtd = var_gtd.gt(0.0);
    let safe_gtd = var_gtd.where_self(&spread_gtd, &var_gtd.ones_like());
    safe_gtd.sqrt() * spread_gtd.to_kind(var_gtd.kind())
}

/// (1): the noisy copy. A sequence of one token (or, over features, a token of one feature) has no
/// spread and stays as it is. Padding (`padding_gt`, `[g, t]`, bool) enters no statistics and stays
/// as it is too.
pub fn augment(
    config: &Config,
    x_gtd: &Tensor,
    given: &Perturbation<'_>,
    padding_gt: Option<&Tensor>,
) -> Augmented {
    let normed = config.noise == Noise::InstanceNorm;
    let ddof = if normed || !config.unbiased { 0.0 } else { 1.0 };
    let mut moments = match config.stats_axis {
        StatsAxis::Features if !normed => over_features(x_gtd, ddof),
        _ => over_tokens(x_gtd, &members(x_gtd, given.sequence_gt, padding_gt), ddof),
    };
    if config.detach_stats {
        moments.mean_gtd = moments.mean_gtd.detach();
        moments.var_gtd = moments.var_gtd.detach();
    }
    let std_gtd = root(&moments.var_gtd);
    let off = given.eps1_gtd.is_none() && given.eps2_gtd.is_none();
    let noisy_gtd = if off {
        x_gtd.shallow_clone()
    } else {
        let copy_gtd = match config.noise {
            Noise::Statistics => shaken(config, x_gtd, (&moments.mean_gtd, &std_gtd), given),
            Noise::InstanceNorm => normalised(config, x_gtd, &moments, given),
        };
        let copy_gtd = x_gtd.where_self(&moments.single_gt1, &copy_gtd);
        padding_gt.map_or(copy_gtd.shallow_clone(), |padding_gt| {
            x_gtd.where_self(&padding_gt.unsqueeze(-1), &copy_gtd)
        })
    };
    Augmented { x_gtd: noisy_gtd, mean_gtd: moments.mean_gtd, std_gtd }
}

/// (1) itself; an absent draw is zero.
fn shaken(
    config: &Config,
    x_gtd: &Tensor,
    (mean_gtd, std_gtd): (&Tensor, &Tensor),
    given: &Perturbation<'_>,
) -> Tensor {
    let scaled =
        |eps_gtd: Option<&Tensor>| eps_gtd.map_or(x_gtd.zeros_like(), |eps_gtd| std_gtd * eps_gtd);
    let (n1_gtd, n2_gtd) = (scaled(given.eps1_gtd), mean_gtd + scaled(given.eps2_gtd));
    x_gtd + (n1_gtd * x_gtd + n2_gtd) * config.noise_scale
}

/// `(1 + scale_mul e1) IN(x) + scale_add e2`.
fn normalised(
    config: &Config,
    x_gtd: &Tensor,
    moments: &Moments,
    given: &Perturbation<'_>,
) -> Tensor {
    let mut in_gtd = (x_gtd - &moments.mean_gtd) / (&moments.var_gtd + config.in_eps).sqrt();
    in_gtd = given.in_weight_d.map_or(in_gtd.shallow_clone(), |weight_d| &in_gtd * weight_d);
    in_gtd = given.in_bias_d.map_or(in_gtd.shallow_clone(), |bias_d| &in_gtd + bias_d);
    let scaled = |eps_gtd: Option<&Tensor>, scale: f64| {
        eps_gtd.map_or(x_gtd.zeros_like(), |eps_gtd| eps_gtd * scale)
    };
    &in_gtd
        + scaled(given.eps1_gtd, config.scale_mul) * &in_gtd
        + scaled(given.eps2_gtd, config.scale_add)
}
