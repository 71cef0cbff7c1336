//! Routing and losses in plain `f64`, in the order of the equations.
//!
//! Axis letters: `b` images, `n` experts, `p` pixels, `z` latent width, `h` hidden width.

use super::{Config, LOG_EPS};
use moe_core::{score, top_k};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayView3, Axis};

/// (1); without a draw the mean.
pub fn reparameterise(
    mu_bz: ArrayView2<'_, f64>,
    logvar_bz: ArrayView2<'_, f64>,
    eps_bz: Option<ArrayView2<'_, f64>>,
) -> Array2<f64> {
    match eps_bz {
        Some(eps_bz) => &mu_bz + &(logvar_bz.mapv(|v| (v / 2.0).exp()) * eps_bz),
        None => mu_bz.to_owned(),
    }
}

/// A layer's matrix, `[out, in]`, and bias, `[out]`.
pub type Linear = (Array2<f64>, Array1<f64>);

/// The gate's logits, `[b, n]`: three linear layers, ReLU between them.
pub fn gate_mlp(z_bz: ArrayView2<'_, f64>, layers: &[Linear; 3]) -> Array2<f64> {
    let linear = |x: &Array2<f64>, (w, b): &Linear| x.dot(&w.t()) + b;
    // `max` would make a zero of a NaN.
    let relu = |x: Array2<f64>| x.mapv(|v| if v < 0.0 { 0.0 } else { v });
    let h_bh = relu(linear(&z_bz.to_owned(), &layers[0]));
    linear(&relu(linear(&h_bh, &layers[1])), &layers[2])
}

/// What the gate decided.
#[derive(Debug, Clone)]
pub struct Gate {
    /// (2), `[b, n]`.
    pub prob_bn: Array2<f64>,
    /// The most probable expert, the lower one in a tie, `[b]`.
    pub expert_b: Vec<usize>,
    /// Weights of (3), `[b, n]`.
    pub combine_bn: Array2<f64>,
    /// Who runs, `[b, n]`.
    pub mask_bn: Array2<f64>,
}

/// (2), and the weights of (3): of all experts if `dense`, else of the most probable one.
pub fn gate(dense: bool, logits_bn: ArrayView2<'_, f64>) -> Gate {
    let prob_bn = score::softmax(logits_bn);
    // By logits, which rounding cannot make equal.
    let best = |row: ArrayView1<'_, f64>| top_k(row.iter().copied(), 1)[0];
    let expert_b: Vec<usize> = logits_bn.rows().into_iter().map(best).collect();
    let mut hard_bn = Array2::zeros(prob_bn.dim());
    for (b, &n) in expert_b.iter().enumerate() {
        hard_bn[[b, n]] = 1.0;
    }
    let (combine_bn, mask_bn) = if dense {
        (prob_bn.clone(), Array2::ones(prob_bn.dim()))
    } else {
        (hard_bn.clone(), hard_bn)
    };
    Gate { prob_bn, expert_b, combine_bn, mask_bn }
}

/// (3): images from all decoders' images, `[b, n, p] -> [b, p]`.
pub fn mix(gate: &Gate, decoded_bnp: ArrayView3<'_, f64>) -> Array2<f64> {
    (&decoded_bnp * &gate.combine_bn.view().insert_axis(Axis(2))).sum_axis(Axis(1))
}

/// How many images each expert won, `[n]`.
pub fn load(gate: &Gate) -> Array1<f64> {
    let mut load_n = Array1::zeros(gate.prob_bn.ncols());
    for &n in &gate.expert_b {
        load_n[n] += 1.0;
    }
    load_n
}

/// What a batch is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// All decoders' images, `[b, n, p]`.
    pub decoded_bnp: ArrayView3<'a, f64>,
    /// The images, `[b, p]`.
    pub x_bp: ArrayView2<'a, f64>,
    /// Means, `[b, z]`.
    pub mu_bz: ArrayView2<'a, f64>,
    /// Logarithms of variances, `[b, z]`.
    pub logvar_bz: ArrayView2<'a, f64>,
    /// Classes, for the supervised objective.
    pub labels_b: Option<&'a [usize]>,
}

