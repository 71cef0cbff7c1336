//! Routing, losses and the release's small networks on libtorch.
//!
//! Axis letters: `b` images, `n` experts, `p` pixels, `z` latent width, `c` channels, `r` rows, `q` columns.

use super::{Config, LOG_EPS};
use tch::{Kind, Tensor};

/// (1); without a draw the mean.
pub fn reparameterise(mu_bz: &Tensor, logvar_bz: &Tensor, eps_bz: Option<&Tensor>) -> Tensor {
    match eps_bz {
        Some(eps_bz) => mu_bz + (logvar_bz / 2.0).exp() * eps_bz,
        None => mu_bz.shallow_clone(),
    }
}

/// A matrix, `[out, in]`, or kernels, `[out, in, 3, 3]`, and a bias, `[out]`.
pub type Weights = (Tensor, Tensor);

/// The gate's logits, `[b, n]`: three linear layers, ReLU between them.
pub fn gate_mlp(z_bz: &Tensor, layers: &[Weights; 3]) -> Tensor {
    let linear = |x: &Tensor, (w, b): &Weights| x.linear(w, Some(b));
    let h_bh = linear(z_bz, &layers[0]).relu();
    linear(&linear(&h_bh, &layers[1]).relu(), &layers[2])
}

/// What the gate decided.
#[derive(Debug)]
pub struct Gate {
    /// (2), `[b, n]`.
    pub prob_bn: Tensor,
    /// The most probable expert, the lower one in a tie, int64, `[b, 1]`.
    pub expert_b1: Tensor,
    /// Weights of (3), `[b, n]`; without a graph where they are hard.
    pub combine_bn: Tensor,
    /// Who runs, `[b, n]`.
    pub mask_bn: Tensor,
}

/// (2), and the weights of (3): of all experts if `dense`, else of the most probable one. There may be
/// axes before `b`.
pub fn gate(dense: bool, logits_bn: &Tensor) -> Gate {
    let prob_bn = logits_bn.softmax(-1, logits_bn.kind());
    // By logits, which rounding cannot make equal. Stable, because `argmax` picks any of equals.
    let expert_b1 = logits_bn.detach().argsort_stable(true, -1, true).narrow(-1, 0, 1);
    let hard_bn = prob_bn.detach().zeros_like().scatter_value(-1, &expert_b1, 1.0);
    let (combine_bn, mask_bn) = if dense {
        (prob_bn.shallow_clone(), hard_bn.ones_like())
    } else {
        (hard_bn.shallow_clone(), hard_bn)
    };
    Gate { prob_bn, expert_b1, combine_bn, mask_bn }
}

/// (3): images from all decoders' images, `[b, n, p] -> [b, p]`.
pub fn mix(gate: &Gate, decoded_bnp: &Tensor) -> Tensor {
    (decoded_bnp * gate.combine_bn.unsqueeze(-1)).sum_dim_intlist(1, false, None)
}

/// How many images each expert won, int64, `[n]`.
pub fn load(gate: &Gate) -> Tensor {
    gate.expert_b1.flatten(0, -1).bincount(None::<Tensor>, gate.prob_bn.size()[1])
}

/// What a batch is judged by; as in the plain form.
#[derive(Debug)]
pub struct Batch<'a> {
    /// All decoders' images, `[b, n, p]`.
    pub decoded_bnp: &'a Tensor,
    /// The images, `[b, p]`.
    pub x_bp: &'a Tensor,
    /// Means, `[b, z]`.
    pub mu_bz: &'a Tensor,
    /// Logarithms of variances, `[b, z]`.
    pub logvar_bz: &'a Tensor,
    /// Classes, int64, `[b]`, for the supervised objective.
    pub labels_b: Option<&'a Tensor>,
}

/// The terms of the objective.
#[derive(Debug)]
pub struct Losses {
    /// (3), `[b, p]`.
    pub xhat_bp: Tensor,
    /// (4)
    pub recon: Tensor,
    /// (4), without beta.
    pub kl: Tensor,
    /// `pbar`, `[n]`.
    pub mean_prob_n: Tensor,
    /// What teaches the gate.
    pub terms: Terms,
    /// Its weighted sum.
    pub gating: Tensor,
    /// (6) or (7).
    pub total: Tensor,
}

/// What teaches the gate.
#[derive(Debug)]
pub enum Terms {
    /// (5)
    Unsupervised {
        /// `L_lb`.
        balance: Tensor,
        /// Before the mean, `[b]`.
        entropy_b: Tensor,
    },
    /// (7)
    Supervised {
        /// `CE`.
        cross_entropy: Tensor,
        /// `label mod N`, int64, `[b]`.
        target_b: Tensor,
    },
}

