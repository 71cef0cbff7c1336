//! Routing metrics: how evenly experts are loaded, how decided gates are, what capacity drops.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices. Natural logarithms, population variance.

mod drops;
mod error;
mod gates;
mod layers;
mod load;

pub use drops::{DropStats, dropped_tokens, success_rate};
pub use error::MetricError;
pub use gates::GateEntropy;
pub use layers::{LayerBalance, corruption_error, layer_instability, running_average};
pub use load::LoadStats;

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
