//! Balance losses, every one unweighted: the coefficient is the recipe's.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices.
//!
//! Statistics are of the population, over the tokens given: leave padded tokens out first. What is
//! constant for the gradient is said at each function; the references' central differences respect
//! it by holding counts and noise fixed.

mod load_balance;

pub use load_balance::{AuxForm, LoadBalance, load_balance, valid_rows};

use crate::score::{log_sum_exp, normal_cdf};
use crate::select::top_k;
use ndarray::{Array1, ArrayView1, ArrayView2, Axis, Zip};

/// Squared coefficient of variation, `(std / mean)^2`, of the population; NaN for a mean of zero.
///
/// Shazeer et al. 2017 (arXiv 1701.06538), equation (7).
///
/// # Panics
///
/// If `x` is empty.
pub fn cv_squared(x: ArrayView1<'_, f64>) -> f64 {
    cv_squared_guarded(x, 0.0)
}

/// `variance / (mean^2 + epsilon)`: the form of released code, which survives a mean of zero
/// (tensor2tensor, `epsilon` 1e-10).
///
/// # Panics
///
/// If `x` is empty.
pub fn cv_squared_guarded(x: ArrayView1<'_, f64>, epsilon: f64) -> f64 {
    let mean = x.mean().expect("cv_squared of a vector of shape [0]");
    let variance = x.fold(0.0, |sum, v| sum + (v - mean).powi(2)) / x.len() as f64;
    variance / (mean * mean + epsilon)
}

/// Importance loss: how uneven the gates are, summed over the tokens. `p_te` are the softmax gates
/// without noise; the gradient flows through them.
///
/// Riquelme et al. 2021 (V-MoE, arXiv 2106.05974), appendix on auxiliary losses, after Shazeer et
/// al. 2017, equations (6) and (7).
///
/// # Panics
///
/// If there are no experts.
pub fn importance(p_te: ArrayView2<'_, f64>) -> f64 {
    cv_squared(p_te.sum_axis(Axis(0)).view())
}

/// Load loss: how uneven [`expected_load`] is. Riquelme et al. 2021, appendix on auxiliary losses.
///
/// # Panics
///
/// As [`expected_load`].
pub fn load(
    clean_te: ArrayView2<'_, f64>,
    noisy_te: ArrayView2<'_, f64>,
    std: f64,
    k: usize,
) -> f64 {
    cv_squared(expected_load(clean_te, noisy_te, std, k).view())
}

/// How many tokens each expert would receive if the noise of one logit at a time were drawn again,
/// `[e]`.
///
/// `sum_t 1 - Phi((eta_t - clean_te) / std)`, where the threshold `eta_t` is the `k`-th largest
/// noisy logit of the token. Riquelme et al. 2021, appendix on auxiliary losses; `std` is that of
/// the noise, `1 / e` in the paper.
///
/// The gradient flows through `clean_te` twice: directly, and through the threshold to the expert
/// that sets it. The noise, `noisy_te - clean_te`, is a constant.
///
/// # Panics
///
/// If the shapes differ, `k` is 0, or there are fewer than `k` experts.
pub fn expected_load(
    clean_te: ArrayView2<'_, f64>,
    noisy_te: ArrayView2<'_, f64>,
    std: f64,
    k: usize,
) -> Array1<f64> {
    let (clean, noisy) = (clean_te.shape(), noisy_te.shape());
    assert_eq!(clean, noisy, "load of clean_te {clean:?} and noisy_te {noisy:?}");
    assert!((1..=clean[1]).contains(&k), "load for top_k {k} of noisy_te {noisy:?}");
    let mut load_e = Array1::zeros(clean[1]);
    for (clean_e, noisy_e) in clean_te.outer_iter().zip(noisy_te.outer_iter()) {
        let threshold = noisy_e[top_k(noisy_e.iter().copied(), k)[k - 1]];
        Zip::from(&mut load_e)
            .and(clean_e)
            .for_each(|load, &clean| *load += normal_cdf((clean - threshold) / std));
    }
    load_e
}

