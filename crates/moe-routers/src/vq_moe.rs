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
//! L = L_task + w_vq L_vq + w_b L_b,  L_b = E sum_e f_e P_e / k,  P of softmax(z / tau)      (8)
//! ```
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

mod config;
pub mod host;
pub mod torch;

pub use config::{Block, CodeMap, Config, Distance, Input, Mode, Score};

use crate::config::{Preset, resolve};
use crate::router::{Method, Paper};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "vq-moe",
    title: "On the Role of Discrete Representation in Sparse Mixture of Experts",
    authors: "Do et al. 2024",
    arxiv: "2411.19402",
    idea: "A token visits the expert of its nearest code as well as the experts that a router picks.\n\
        A router that is learned together with its experts routes inconsistently, and representations collapse.\n\
        A codebook clusters the tokens, and a token's code names its expert without any router.\n\
        A learned gate of two blends this discrete branch with the routed, continuous one.\n\
        Fine-tuning may keep the discrete branch alone, which is meant to be cheaper and steadier.",
    state: "parameters: codebook [codes, d], router W [e, d] with bias [e] or unit embeddings [e, d], branch gate [2, d] and its bias [2], a LayerNorm's weight and bias [d] where `ln_in` or `ln_out` is set; in mode `discrete` codebook, router and branch gate are buffers",
    cost: "k expert calls for the router and one for the code; codes times d multiply-adds to find the nearest code, 2 d for the branch gate; in mode `discrete` one expert call and no W x",
    equations: &[
        ("(1), (2), (8)", "vq_moe::torch::VqMoe::continuous"),
        ("(3)-(5)", "vq_moe::torch::quantize"),
        ("(6)", "vq_moe::torch::VqMoe::discrete"),
        ("(7)", "vq_moe::torch::VqMoe::forward"),
    ],
    deviations: &[
        "`reference` is the release: 5 % of the code through a LayerNorm, one codebook for all experts (expert = code mod E), unit embeddings; `paper` feeds the code itself, has one block of codes per expert and a linear router; `paper_finetune` is its discrete branch alone (the release has no such path)",
        "the release uses one LayerNorm three times: before and after the discrete expert, as here, and as the norm of the block, which is the model's own here; so is the residual, and a `block` other than `none` is refused (the conformance operation has it)",
        "the norm's weight starts at 1 (released: normal around 1, deviation .02); experts have no dropout (released: .1, in the continuous branch)",
        "the release never computes its balance loss, so `reference` has weight 0 (the loss is reported): with k = 1 no loss moves its router, which stays random and orthogonal",
        "in discrete mode codebook, router and branch gate are buffers under their names of pre-training, so that its weights fit: `moe eval RUN --set router.mode=discrete`. Experts keep the width of pre-training, so that a token uses one of top_k + 1 shares of the active width; `[classify]` in a recipe fine-tunes from such weights",
        "a recipe's capacity acts on the continuous branch; the discrete branch drops nothing. In pre-training loads, gates and dropped tokens are reported of the continuous branch",
        "the online-clustered codebook is the function `reanchored` alone: after a step a router is told loads, but neither codes nor anchors. No published setting uses it",
    ],
    unverified: &[
        "the paper's notation of (7), its loss weights, its number of codes, and whether it balances (`paper` has the scripts' .08 and .01)",
        "that fine-tuning has the task loss alone",
        "initial values of the linear router",
    ],
    presets: Config::PRESETS,
    compared: &["reference", "paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Under which name the reference takes `sg[x]`, `[t, d]`.
pub const FIXED_TOKENS: &str = "fixed tokens";
/// Under which name the reference takes `sg[q]`, `[t, d]`.
pub const FIXED_CODES: &str = "fixed codes";

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