/// (3)-(7); supervised if there are labels.
pub fn loss(config: &Config, gate: &Gate, batch: &Batch<'_>) -> Losses {
    let xhat_bp = mix(gate, batch.decoded_bnp);
    let recon = (&xhat_bp - batch.x_bp).square().sum(None::<Kind>);
    let (mu_bz, logvar_bz) = (batch.mu_bz, batch.logvar_bz);
    let kl = (logvar_bz + 1.0 - mu_bz.square() - logvar_bz.exp()).sum(None::<Kind>) * -0.5;
    let mean_prob_n = gate.prob_bn.mean_dim(0, false, None);
    let (terms, gating) = match batch.labels_b {
        None => unsupervised(config, gate, &mean_prob_n),
        Some(labels_b) => supervised(config, gate, labels_b),
    };
    let total = &recon + &kl * config.beta + &gating;
    Losses { xhat_bp, recon, kl, mean_prob_n, terms, gating, total }
}

/// `L_lb` of (5), `[.., n] -> [..]`.
pub fn balance(mean_prob_n: &Tensor) -> Tensor {
    let experts = mean_prob_n.size()[mean_prob_n.dim() - 1] as f64;
    (mean_prob_n - 1.0 / experts).square().sum_dim_intlist(-1, false, None) * experts
}

/// `L_ent` of (5) before the mean over images, `[.., n] -> [..]`.
pub fn entropy(prob_bn: &Tensor) -> Tensor {
    -(prob_bn * (prob_bn + LOG_EPS).log()).sum_dim_intlist(-1, false, None)
}

/// `CE` of (7), `[.., b, n] -> [..]`, and the experts aimed at, `[.., b]`, for labels of that shape.
pub fn cross_entropy(prob_bn: &Tensor, labels_b: &Tensor) -> (Tensor, Tensor) {
    let log_bn = (prob_bn + LOG_EPS).log().log_softmax(-1, prob_bn.kind());
    let target_b = labels_b.remainder(prob_bn.size()[prob_bn.dim() - 1]);
    let picked_b = log_bn.gather(-1, &target_b.unsqueeze(-1), false).squeeze_dim(-1);
    (-picked_b.sum_dim_intlist(-1, false, None), target_b)
}

/// (5)
fn unsupervised(config: &Config, gate: &Gate, mean_prob_n: &Tensor) -> (Terms, Tensor) {
    let (balance, entropy_b) = (balance(mean_prob_n), entropy(&gate.prob_bn));
    let gating = &balance * config.balance_coeff + entropy_b.mean(None) * config.entropy_coeff;
    (Terms::Unsupervised { balance, entropy_b }, gating)
}

/// (7)
fn supervised(config: &Config, gate: &Gate, labels_b: &Tensor) -> (Terms, Tensor) {
    let (cross_entropy, target_b) = cross_entropy(&gate.prob_bn, labels_b);
    let gating = &cross_entropy * config.balance_coeff;
    (Terms::Supervised { cross_entropy, target_b }, gating)
}

/// 3 x 3 with padding 1.
fn convolve(x_bcrq: &Tensor, (w, bias): &Weights, stride: i64) -> Tensor {
    x_bcrq.conv2d(w, Some(bias), [stride, stride], [1, 1], [1, 1], 1)
}

/// Encoder `lite`: two strided convolutions, then the heads of mean and log-variance, `[b, z]` each.
pub fn encode_lite(
    x_bcrq: &Tensor,
    convolutions: &[Weights; 2],
    heads: &[Weights; 2],
) -> [Tensor; 2] {
    let h_bcrq = convolve(&convolve(x_bcrq, &convolutions[0], 2).elu(), &convolutions[1], 2).elu();
    let flat = h_bcrq.flatten(1, -1);
    heads.each_ref().map(|(w, b)| flat.linear(w, Some(b)))
}

/// Decoder `lite`: a linear map, no activation, then twice: double, convolve. `[b, z] -> [b, 1, 4 side, 4 side]`.
pub fn decode_lite(
    z_bz: &Tensor,
    (fc, fc_bias): &Weights,
    convolutions: &[Weights; 2],
    side: i64,
) -> Tensor {
    let double = |x: &Tensor, side: i64| x.upsample_nearest2d([side, side], None, None);
    let h_bcrq = z_bz.linear(fc, Some(fc_bias)).view([z_bz.size()[0], -1, side, side]);
    let h_bcrq = convolve(&double(&h_bcrq, 2 * side), &convolutions[0], 1).elu();
    convolve(&double(&h_bcrq, 4 * side), &convolutions[1], 1).sigmoid()
}
