//! S2MoE in plain host arithmetic, sequence by sequence.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices.

use super::{Balance, Config, NORM_FLOOR, NceOn, Noise, StatsAxis};
use moe_core::{AuxForm, Choices, Chosen, DropOrder, Plan, RouteError, balance as sums, score};
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

/// What (1) is given besides the tokens; as [`super::Perturbation`].
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
}

/// A noisy copy and the statistics that made it, each `[t, d]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Augmented {
    /// `x^`.
    pub x_td: Array2<f64>,
    /// Mean of the token's sequence, or of the token (`features`).
    pub mean_td: Array2<f64>,
    /// Standard deviation likewise.
    pub std_td: Array2<f64>,
}

impl Perturbation {
    /// The tokens that share a sequence with `t`, itself included.
    fn mates(&self, t: usize, tokens: usize) -> Vec<usize> {
        let same = |other: &usize| self.sequence_t.as_ref().is_none_or(|q_t| q_t[*other] == q_t[t]);
        (0..tokens).filter(same).collect()
    }
}

/// Mean and standard deviation of `values`; dividing by `n - 1` if `unbiased`.
fn moments(values: &[f64], unbiased: bool) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let by = if unbiased { (n - 1.0).max(1.0) } else { n };
    (mean, (squares / by).sqrt())
}

/// (1).
pub fn augment(config: &Config, x_td: ArrayView2<'_, f64>, given: &Perturbation) -> Augmented {
    let normed = config.noise == Noise::InstanceNorm;
    let (tokens, width) = x_td.dim();
    let mut found = Augmented {
        x_td: x_td.to_owned(),
        mean_td: Array2::zeros(x_td.dim()),
        std_td: Array2::zeros(x_td.dim()),
    };
    let off = given.eps1_td.is_none() && given.eps2_td.is_none();
    let draw =
        |eps_td: &Option<Array2<f64>>, at: [usize; 2]| eps_td.as_ref().map_or(0.0, |e| e[at]);
    for t in 0..tokens {
        let mates = given.mates(t, tokens);
        for d in 0..width {
            let values: Vec<f64> = match config.stats_axis {
                StatsAxis::Features if !normed => x_td.row(t).to_vec(),
                _ => mates.iter().map(|&other| x_td[[other, d]]).collect(),
            };
            let (mean, std) = moments(&values, config.unbiased && !normed);
            (found.mean_td[[t, d]], found.std_td[[t, d]]) = (mean, std);
            if off || values.len() == 1 {
                continue;
            }
            let (x, e1, e2) =
                (x_td[[t, d]], draw(&given.eps1_td, [t, d]), draw(&given.eps2_td, [t, d]));
            found.x_td[[t, d]] = if normed {
                let weight = given.in_weight_d.as_ref().map_or(1.0, |w| w[d]);
                let bias = given.in_bias_d.as_ref().map_or(0.0, |b| b[d]);
                let centred = (x - mean) / (std * std + config.in_eps).sqrt();
                (1.0 + config.scale_mul * e1) * (centred * weight + bias) + config.scale_add * e2
            } else {
                let s = config.noise_scale;
                (1.0 + s * std * e1) * x + s * (mean + std * e2)
            };
        }
    }
    found
}

/// (4) per token.
pub fn info_nce(
    a_td: ArrayView2<'_, f64>,
    b_td: ArrayView2<'_, f64>,
    tau: f64,
    symmetric: bool,
) -> Array1<f64> {
    let logits_tt = score::cosine(a_td, b_td, NORM_FLOOR) / tau;
    let own_t = logits_tt.diag().to_owned();
    let forth_t = score::log_sum_exp(logits_tt.view()) - &own_t;
    if !symmetric {
        return forth_t;
    }
    (forth_t + score::log_sum_exp(logits_tt.t()) - own_t) / 2.0
}

/// (5) of the clean routing; `kl` does not read the choices.
///
/// # Panics
/// If `switch` has no choices to count.
pub fn balance(
    form: Balance,
    logits_te: ArrayView2<'_, f64>,
    expert_tk: Option<ArrayView2<'_, usize>>,
) -> f64 {
    let prob_te = score::softmax(logits_te);
    match form {
        Balance::Switch => {
            let expert_tk = expert_tk.expect("the switch form counts choices");
            sums::load_balance(prob_te.view(), expert_tk, AuxForm::DivK)
        }
        Balance::Kl => {
            let mean_e = prob_te.mean_axis(Axis(0)).expect("at least one token");
            let uniform = 1.0 / mean_e.len() as f64;
            mean_e.iter().filter(|p| **p > 0.0).map(|p| p * (p / uniform).ln()).sum()
        }
    }
}

/// What the layer learns besides its experts; as [`super::Params`].
#[derive(Debug, Clone)]
pub struct Params {
    /// Router, `[e, d]`.
    pub router_ed: Array2<f64>,
    /// Its bias, `[e]`; zero where there is none.
    pub bias_e: Array1<f64>,
    /// Blend gate, `[d]`; inference does not read it.
    pub gate_w_d: Array1<f64>,
    /// Its bias.
    pub gate_b: f64,
}

/// One pass through the experts.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Output, `[t, d]`.
    pub y_td: Array2<f64>,
    /// Logits of the routing, `[t, e]`.
    pub logits_te: Array2<f64>,
    /// Experts and gates.
    pub choices: Choices,
    /// Who computes what.
    pub plan: Plan,
}

