//! Routing metrics: how evenly experts are loaded, how decided gates are, what capacity drops, how
//! far representations collapse, how stable routing is and what experts specialise in; and the
//! measures of whole models that routing papers report: probes, perplexity, corruptions, attacks.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices. Natural logarithms, population variance.

pub mod attack;
mod collapse;
mod corrupt;
mod corruption_error;
mod detection;
mod drops;
mod error;
mod gates;
mod information;
mod layers;
mod load;
mod perplexity;
mod plane;
pub mod probe;
mod retrieval;
mod route_flips;
mod similarity;
mod stability;
mod word_swap;

pub use collapse::{ClassWeighting, Collapse, CollapseOptions, effective_rank};
pub use corrupt::{Corruption, CorruptionDraws};
pub use corruption_error::{CorruptionError, mean_errors};
pub use detection::{Detection, right_among, unknown_score};
pub use drops::{DropStats, dropped_tokens, success_rate};
pub use error::MetricError;
pub use gates::GateEntropy;
pub use information::{CodeUsage, Specialisation};
pub use layers::{LayerBalance, corruption_error, layer_instability, running_average};
pub use load::LoadStats;
pub use perplexity::Perplexity;
pub use plane::PrincipalPlane;
pub use retrieval::Retrieval;
pub use route_flips::RouteFlips;
pub use similarity::ExpertSimilarity;
pub use stability::{ChangeOf, Consistency, Fluctuation, routing_iou};
pub use word_swap::WordSwap;

use ndarray::ArrayView1;

/// The tokens that are not padding.
fn valid_tokens(padding_t: ArrayView1<'_, bool>, tokens: usize) -> Result<Vec<usize>, MetricError> {
    if padding_t.len() != tokens {
        return Err(MetricError::PaddingShape { got: padding_t.len(), tokens });
    }
    let valid: Vec<usize> = (0..tokens).filter(|&t| !padding_t[t]).collect();
    if valid.is_empty() { Err(MetricError::AllPadding) } else { Ok(valid) }
}

/// `-sum p ln p`, with `0 ln 0 = 0`.
fn entropy(p_e: ArrayView1<'_, f64>) -> f64 {
    p_e.iter().filter(|&&p| p > 0.0).fold(0.0, |entropy, p| entropy - p * p.ln())
}

/// As a share of the entropy of `experts` equal parts, or `single` if there is but one expert.
fn normalised(entropy: f64, experts: usize, single: f64) -> f64 {
    if experts == 1 { single } else { entropy / (experts as f64).ln() }
}