/// The terms of the objective.
#[derive(Debug, Clone)]
pub struct Losses {
    /// (3), `[b, p]`.
    pub xhat_bp: Array2<f64>,
    /// (4)
    pub recon: f64,
    /// (4), without beta.
    pub kl: f64,
    /// `pbar`, `[n]`.
    pub mean_prob_n: Array1<f64>,
    /// What teaches the gate.
    pub terms: Terms,
    /// Its weighted sum.
    pub gating: f64,
    /// (6) or (7).
    pub total: f64,
}

/// What teaches the gate.
#[derive(Debug, Clone)]
pub enum Terms {
    /// (5): balance, and the entropy of every image, `[b]`.
    Unsupervised {
        /// `L_lb`.
        balance: f64,
        /// Before the mean, `[b]`.
        entropy_b: Array1<f64>,
    },
    /// (7): cross-entropy and the experts aimed at.
    Supervised {
        /// `CE`.
        cross_entropy: f64,
        /// `label mod N`, `[b]`.
        target_b: Vec<usize>,
    },
}

/// (3)-(7); supervised if there are labels.
pub fn loss(config: &Config, gate: &Gate, batch: &Batch<'_>) -> Losses {
    let xhat_bp = mix(gate, batch.decoded_bnp);
    let recon = (&xhat_bp - &batch.x_bp).mapv(|v| v * v).sum();
    let (mu_bz, logvar_bz) = (batch.mu_bz, batch.logvar_bz);
    let kl = -0.5 * (1.0 + &logvar_bz - mu_bz.mapv(|v| v * v) - logvar_bz.mapv(f64::exp)).sum();
    let mean_prob_n = gate.prob_bn.mean_axis(Axis(0)).expect("a batch");
    let (terms, gating) = match batch.labels_b {
        None => unsupervised(config, gate, mean_prob_n.view()),
        Some(labels_b) => supervised(config, gate, labels_b),
    };
    let total = recon + config.beta * kl + gating;
    Losses { xhat_bp, recon, kl, mean_prob_n, terms, gating, total }
}

/// `L_lb` of (5).
pub fn balance(mean_prob_n: ArrayView1<'_, f64>) -> f64 {
    let experts = mean_prob_n.len() as f64;
    experts * mean_prob_n.mapv(|p| (p - 1.0 / experts).powi(2)).sum()
}

/// `L_ent` of (5) before the mean over images, `[b, n] -> [b]`.
pub fn entropy(prob_bn: ArrayView2<'_, f64>) -> Array1<f64> {
    -prob_bn.mapv(|p| p * (p + LOG_EPS).ln()).sum_axis(Axis(1))
}

/// `CE` of (7), and the experts aimed at, `[b]`.
pub fn cross_entropy(prob_bn: ArrayView2<'_, f64>, labels_b: &[usize]) -> (f64, Vec<usize>) {
    let log_bn = score::log_softmax(prob_bn.mapv(|p| (p + LOG_EPS).ln()).view());
    let target_b: Vec<usize> = labels_b.iter().map(|label| label % log_bn.ncols()).collect();
    let picked = target_b.iter().enumerate().map(|(b, &n)| log_bn[[b, n]]);
    (-picked.sum::<f64>(), target_b)
}

/// (5)
fn unsupervised(config: &Config, gate: &Gate, mean_prob_n: ArrayView1<'_, f64>) -> (Terms, f64) {
    let (balance, entropy_b) = (balance(mean_prob_n), entropy(gate.prob_bn.view()));
    let entropy = entropy_b.mean().unwrap_or(0.0);
    let gating = config.balance_coeff * balance + config.entropy_coeff * entropy;
    (Terms::Unsupervised { balance, entropy_b }, gating)
}

/// (7)
fn supervised(config: &Config, gate: &Gate, labels_b: &[usize]) -> (Terms, f64) {
    let (cross_entropy, target_b) = cross_entropy(gate.prob_bn.view(), labels_b);
    (Terms::Supervised { cross_entropy, target_b }, config.balance_coeff * cross_entropy)
}