/// What a training step of the layer gives.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Blended output, `[t, d]`.
    pub y_td: Array2<f64>,
    /// Pass of the tokens.
    pub clean: Pass,
    /// Output of the noisy copies, `[t, d]`.
    pub noisy_td: Array2<f64>,
    /// Experts of the noisy copies, `[t, k]`.
    pub noisy_expert_tk: Array2<usize>,
    /// The noisy copies.
    pub augmented: Augmented,
    /// Blend `g`, `[t]`.
    pub blend_t: Array1<f64>,
    /// InfoNCE (4).
    pub nce: f64,
    /// Balance (5).
    pub balance: f64,
    /// `alpha L_b + beta L_u`.
    pub aux: f64,
}

impl Params {
    /// (2).
    fn pass(
        &self,
        x_td: ArrayView2<'_, f64>,
        k: usize,
        expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
    ) -> Result<Pass, RouteError> {
        let logits_te = x_td.dot(&self.router_ed.t()) + &self.bias_e;
        let choices = Choices::top_k(logits_te.view(), k);
        let gate_tk = score::softmax(choices.gate_tk.view());
        let room = (None, DropOrder::Arrival);
        let chosen = Chosen::new(choices.with_gates(gate_tk), logits_te.ncols(), room)?;
        let plan = chosen.plan()?;
        Ok(Pass { y_td: plan.apply(x_td, expert), logits_te, choices: chosen.choices, plan })
    }
}

/// A training step, (1)-(6).
///
/// # Errors
/// Gates that are not finite.
pub fn layer(
    config: &Config,
    params: &Params,
    x_td: ArrayView2<'_, f64>,
    given: &Perturbation,
    expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
) -> Result<Layer, RouteError> {
    let augmented = augment(config, x_td, given); // (1)
    let clean = params.pass(x_td, config.top_k, &expert)?; // (2)
    let (noisy_td, noisy_expert_tk) = if config.reroute {
        let noisy = params.pass(augmented.x_td.view(), config.top_k, &expert)?;
        (noisy.y_td, noisy.choices.expert_tk)
    } else {
        let noisy_td = clean.plan.apply(augmented.x_td.view(), &expert);
        (noisy_td, clean.choices.expert_tk.clone())
    };
    let blend_t = (x_td.dot(&params.gate_w_d) + params.gate_b).mapv(score::sigmoid);
    let mut y_td = clean.y_td.clone(); // (3)
    Zip::from(y_td.rows_mut()).and(noisy_td.rows()).and(&blend_t).for_each(|mut y_d, n_d, &g| {
        y_d.zip_mut_with(&n_d, |y, n| *y = g * *y + (1.0 - g) * n);
    });
    let (a_td, b_td) = match config.nce_on {
        NceOn::Inputs => (x_td, augmented.x_td.view()),
        NceOn::Outputs => (clean.y_td.view(), noisy_td.view()),
    };
    let nce = info_nce(a_td, b_td, config.tau, false).mean().unwrap_or(0.0); // (4)
    let expert_tk = clean.choices.expert_tk.view();
    let balance = balance(config.balance, clean.logits_te.view(), Some(expert_tk)); // (5)
    let aux = config.alpha * balance + config.beta * nce; // (6)
    Ok(Layer { y_td, clean, noisy_td, noisy_expert_tk, augmented, blend_t, nce, balance, aux })
}

/// Inference (6).
///
/// # Errors
/// Gates that are not finite.
pub fn infer(
    config: &Config,
    params: &Params,
    x_td: ArrayView2<'_, f64>,
    expert: impl Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync,
) -> Result<Pass, RouteError> {
    params.pass(x_td, config.top_k_infer, expert)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use ndarray::array;

    /// Two tokens, one expert that doubles its rows, gate of zero so g = 1/2. `x = (1, 3)`: mean 2,
    /// unbiased deviation sqrt(2). With e1 = (1, 0) and e2 = (0, 1):
    /// `x^_0 = (1 + sqrt 2) 1 + 2`, `x^_1 = 3 + 2 + sqrt 2`. `y = (2 x + 2 x^) / 2 = x + x^`. All cosines
    /// of positive numbers are 1, so InfoNCE is ln 2; one expert is balanced at exactly 1.
    #[test]
    fn by_hand() {
        let x_td = array![[1.0], [3.0]];
        let given = Perturbation {
            eps1_td: Some(array![[1.0], [0.0]]),
            eps2_td: Some(array![[0.0], [1.0]]),
            ..Perturbation::default()
        };
        let params = Params {
            router_ed: array![[1.0]],
            bias_e: array![0.0],
            gate_w_d: array![0.0],
            gate_b: 0.0,
        };
        let config = Config::preset("paper");
        let double = |_, rows: ArrayView2<'_, f64>| &rows * 2.0;
        let found = layer(&config, &params, x_td.view(), &given, double).unwrap();
        let root = 2f64.sqrt();
        let want = array![[1.0 + 3.0 + root], [3.0 + 5.0 + root]];
        assert!((&found.y_td - &want).iter().all(|miss| miss.abs() < 1e-12), "{found:?}");
        assert!((found.nce - 2f64.ln()).abs() < 1e-12);
        assert!((found.aux - (0.01 + 0.1 * 2f64.ln())).abs() < 1e-12);
        assert_eq!(infer(&config, &params, x_td.view(), double).unwrap().y_td, &x_td * 2.0);
    }
}
