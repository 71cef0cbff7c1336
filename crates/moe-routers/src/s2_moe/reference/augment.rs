//! The noisy copy (1) of S2MoE in plain host arithmetic, value by value.
//!
//! Axis letters: `t` tokens of one group, `d` width.

use crate::s2_moe::{Config, Noise, StatsAxis};
use ndarray::{Array1, Array2, ArrayView2};

/// What (1) is given besides the tokens; as [`crate::s2_moe::Perturbation`].
#[derive(Debug, Clone, Default)]
pub struct Perturbation {
    /// Multiplicative draw, `[t, d]`.
    pub eps1_td: Option<Array2<f64>>,
    /// Additive draw, `[t, d]`.
    pub eps2_td: Option<Array2<f64>>,
    /// Number of the sequence of each token, `[t]`; `None` is one sequence.
    pub sequence_t: Option<Vec<usize>>,
    /// Scale after instance normalisation, `[d]`.
    pub in_weight_d: Option<Array1<f64>>,
    /// Shift after instance normalisation, `[d]`.
    pub in_bias_d: Option<Array1<f64>>,
    /// Mean and standard deviation, each `[t, d]`, to be used in the place of those of the tokens.
    pub held: Option<[Array2<f64>; 2]>,
}

/// A noisy copy and the statistics that made it, each `[t, d]`; zero statistics for padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Augmented {
    /// `x^`.
    pub x_td: Array2<f64>,
    /// Mean of the token's sequence, or of the token (`features`).
    pub mean_td: Array2<f64>,
    /// Standard deviation likewise.
    pub std_td: Array2<f64>,
}

/// Mean and standard deviation of `values`; dividing by `n - 1` if `unbiased`.
fn moments(values: &[f64], unbiased: bool) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let by = if unbiased { (n - 1.0).max(1.0) } else { n };
    (mean, (squares / by).sqrt())
}

impl Perturbation {
    /// The tokens, no padding among them, whose values make the statistics of token `t`.
    fn mates(&self, t: usize, tokens: usize, padding_t: Option<&[bool]>) -> Vec<usize> {
        let same = |other: usize| self.sequence_t.as_ref().is_none_or(|q_t| q_t[other] == q_t[t]);
        let valid = |other: usize| padding_t.is_none_or(|padding_t| !padding_t[other]);
        (0..tokens).filter(|&other| same(other) && valid(other)).collect()
    }

    /// The copy of the value `x` at `at`, whose mean and deviation are known.
    fn copy(&self, config: &Config, at: [usize; 2], x: f64, (mean, std): (f64, f64)) -> f64 {
        let draw = |eps_td: &Option<Array2<f64>>| eps_td.as_ref().map_or(0.0, |eps| eps[at]);
        let (e1, e2) = (draw(&self.eps1_td), draw(&self.eps2_td));
        match config.noise {
            Noise::InstanceNorm => {
                let weight = self.in_weight_d.as_ref().map_or(1.0, |w| w[at[1]]);
                let bias = self.in_bias_d.as_ref().map_or(0.0, |b| b[at[1]]);
                let centred = (x - mean) / (std * std + config.in_eps).sqrt();
                (1.0 + config.scale_mul * e1) * (centred * weight + bias) + config.scale_add * e2
            }
            Noise::Statistics => {
                let s = config.noise_scale;
                (1.0 + s * std * e1) * x + s * (mean + std * e2)
            }
        }
    }
}

/// (1). Padding enters no statistics and stays as it is.
pub fn augment(
    config: &Config,
    x_td: ArrayView2<'_, f64>,
    given: &Perturbation,
    padding_t: Option<&[bool]>,
) -> Augmented {
    let normed = config.noise == Noise::InstanceNorm;
    let zero_td = Array2::zeros(x_td.dim());
    let mut found = Augmented { x_td: x_td.to_owned(), mean_td: zero_td.clone(), std_td: zero_td };
    let off = given.eps1_td.is_none() && given.eps2_td.is_none();
    for ((t, d), &x) in x_td.indexed_iter() {
        if padding_t.is_some_and(|padding_t| padding_t[t]) {
            continue;
        }
        let values: Vec<f64> = match config.stats_axis {
            StatsAxis::Features if !normed => x_td.row(t).to_vec(),
            _ => {
                let mates = given.mates(t, x_td.nrows(), padding_t);
                mates.into_iter().map(|other| x_td[[other, d]]).collect()
            }
        };
        let (mean, std) = match &given.held {
            Some([mean_td, std_td]) => (mean_td[[t, d]], std_td[[t, d]]),
            None => moments(&values, config.unbiased && !normed),
        };
        (found.mean_td[[t, d]], found.std_td[[t, d]]) = (mean, std);
        if !off && values.len() > 1 {
            found.x_td[[t, d]] = given.copy(config, [t, d], x, (mean, std));
        }
    }
    found
}
