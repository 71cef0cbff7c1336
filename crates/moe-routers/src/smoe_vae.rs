//! SMoE-VAE: a variational autoencoder with a mixture of decoder experts. Nikolic, Oguz, Psaltis, 2025,
//! arXiv 2509.10025.
//!
//! One encoder for all images, a gate on the latent, N decoders. One decision per image.
//!
//! ```text
//! z = mu + exp(logvar / 2) eps,  in training and in evaluation                        (1)
//! p = softmax(gate(z))                                                                (2)
//! xhat = sum_n p_n D_n(z) in training, D_argmax(z) in evaluation                      (3)
//! recon = sum (xhat - x)^2,  KL = -1/2 sum (1 + logvar - mu^2 - e^logvar)             (4)
//! L_lb = N sum_n (pbar_n - 1/N)^2,  L_ent = mean_b -sum_n p ln(p + 1e-8)              (5)
//! L = recon + beta KL + c_lb L_lb + c_ent L_ent                                       (6)
//! supervised: the hard expert in training too; L = recon + beta KL + c_lb CE,
//! CE = sum_b cross-entropy of ln(p + 1e-8), through a log-softmax, against label mod N (7)
//! ```
//!
//! (4) are sums over the batch beside (5), means: hence the large coefficients. It is a model whose gate is a
//! router over rows, [`PAPER`]: (2), the weights of (3), and the gate's part of (6) and (7), with the experts
//! of a layer for decoders. A VAE backbone calls `reparameterise` (1) and `loss` (4)-(7) of either side, or
//! takes the router; the release's small encoder and decoder are in `networks` and `torch`, its parameter
//! counts in [`count`].
//!
//! Axis letters: `b` images, `n` experts, `p` pixels, `z` latent width, `c` channels, `s` side of an image.

pub mod count;
pub mod host;
pub mod networks;
pub mod router;
pub mod torch;

use crate::config::{ConfigError, Preset, check_weight, resolve};
use crate::router::{Method, Paper};
use serde::{Deserialize, Serialize};

/// What its gate is.
pub const PAPER: Paper = Paper {
    id: "smoe-vae",
    title: "SMoE-VAE: a variational autoencoder with a mixture of decoder experts",
    authors: "Nikolic, Oguz, Psaltis 2025",
    arxiv: "2509.10025",
    idea: "A variational autoencoder whose decoder is a mixture of experts, routed once per image on the latent.\n\
        Do experts that learn without labels divide data as people do?\n\
        In training all decoders run and their outputs are mixed by the gate; in evaluation only the best one runs.\n\
        A balance term keeps decoders in use, an entropy term makes the gate decide.\n\
        What the experts then divide the data into can be compared with the classes.",
    state: "parameters: a gate of three linear maps with biases, w1 [64, d], w2 [32, 64], w3 [e, 32]; encoder and decoders are the model's",
    cost: "the gate (64 d + 2048 + 32 e multiply-adds in the place of W x); in unsupervised training e expert calls, in evaluation and in supervised training one",
    equations: &[
        ("(1)", "smoe_vae::torch::reparameterise"),
        ("(2)", "smoe_vae::torch::gate_mlp"),
        ("(3)", "smoe_vae::torch::gate"),
        ("(4), (6)", "smoe_vae::torch::loss"),
        ("(5)", "smoe_vae::torch::balance, smoe_vae::torch::entropy"),
        ("(7)", "smoe_vae::torch::cross_entropy"),
    ],
    deviations: &[
        "all facts are from the released code; the paper's text was not available, so preset `paper` is `reference`",
        "the router is the gate alone, over any rows: in the paper they are the latents of a batch of images, one decision each, which is one group here; encoder, decoders, (1), (4) and beta belong to a model",
        "the coefficients stand beside sums over a batch of 128 images; here a task loss is a mean, so those of (5) are divided by `batch` (128) and that of (7), a sum itself, by the rows of a group",
        "not compared: unsupervised training runs every expert on every row, evaluation one, so that no terms are equal; experts are sized for training",
        "`supervised` takes the ids of tokens for labels: it serves where these are classes, and needs them in training",
        "initial weights are normal with the variance of the release's uniform ones; biases begin at zero",
        "comments of the release speak of Gumbel-softmax and a temperature; none is applied",
    ],
    unverified: &[
        "the paper's own coefficients, and its title",
        "that the divided coefficients, made for the squared error of an image, suit the loss of another model",
    ],
    presets: Config::PRESETS,
    compared: &[],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<router::GateConfig>(settings)?))),
};

/// Widths between the latent and the gate's logits (2).
pub const GATE_HIDDEN: [u16; 2] = [64, 32];

/// Training or evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every expert runs.
    Train,
    /// The most probable one runs.
    Eval,
}

/// What teaches the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The reconstruction, (5) and (6).
    Unsupervised,
    /// Labels (7).
    Supervised,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Training or evaluation.
    pub mode: Mode,
    /// What teaches the gate.
    pub objective: Objective,
    /// Weight of the divergence.
    pub beta: f64,
    /// Weight of the balance loss, or of the cross-entropy.
    pub balance_coeff: f64,
    /// Weight of the entropy.
    pub entropy_coeff: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "reference", "debug", "supervised"];

    fn preset(name: &str) -> Self {
        let (beta, balance_coeff, entropy_coeff) =
            if name == "debug" { (1.0, 1.0, 1.0) } else { (0.01, 200.0, 400.0) };
        let supervised = name == "supervised";
        let objective = if supervised { Objective::Supervised } else { Objective::Unsupervised };
        Self { mode: Mode::Train, objective, beta, balance_coeff, entropy_coeff }
    }
}

impl Config {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_weight("beta", self.beta)?;
        check_weight("balance_coeff", self.balance_coeff)?;
        check_weight("entropy_coeff", self.entropy_coeff)
    }

    /// Whether all experts run (3).
    pub fn dense(&self) -> bool {
        self.objective.dense(self.mode)
    }
}

impl Objective {
    /// Whether all experts run (3).
    pub fn dense(self, mode: Mode) -> bool {
        mode == Mode::Train && self == Self::Unsupervised
    }
}

/// Keeps the logarithm of a probability finite (5), (7).
const LOG_EPS: f64 = 1e-8;

#[cfg(test)]
mod tests;