/// Router z-loss: mean squared log-partition, `mean_t (ln sum_e exp l_te)^2`; 0 without tokens.
///
/// Zoph et al. 2022 (ST-MoE, arXiv 2202.08906), equation (5).
pub fn z_loss(logits_te: ArrayView2<'_, f64>) -> f64 {
    let lse_t = log_sum_exp(logits_te);
    lse_t.dot(&lse_t) / lse_t.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    #[track_caller]
    fn assert_near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} is not {want}");
    }

    #[test]
    fn cv_squared_by_hand() {
        // mean 2, deviations -1, 1, 1, -1: variance 1, 1 / 4
        let x = array![1.0, 3.0, 3.0, 1.0];
        assert_eq!(cv_squared(x.view()), 0.25);
        assert_eq!(cv_squared_guarded(x.view(), 1.0), 0.2);
        assert_eq!(cv_squared(array![5.0].view()), 0.0);
        assert!(cv_squared(array![0.0, 0.0].view()).is_nan());
        assert_eq!(cv_squared_guarded(array![0.0, 0.0].view(), 1e-10), 0.0);
    }

    #[test]
    #[should_panic(expected = "shape [0]")]
    fn cv_squared_of_nothing_panics() {
        cv_squared(Array1::zeros(0).view());
    }

    #[test]
    fn importance_by_hand() {
        // Columns sum to 1.5 and 0.5: mean 1, variance 0.25.
        assert_eq!(importance(array![[1.0, 0.0], [0.5, 0.5]].view()), 0.25);
        // All tokens at one of e experts: e - 1, the largest value.
        assert_near(importance(array![[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]].view()), 3.0);
    }

    #[test]
    fn expected_load_by_hand() {
        let clean_te = array![[1.0, 0.0, -1.0], [0.0, 2.0, 1.0]];
        let noisy_te = array![[0.5, 1.0, -1.0], [0.0, 2.0, 1.0]];
        // Thresholds for k = 2: 0.5 and 1. With std 0.5, sum of Phi(2 (clean - threshold)):
        // token 0: Phi(1), Phi(-1), Phi(-3); token 1: Phi(-2), Phi(2), Phi(0)
        let load_e = expected_load(clean_te.view(), noisy_te.view(), 0.5, 2);
        let phi = normal_cdf;
        let want_e = [phi(1.0) + phi(-2.0), phi(-1.0) + phi(2.0), phi(-3.0) + 0.5];
        load_e.iter().zip(want_e).for_each(|(got, want)| assert_near(*got, want));
        let loss = load(clean_te.view(), noisy_te.view(), 0.5, 2);
        assert_near(loss, cv_squared(load_e.view()));
        // k = 1: thresholds 1 and 2.
        let load_e = expected_load(clean_te.view(), noisy_te.view(), 0.5, 1);
        let want_e = [0.5 + phi(-4.0), phi(-2.0) + 0.5, phi(-4.0) + phi(-2.0)];
        load_e.iter().zip(want_e).for_each(|(got, want)| assert_near(*got, want));
    }

    #[test]
    #[should_panic(expected = "clean_te [1, 2] and noisy_te [2, 1]")]
    fn expected_load_names_both_shapes() {
        load(Array2::zeros((1, 2)).view(), Array2::zeros((2, 1)).view(), 1.0, 1);
    }

    #[test]
    fn expected_load_needs_one_to_e_choices() {
        for k in [0, 3] {
            let logits_te = Array2::zeros((1, 2));
            let call = || expected_load(logits_te.view(), logits_te.view(), 1.0, k);
            assert!(std::panic::catch_unwind(call).is_err(), "top_k {k}");
        }
    }

    #[test]
    fn z_loss_by_hand() {
        // Log-partitions ln 2 and 3 + ln 2.
        let ln2 = 2f64.ln();
        let z = z_loss(array![[0.0, 0.0], [3.0, 3.0]].view());
        assert_near(z, (ln2.powi(2) + (3.0 + ln2).powi(2)) / 2.0);
        assert_eq!(z_loss(Array2::zeros((0, 3)).view()), 0.0);
    }
}
