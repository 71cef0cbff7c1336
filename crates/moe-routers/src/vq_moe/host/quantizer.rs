//! The quantiser on the host, (3)-(5).
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `c` codes.

use crate::vq_moe::{COS_FLOOR, Config, Distance, FIXED_CODES, FIXED_TOKENS, Input};
use moe_core::{HostInput, RouteError, balance, score, top_k};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

/// What the quantiser says of the tokens.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// `D` of (3), `[t, c]`.
    pub distance_tc: Array2<f64>,
    /// The nearest code of every token, the lower one in a tie.
    pub code_t: Vec<usize>,
    /// `q`, `[t, d]`.
    pub q_td: Array2<f64>,
    /// `m` of (5), `[t, d]`.
    pub m_td: Array2<f64>,
    /// First term of (4).
    pub codebook_loss: f64,
    /// Second term of (4), without beta.
    pub commitment_loss: f64,
}

impl Quantized {
    /// (4)
    pub fn loss(&self, config: &Config) -> f64 {
        self.codebook_loss + config.beta * self.commitment_loss
    }
}

/// (3)-(5); the losses leave out padded tokens. `sg[x]` and `sg[q]` are the draws of the names
/// [`FIXED_TOKENS`] and [`FIXED_CODES`], where they are given.
///
/// # Errors
/// A draw of another shape.
pub fn quantize(
    config: &Config,
    input: &HostInput<'_>,
    codebook_cd: ArrayView2<'_, f64>,
) -> Result<Quantized, RouteError> {
    let x_td = input.x_td;
    let distance_tc = distances(config.distance, x_td, codebook_cd);
    let nearest = |row: ArrayView1<'_, f64>| top_k(row.iter().map(|d| -d), 1)[0];
    let code_t: Vec<usize> = distance_tc.rows().into_iter().map(nearest).collect();
    let q_td = codebook_cd.select(Axis(0), &code_t);
    let fixed_x_td = input.draw_of(FIXED_TOKENS, x_td.dim())?.unwrap_or(x_td);
    let fixed_q_td = input.draw_of(FIXED_CODES, x_td.dim())?;
    let fixed_q_td = fixed_q_td.map_or_else(|| q_td.clone(), |fixed_td| fixed_td.to_owned());
    let gap_td = &fixed_q_td - &fixed_x_td;
    let m_td = match config.input {
        Input::CodeMix => &x_td * (1.0 - config.mix_rate) + &gap_td * config.mix_rate,
        Input::Quantized => &x_td + &gap_td,
    };
    let mean_square = |gap_td: Array2<f64>| {
        let valid_td = balance::valid_rows(gap_td.view(), input.padding_t);
        valid_td.mapv(|v| v * v).mean().unwrap_or(0.0)
    };
    let codebook_loss = mean_square(&q_td - &fixed_x_td);
    let commitment_loss = mean_square(&fixed_q_td - &x_td);
    Ok(Quantized { distance_tc, code_t, q_td, m_td, codebook_loss, commitment_loss })
}

fn distances(
    distance: Distance,
    x_td: ArrayView2<'_, f64>,
    codebook_cd: ArrayView2<'_, f64>,
) -> Array2<f64> {
    let square = |rows: ArrayView2<'_, f64>| rows.map_axis(Axis(1), |row| row.dot(&row));
    match distance {
        Distance::L2 => {
            let dot_tc = x_td.dot(&codebook_cd.t());
            square(x_td).insert_axis(Axis(1)) + &square(codebook_cd) - dot_tc * 2.0
        }
        Distance::Cos => 1.0 - score::cosine(x_td, codebook_cd, COS_FLOOR),
    }
}

/// Rows over their length, or over `floor` where they are shorter.
pub(super) fn unit_rows(w_ed: &Array2<f64>, floor: f64) -> Array2<f64> {
    let length_e = w_ed.map_axis(Axis(1), |row| row.dot(&row).sqrt().max(floor));
    w_ed / &length_e.insert_axis(Axis(1))
}
