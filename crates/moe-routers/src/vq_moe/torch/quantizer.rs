//! The quantiser on libtorch, (3)-(5).
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `c` codes.

use crate::losses;
use crate::vq_moe::{COS_FLOOR, Config, Distance, Input};
use tch::{Kind, Tensor};

/// What the quantiser says of the tokens.
#[derive(Debug)]
pub struct Quantized {
    /// `D` of (3), `[g, t, c]`.
    pub distance_gtc: Tensor,
    /// The nearest code of every token, the lower one in a tie, int64, `[g, t]`.
    pub code_gt: Tensor,
    /// `q`, `[g, t, d]`, with the codebook's graph.
    pub q_gtd: Tensor,
    /// `m` of (5), `[g, t, d]`, with the token's graph.
    pub m_gtd: Tensor,
    /// First term of (4), the mean over groups: it moves codes.
    pub codebook_loss: Tensor,
    /// Second term of (4), without beta: it moves tokens.
    pub commitment_loss: Tensor,
}

impl Quantized {
    /// (4)
    pub fn loss(&self, config: &Config) -> Tensor {
        &self.codebook_loss + &self.commitment_loss * config.beta
    }
}

/// (3)-(5); the losses leave out the tokens of `padding_gt`.
pub fn quantize(
    config: &Config,
    x_gtd: &Tensor,
    codebook_cd: &Tensor,
    padding_gt: Option<&Tensor>,
) -> Quantized {
    let distance_gtc = distances(config.distance, x_gtd, codebook_cd);
    // A stable sort, because `argmin` does not promise the lower index in a tie.
    let code_gt = distance_gtc.detach().argsort_stable(true, -1, false).select(-1, 0);
    let q_gtd = Tensor::embedding(codebook_cd, &code_gt, -1, false, false);
    let gap_gtd = (&q_gtd - x_gtd).detach();
    let m_gtd = match config.input {
        Input::CodeMix => x_gtd * (1.0 - config.mix_rate) + gap_gtd * config.mix_rate,
        Input::Quantized => x_gtd + gap_gtd,
    };
    let mean_square = |gap_gtd: Tensor| {
        let square_gt1 = gap_gtd.square().mean_dim(-1, true, None::<Kind>);
        losses::mean_of_valid(&square_gt1, padding_gt).mean(None::<Kind>)
    };
    let codebook_loss = mean_square(&q_gtd - x_gtd.detach());
    let commitment_loss = mean_square(q_gtd.detach() - x_gtd);
    Quantized { distance_gtc, code_gt, q_gtd, m_gtd, codebook_loss, commitment_loss }
}

fn distances(distance: Distance, x_gtd: &Tensor, codebook_cd: &Tensor) -> Tensor {
    match distance {
        Distance::L2 => {
            let square = |rows: &Tensor, keep| rows.square().sum_dim_intlist(-1, keep, None);
            let dot_gtc = x_gtd.matmul(&codebook_cd.tr());
            square(x_gtd, true) + square(codebook_cd, false) - dot_gtc * 2.0
        }
        Distance::Cos => {
            1.0 - unit_rows(x_gtd, COS_FLOOR).matmul(&unit_rows(codebook_cd, COS_FLOOR).tr())
        }
    }
}

/// Rows over their length, or over `floor` where they are shorter.
pub(super) fn unit_rows(rows: &Tensor, floor: f64) -> Tensor {
    rows / rows.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true).clamp_min(floor)
}
