//! VQMoE: On the Role of Discrete Representation in Sparse Mixture of Experts. Do et al., 2024, arXiv
//! 2411.19402.
//!
//! A token is given an expert through a learned discrete code besides a linear router. In pre-training
//! both branches run on one set of experts; in fine-tuning and inference the discrete one alone.
//!
//! ```text
//! g = softmax(x W_g^T + b_g)                                       branch gates          (1)
//! y_c = sum over top-k of softmax(z over the k)_j E_j(x)           continuous branch     (2)
//!       z = x e^T with e of length 1 (`embedding`), or x R^T + b (`linear`)
//! code = argmin_k D(x, c_k),  q = c_code,  D = |x - c|^2 or 1 - cos                      (3)
//! L_vq = mean (q - sg[x])^2 + beta mean (sg[q] - x)^2                                    (4)
//! m = (1 - lambda) x + lambda sg[q - x]   (`code_mix`)                                   (5)
//!     x + sg[q - x]                       (`quantized`, straight through)
//! y_d = LN(E_i(LN(m))),  i = code mod E, or code / (K / E)         discrete branch       (6)
//! y = g_0 y_c + g_1 y_d,  or y_d alone (`mode = discrete`)                               (7)
//! ```
//!
//! The layer calls its experts twice, so it is no router and not in [`crate::PAPERS`]: [`host::layer`] and
//! [`torch::layer`] take the experts as a closure over (expert, rows). (1)-(2) are `continuous`, (3)-(5)
//! `quantize`, (6) `discrete`, (7) `layer` of either side.
//!
//! Paper and released code differ (presets): `reference` feeds 5 % of the code through a LayerNorm that
//! serves three times, and has one codebook for all experts; `paper` feeds the code itself and has one
//! block of codes per expert; `paper_finetune` is its discrete branch alone (the release has no such path).
//! Unverified: the paper's notation of (7), which losses fine-tuning uses.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

pub mod host;
pub mod torch;

use crate::config::{ConfigError, Preset, check_weight};
use serde::{Deserialize, Serialize};

/// What the discrete expert reads (5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Token and code mixed.
    CodeMix,
    /// The code, with the token's gradient.
    Quantized,
}

/// How far a token is from a code (3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Squared Euclidean.
    L2,
    /// One minus the cosine.
    Cos,
}

/// Which expert a code belongs to (6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeMap {
    /// `code mod E`.
    Mod,
    /// The codebook is E equal blocks.
    Block,
}

impl CodeMap {
    /// The expert of every code, `[c]`.
    ///
    /// # Errors
    /// Names the codebook if it cannot be cut into equal blocks.
    pub fn expert_c(self, codes: usize, experts: usize) -> Result<Vec<usize>, ConfigError> {
        let whole = experts > 0 && codes.is_multiple_of(experts);
        match self {
            Self::Mod => Ok((0..codes).map(|code| code % experts).collect()),
            Self::Block if whole => Ok((0..codes).map(|code| code / (codes / experts)).collect()),
            Self::Block => {
                let reason = format!("{codes} codes are not {experts} equal blocks");
                Err(ConfigError::setting("codebook", reason))
            }
        }
    }
}

/// How the continuous branch scores experts (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// By expert embeddings of length 1.
    Embedding,
    /// By a linear map.
    Linear,
}

/// Which branches run (7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Both.
    Pretrain,
    /// The discrete one.
    Discrete,
}

/// The residual around the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// None.
    None,
    /// `LN(x + y)`.
    Post,
    /// `x + y(LN x)`.
    Pre,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the discrete expert reads.
    pub input: Input,
    /// `lambda` of (5).
    pub mix_rate: f64,
    /// Weight of the commitment term (4).
    pub beta: f64,
    /// Distance of token and code.
    pub distance: Distance,
    /// LayerNorm before the discrete expert.
    pub ln_in: bool,
    /// LayerNorm behind it.
    pub ln_out: bool,
    /// Expert of a code.
    pub code_map: CodeMap,
    /// Score of the continuous branch.
    pub score: Score,
    /// Which branches run.
    pub mode: Mode,
    /// The residual around the layer.
    pub block: Block,
    /// Experts per token in the continuous branch.
    pub top_k: usize,
    /// Epsilon of the norm.
    pub ln_eps: f64,
    /// Floor of an embedding's length.
    pub embed_eps: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["reference", "paper", "paper_finetune"];

    fn preset(name: &str) -> Self {
        let released = name == "reference";
        Self {
            input: if released { Input::CodeMix } else { Input::Quantized },
            mix_rate: 0.05,
            beta: 0.25,
            distance: Distance::L2,
            ln_in: released,
            ln_out: released,
            code_map: if released { CodeMap::Mod } else { CodeMap::Block },
            score: if released { Score::Embedding } else { Score::Linear },
            mode: if name == "paper_finetune" { Mode::Discrete } else { Mode::Pretrain },
            block: Block::None,
            top_k: 1,
            ln_eps: 1e-5,
            embed_eps: 1e-4,
        }
    }
}

impl Config {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.mix_rate) {
            let reason = format!("{} is outside 0..=1", self.mix_rate);
            return Err(ConfigError::setting("mix_rate", reason));
        }
        check_weight("beta", self.beta)?;
        check_weight("ln_eps", self.ln_eps)?;
        check_weight("embed_eps", self.embed_eps)
    }
}

/// Shortest length that a cosine divides by.
const COS_FLOOR: f64 = 1e-12;

/// Codes that are hardly used move towards tokens (the online-clustered variant of the release).
pub mod reanchor {
    use crate::config::ConfigError;

    /// `usage <- decay usage + (1 - decay) share`, one code.
    pub fn usage(decay: f64, usage: f64, share: f64) -> f64 {
        decay * usage + (1.0 - decay) * share
    }

    /// How far a code of this usage moves to its anchor, one of `codes`.
    pub fn rate(decay: f64, usage: f64, codes: usize) -> f64 {
        (-10.0 * codes as f64 * usage / (1.0 - decay) - 1e-3).exp()
    }

    /// `decay` must lie in `0..1`: the rate divides by what is missing to 1.
    ///
    /// # Errors
    /// Names `decay`.
    pub fn check(decay: f64) -> Result<(), ConfigError> {
        if (0.0..1.0).contains(&decay) {
            return Ok(());
        }
        Err(ConfigError::setting("decay", format!("{decay} is outside 0..1")))
    }
}

#[cfg(test)]
mod tests;
