//! ACMoE: routing in a space where the clusters of the previous layer are tight.
//!
//! *Tight Clusters Make Specialized Experts*, Nielsen, Teo, Abdullaev, Nguyen, 2025,
//! arXiv 2502.15315.
//!
//! ```text
//! c_t    = best expert of token t in the previous sparse layer; K = 1 + largest label      (1)
//! s_cq   = mean over the cluster of |x_tq - mu_cq|, x the input of this layer              (2)
//! W      = 1 / (s + eps)                                                                   (3)
//! m0     = mean of W                                                                       (4)
//! W      = min(W, clip m0)                                                                 (5)
//! W      = W / its mean: per feature, or over all before or after (5)                      (6)
//! x'_t   = W[c_t] * x_t, no gradient through W                                             (7)
//! l      = x' . e_i / max(|e_i|, embed_eps), or a linear router                            (8)
//! T      = top-k of l (plus noise), g = softmax over T, or over all and not renormalised   (9)
//! ```
//!
//! Numbers in brackets count the steps of the method. (1)-(7) add no parameter and keep no state: the
//! previous routing is an argument ([`RouteCx::previous`](crate::RouteCx)), and the statistics are
//! those of the group at hand.
//!
//! Not a [`Router`](crate::Router), and so beside it: [`scale`] and [`AcMoe::decide`] for a layer whose
//! experts read the scaled tokens too (`scope = router_and_experts`: apply the plan to
//! [`Scaling::scaled_gtd`]), [`soft`] for the Soft-MoE form, [`theory_weights`] for the optimum that the
//! paper derives.

mod config;
mod reference;
mod router;
mod scaling;
pub mod soft;
mod theory;

pub use config::{Config, Empty, Gate, MAX_CLUSTERS, Measure, Mix, Rescale, Scope, Score};
pub use reference::{
    HostAcMoe, HostClusters, HostDecision, HostLabels, HostScaling, host_cluster_count,
    host_dispersion, host_scale, host_weights,
};
pub use router::{AcMoe, Decision};
pub use scaling::{Clusters, Labels, Scaling, dispersion, scale, weights};
pub use theory::theory_weights;

use crate::config::{Preset, resolve};
use crate::router::{Method, Paper};
use moe_core::RouteError;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "ac-moe",
    title: "Tight Clusters Make Specialized Experts",
    authors: "Nielsen et al. 2025",
    arxiv: "2502.15315",
    idea: "A token is routed in a space that weighs each feature by how tightly its cluster agrees on it.\n\
        Routers cluster tokens, but in many dimensions irrelevant features hide the clusters.\n\
        The expert that a token had in the previous sparse layer names its cluster.\n\
        Better separated clusters are meant to give better matched experts and sturdier routes.",
    state: "parameters: expert embeddings or router [e, d], and a bias [e] if set, as without it: nothing is added. Within a pass: the previous layer's choices [t, k] and weights [c, d] of c clusters",
    cost: "k expert calls; means and spreads of c clusters, at most 2 c d multiply-adds, and d products to scale; a softmax over e",
    equations: &[
        ("(1)-(7)", "ac_moe::scale"),
        ("(8)-(9)", "AcMoe::decide"),
        ("optimal weights", "ac_moe::theory_weights"),
        ("Soft-MoE form", "ac_moe::soft"),
    ],
    deviations: &[
        "the paper weighs by 1/s (preset `paper`); the released code adds eps, clips and rescales, differently for language (`reference` = `lm`), Swin (`swin`) and Soft MoE (`soft`)",
        "the released language code routes by unit embeddings without bias, its baseline by a biased linear gate: a comparison of the two changes two things at once",
        "not causal: statistics pool all tokens of the group, later ones too, in training and evaluation",
        "as in the code, an empty cluster or one of a single token dominates the means (`empty = as_code`); `neutral` leaves it out",
        "through the `Router` seam experts read the tokens as they are; the vision code feeds them the scaled ones: apply the plan of `AcMoe::decide` to its `scaled_gtd`",
        "the scripts' balance weight 0.01 had no effect, so `balance_weight` is 0; the Swin code's importance and load losses are those of `v-moe` and are not part of this router",
        "a linear router has a bias only with `bias = true`",
        "without a previous layer nothing is scaled; a previous layer whose tokens do not choose is refused",
    ],
    unverified: &[
        "the paper's router as plain 1/s in front of a linear router, and its treatment of small clusters",
        "whether the release's plain layers inside a stack share the gate of its AC layers",
    ],
    presets: Config::PRESETS,
    compared: &["reference"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the noise, standard normal, `[g, t, e]`; scaled by `noise_std / E` inside.
pub const NOISE: &str = "noise";

/// Name under which the reference takes frozen weights of the group, `[c, d]`.
pub const WEIGHTS: &str = "weights";

/// (1): clusters for labels below `labels`.
fn cluster_count(config: &Config, labels: usize) -> Result<usize, RouteError> {
    match config.num_clusters {
        0 => Ok(labels),
        clusters if clusters >= labels => Ok(clusters),
        clusters => {
            let reason = format!("{clusters} is out of range: the labels need {labels}");
            Err(RouteError::Setting { key: "num_clusters", reason })
        }
    }
}

/// Refuses frozen weights without a row for every label.
fn check_frozen(labels: usize, rows: usize) -> Result<(), RouteError> {
    if labels <= rows {
        return Ok(());
    }
    let reason = format!("have {rows} rows: label {} is out of range", labels - 1);
    Err(RouteError::Setting { key: "weights", reason })
}

/// Why `1 / (s + eps)` does not exist.
fn no_spread(spread: f64) -> RouteError {
    let reason = format!("plus eps is {spread} in a cluster, and must be above 0");
    RouteError::Setting { key: "dispersion", reason }
}

#[cfg(test)]
mod tests;
