//! Similarity-Aware and Attention-Aware SMoE: tokens talk before they choose. **Experimental**: the
//! rule is this project's reconstruction, its equations are not checked against the paper's.
//!
//! *Improving Routing in Sparse Mixture of Experts with Graph of Tokens*, 2025, arXiv 2505.00792.
//!
//! ```text
//! z_j  = W_r u_j + b,  r_j = softmax(z_j)                         own choice               (1)
//! S    = softmax_j(u_i^T W_s u_j / tau), or attention pooled over heads                    (2)
//! pi_i = sum_j S_ij r_j, or softmax(sum_j S_ij z_j)               mixed choice             (3)
//! T    = top-k of pi_i, g = pi_i or r_i over T, divided by its sum                         (4)
//! ```
//!
//! Numbers in brackets count the steps of the reconstruction. Through the [`Router`](crate::Router)
//! seam attention comes by head ([`RouteCx::attention_gmtt`](crate::RouteCx)); [`TokenGraph::decide`]
//! takes cached columns, segments, head weights and head values besides, which no block hands in:
//! a recipe that asks for them is refused.

mod config;
mod measures;
mod reference;
mod router;

pub use config::{Cache, Config, Gate, Graph, Mix, Pool};
pub use measures::{EntropyBounds, check_stochastic, entropy_bounds, fluctuation, row_entropy};
pub use reference::{HostDecision, HostSources, HostTokenGraph, host_graph, host_pool};
pub use router::{Decision, Sources, TokenGraph, entropy, graph, pool};

use crate::config::{Preset, resolve};
use crate::router::{Method, Paper};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "token-graph",
    title: "Improving Routing in Sparse Mixture of Experts with Graph of Tokens",
    authors: "2025",
    arxiv: "2505.00792",
    idea: "A token's choice of experts is averaged with those of tokens it resembles or attends to.\n\
        Tokens choose independently of each other, and their choices keep changing late in training.\n\
        The expert still reads the token alone; only the choice and its weights are averaged.\n\
        Averaging is meant to steady the routes, and with them accuracy and robustness.",
    state: "parameters: router W [e, d], and a bias [e] if set; with `learn_similarity` also W_s [d, d]; the attention form adds none",
    cost: "k expert calls; a softmax over e and t e multiply-adds to average over a group of t tokens; the similarity form t d more, and d^2 with W_s",
    equations: &[
        ("(1), (3), (4)", "TokenGraph::decide"),
        ("(2)", "token_graph::graph"),
        ("entropy bounds", "token_graph::entropy_bounds"),
    ],
    deviations: &[
        "no code was released, so there is no `reference` preset; `paper` = `similarity`, `paper_attention` = `attention`",
        "the graph is about the tokens of one sequence, so a sequence is a group whatever the recipe says; the balance loss is the mean over sequences",
        "`similarity` is not causal unless `causal = true`: in a language model the router sees the future without it; `attention` is as causal as the block's attention",
        "preset `given` reads its graph where `attention` reads the attention; a recipe cannot choose it, since no block hands in a graph, nor `pool = weighted` or `posterior`, which need head weights or values",
        "the balance loss on the mixed choice, weight 0.01, is the common practice of language models, not the paper's",
    ],
    unverified: &[
        "every equation: the rule is reconstructed from the paper's abstract and opening",
        "whether probabilities or logits are mixed, which gates weigh the experts, how heads are pooled",
        "title and authors",
    ],
    presets: Config::PRESETS,
    compared: &["similarity", "attention"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name under which the reference takes a graph that it is to hold constant, `[t, n]`.
pub const GRAPH: &str = "graph";

#[cfg(test)]
mod tests;
