//! X-MoE's balance loss (9) with its two readings of `t_i` and its two treatments of padding.
//!
//! Axis letters: `g` groups, `t` tokens, `e` experts.

use super::{BalanceForm, Config, PaddingMode};
use crate::losses;
use moe_core::score;
use ndarray::{Array1, ArrayView2};
use tch::Tensor;

/// (9) of all groups, with its graph; none through the choices.
#[derive(Debug)]
pub struct Balance {
    /// `t_i`: first choices of each expert, as a share or a count, `[g, e]`.
    pub fraction_ge: Tensor,
    /// `P_i`: mean of `softmax(s / tau0)`, `[g, e]`.
    pub mean_prob_ge: Tensor,
    /// The mean over groups of `E sum_i t_i P_i`, unweighted, a scalar.
    pub loss: Tensor,
}

/// (9) of scores `[g, t, e]`, first choices `[g, t]` and padding `[g, t]`, bool.
pub fn balance(
    config: &Config,
    score_gte: &Tensor,
    first_gt: &Tensor,
    padding_gt: Option<&Tensor>,
) -> Balance {
    let kind = score_gte.kind();
    let experts = score_gte.size()[2];
    let prob_gte = (score_gte / config.tau0).softmax(-1, kind);
    let valid_gt = match padding_gt {
        Some(padding_gt) => padding_gt.logical_not().to_kind(kind),
        None => first_gt.ones_like().to_kind(kind),
    };
    // Which tokens count in the probabilities and in the denominator.
    let counted_gt = match config.padding_mode {
        PaddingMode::Exclude => valid_gt.shallow_clone(),
        PaddingMode::Reference => valid_gt.ones_like(),
    };
    // A group of padding alone has no loss rather than NaN.
    let tokens_g1 = counted_gt.sum_dim_intlist(-1, true, None).clamp_min(1.0);
    let sum_over_t = |v_gte: Tensor| v_gte.sum_dim_intlist(1, false, None);
    let count_ge = losses::counts(&first_gt.unsqueeze(-1), (experts, kind), padding_gt);
    let fraction_ge = match config.balance_form {
        BalanceForm::Fraction => count_ge / &tokens_g1,
        BalanceForm::Count => count_ge,
    };
    let mean_prob_ge = sum_over_t(prob_gte * counted_gt.unsqueeze(-1)) / tokens_g1;
    let loss_g = (&fraction_ge * &mean_prob_ge).sum_dim_intlist(-1, false, None);
    let loss = loss_g.mean(None) * experts as f64;
    Balance { fraction_ge, mean_prob_ge, loss }
}

/// (9) of one group on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostBalance {
    /// `t_i`, `[e]`.
    pub fraction_e: Array1<f64>,
    /// `P_i`, `[e]`.
    pub mean_prob_e: Array1<f64>,
    /// `E sum_i t_i P_i`, unweighted.
    pub loss: f64,
}

/// (9) of scores `[t, e]`, first choices and padding, `[t]`.
///
/// # Panics
/// If the first choices or the padding are fewer than the tokens, or name an expert out of range.
pub fn balance_host(
    config: &Config,
    score_te: ArrayView2<'_, f64>,
    first_t: &[usize],
    padding_t: Option<&[bool]>,
) -> HostBalance {
    let (tokens, experts) = score_te.dim();
    let prob_te = score::softmax((&score_te / config.tau0).view());
    let (mut count_e, mut prob_e) = (Array1::zeros(experts), Array1::zeros(experts));
    let mut counted = 0.0;
    for t in 0..tokens {
        let padded = padding_t.is_some_and(|padding_t| padding_t[t]);
        if !padded {
            count_e[first_t[t]] += 1.0;
        }
        if !padded || config.padding_mode == PaddingMode::Reference {
            counted += 1.0;
            prob_e += &prob_te.row(t);
        }
    }
    let counted = f64::max(counted, 1.0);
    let fraction_e = match config.balance_form {
        BalanceForm::Fraction => count_e / counted,
        BalanceForm::Count => count_e,
    };
    let mean_prob_e = prob_e / counted;
    let loss = experts as f64 * fraction_e.dot(&mean_prob_e);
    HostBalance { fraction_e, mean_prob_e, loss }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use ndarray::array;

    /// Two experts, all scores 0, so P = (1/2, 1/2); tokens choose 0, 0, 1, the last is padding.
    /// Exclude: t = (2/2, 0), loss 2 * 1/2 = 1. Reference: t = (2/3, 0), loss 2/3. Counts: 2.
    #[test]
    fn by_hand() {
        let score_te = array![[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]];
        let loss = |config: &Config| {
            let padding_t = [false, false, true];
            balance_host(config, score_te.view(), &[0, 0, 1], Some(&padding_t)).loss
        };
        let paper = Config::preset("paper");
        assert!((loss(&paper) - 1.0).abs() < 1e-12);
        assert!((loss(&Config::preset("reference")) - 2.0 / 3.0).abs() < 1e-12);
        let counts = Config { balance_form: BalanceForm::Count, ..paper };
        assert!((loss(&counts) - 2.0).abs() < 1e-12);
    }
}
