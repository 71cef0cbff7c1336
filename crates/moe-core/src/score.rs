//! Scores: softmax and its logarithm, log-sum-exp, cosine, and the scalar functions gates use.
//!
//! Axis letters: `t` tokens, `d` model width, `e` experts.
//!
//! Every row function shifts by the row maximum first, so logits of any finite size are safe. A row
//! of equal logits is uniform, and that includes a row that is `-inf` throughout (every expert
//! masked), where the textbook formula would give NaN. A NaN logit makes its whole row NaN.

use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis};

/// Rows a thread takes at least: below this, splitting costs more than the arithmetic.
pub(crate) const ROWS_PER_TASK: usize = 64;

/// Softmax of every row, `[t, e] -> [t, e]`; rows sum to 1.
///
/// ```
/// let p_te = moe_core::score::softmax(ndarray::array![[1e4, -1e4], [2.0, 2.0]].view());
/// assert_eq!(p_te, ndarray::array![[1.0, 0.0], [0.5, 0.5]]);
/// ```
pub fn softmax(logits_te: ArrayView2<'_, f64>) -> Array2<f64> {
    map_rows(logits_te, |mut row| {
        let max = max(row.view());
        row.mapv_inplace(|v| shifted(v, max).exp());
        let sum = row.sum();
        row.mapv_inplace(|v| v / sum);
    })
}

/// Logarithm of the softmax of every row, `[t, e] -> [t, e]`, without the underflow of
/// `softmax(..).ln()`.
pub fn log_softmax(logits_te: ArrayView2<'_, f64>) -> Array2<f64> {
    map_rows(logits_te, |mut row| {
        let max = max(row.view());
        let log_sum = exp_sum(row.view(), max).ln();
        row.mapv_inplace(|v| shifted(v, max) - log_sum);
    })
}

/// `ln sum_e exp(logits)` of every row, `[t, e] -> [t]`; `-inf` for a row that is `-inf` throughout.
pub fn log_sum_exp(logits_te: ArrayView2<'_, f64>) -> Array1<f64> {
    logits_te.map_axis(Axis(1), |row| {
        let max = max(row);
        max + exp_sum(row, max).ln()
    })
}

/// The logistic function `1 / (1 + exp(-x))`, without overflow for any finite `x`.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let exp = x.exp();
        exp / (1.0 + exp)
    }
}

/// Sigmoids of every row divided by their sum, `[t, e] -> [t, e]`: the softmax of `ln sigmoid`, which
/// is safe where every sigmoid underflows.
pub fn normalised_sigmoid(logits_te: ArrayView2<'_, f64>) -> Array2<f64> {
    softmax(logits_te.mapv(|l| -softplus(-l)).view())
}

/// `ln(1 + exp(x))`, without overflow for any finite `x`.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Cosine of every token with every expert, `[t, d] x [e, d] -> [t, e]`:
/// `x . w / (max(|x|, eps) max(|w|, eps))`.
///
/// The floor `eps` makes the cosine of a zero vector 0 rather than NaN.
///
/// # Panics
///
/// If the widths differ.
pub fn cosine(x_td: ArrayView2<'_, f64>, w_ed: ArrayView2<'_, f64>, eps: f64) -> Array2<f64> {
    assert_eq!(
        x_td.ncols(),
        w_ed.ncols(),
        "cosine of x_td {:?} with w_ed {:?}: the widths differ",
        x_td.shape(),
        w_ed.shape()
    );
    unit_rows(x_td, eps).dot(&unit_rows(w_ed, eps).t())
}

/// Distribution function of the standard normal, accurate to the last digits in both tails.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// Applies `f` to every row of a copy.
fn map_rows(
    logits_te: ArrayView2<'_, f64>,
    f: impl Fn(ArrayViewMut1<'_, f64>) + Sync + Send,
) -> Array2<f64> {
    let mut out_te = logits_te.to_owned();
    out_te.axis_iter_mut(Axis(0)).into_par_iter().with_min_len(ROWS_PER_TASK).for_each(f);
    out_te
}

fn max(row: ArrayView1<'_, f64>) -> f64 {
    row.fold(f64::NEG_INFINITY, |a, &b| a.max(b))
}

/// `v - max`, but exactly 0 for the maximum itself even if it is infinite: `inf - inf` is NaN.
fn shifted(v: f64, max: f64) -> f64 {
    if v == max { 0.0 } else { v - max }
}

/// `sum exp(v - max)` of a row.
fn exp_sum(row: ArrayView1<'_, f64>, max: f64) -> f64 {
    row.fold(0.0, |sum, &v| sum + shifted(v, max).exp())
}

/// Rows divided by their length, or by `eps` where they are shorter.
fn unit_rows(x_td: ArrayView2<'_, f64>, eps: f64) -> Array2<f64> {
    map_rows(x_td, |mut row| {
        let length = norm(row.view()).max(eps);
        row.mapv_inplace(|v| v / length);
    })
}

fn norm(x_d: ArrayView1<'_, f64>) -> f64 {
    x_d.dot(&x_d).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use proptest::prelude::*;

    const TOLERANCE: f64 = 1e-12;

    #[track_caller]
    fn assert_near(got: f64, want: f64) {
        assert!((got - want).abs() <= TOLERANCE * want.abs().max(1.0), "{got} is not {want}");
    }

    #[test]
    fn softmax_by_hand() {
        // exp(0), exp(ln 2), exp(ln 5) = 1, 2, 5: eighths
        let p_te = softmax(array![[0.0, 2f64.ln(), 5f64.ln()]].view());
        for (got, want) in p_te.iter().zip([0.125, 0.25, 0.625]) {
            assert_near(*got, want);
        }
    }

    #[test]
    fn extreme_rows_are_never_nan() {
        let inf = f64::INFINITY;
        let logits_te = array![[-inf, -inf], [1e4, -1e4], [-1e4, -1e4], [inf, 0.0], [-inf, 3.0]];
        let want_te = array![[0.5, 0.5], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]];
        assert_eq!(softmax(logits_te.view()), want_te);
        let ln2 = 2f64.ln();
        let want_te = array![[-ln2, -ln2], [0.0, -2e4], [-ln2, -ln2], [0.0, -inf], [-inf, 0.0]];
        assert_eq!(log_softmax(logits_te.view()), want_te);
        assert_eq!(
            log_sum_exp(logits_te.view()),
            array![-inf, 1e4, -1e4 + ln2, inf, 3.0],
            "the maximum carries the sum"
        );
    }

    #[test]
    fn a_nan_logit_shows_in_its_own_row_only() {
        let p_te = softmax(array![[f64::NAN, 0.0], [0.0, 0.0]].view());
        assert!(p_te.row(0).iter().all(|v| v.is_nan()));
        assert_eq!(p_te.row(1), array![0.5, 0.5]);
    }

    #[test]
    fn log_sum_exp_by_hand() {
        // ln(1 + 2 + 5) = 3 ln 2
        let lse_t = log_sum_exp(array![[0.0, 2f64.ln(), 5f64.ln()]].view());
        assert_near(lse_t[0], 3.0 * 2f64.ln());
    }

    #[test]
    fn scalar_functions_by_hand() {
        assert_eq!(sigmoid(0.0), 0.5);
        // 1 / (1 + 1/3) and its complement
        assert_near(sigmoid(3f64.ln()), 0.75);
        assert_near(sigmoid(-3f64.ln()), 0.25);
        assert_eq!((sigmoid(-800.0), sigmoid(800.0)), (0.0, 1.0));
        // ln(1 + 1), ln(1 + 3), ln(1 + 1/3)
        assert_near(softplus(0.0), 2f64.ln());
        assert_near(softplus(3f64.ln()), 4f64.ln());
        assert_near(softplus(-3f64.ln()), (4.0 / 3.0f64).ln());
        assert_eq!((softplus(-800.0), softplus(800.0)), (0.0, 800.0));
    }

    #[test]
    fn normalised_sigmoid_by_hand() {
        // sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2: 3/5 and 2/5.
        let p_te = normalised_sigmoid(array![[3f64.ln(), 0.0], [-2e3, -2e3]].view());
        p_te.iter().zip([0.6, 0.4, 0.5, 0.5]).for_each(|(got, want)| assert_near(*got, want));
    }

    #[test]
    fn normal_cdf_at_known_points() {
        // Values of the error function tables: Phi(1) and Phi(-1), Phi(1.959963984540054) = 0.975.
        assert_eq!(normal_cdf(0.0), 0.5);
        assert_near(normal_cdf(1.0), 0.841_344_746_068_542_9);
        assert_near(normal_cdf(-1.0), 0.158_655_253_931_457_05);
        assert_near(normal_cdf(1.959_963_984_540_054), 0.975);
        // A far tail keeps its relative accuracy: Phi(-10) = 7.619853024160527e-24.
        assert!((normal_cdf(-10.0) / 7.619_853_024_160_527e-24 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn cosine_by_hand() {
        // x = (3, 4), |x| = 5: with (1, 0) 3/5, with (4, 3) 24/25, with (-6, -8) -1, with 0 0
        let w_ed = array![[1.0, 0.0], [4.0, 3.0], [-6.0, -8.0], [0.0, 0.0]];
        let cos_te = cosine(array![[3.0, 4.0]].view(), w_ed.view(), 1e-12);
        for (got, want) in cos_te.iter().zip([0.6, 0.96, -1.0, 0.0]) {
            assert_near(*got, want);
        }
    }

    #[test]
    fn cosine_floors_both_lengths() {
        // |x| = 0.3 and |w| = 0.4 are both raised to 2: 0.3 * 0.4 / 4
        let cos_te = cosine(array![[0.3]].view(), array![[0.4]].view(), 2.0);
        assert_near(cos_te[[0, 0]], 0.03);
    }

    #[test]
    #[should_panic(expected = "x_td [1, 2] with w_ed [1, 3]")]
    fn cosine_names_both_shapes() {
        cosine(array![[1.0, 2.0]].view(), array![[1.0, 2.0, 3.0]].view(), 1e-12);
    }

    fn matrix(rows: usize, cols: usize, size: f64) -> impl Strategy<Value = Array2<f64>> {
        proptest::collection::vec(-size..size, rows * cols)
            .prop_map(move |v| Array2::from_shape_vec((rows, cols), v).expect("rows * cols values"))
    }

    proptest! {
        #[test]
        fn softmax_rows_sum_to_one(logits_te in matrix(5, 7, 1e4)) {
            let p_te = softmax(logits_te.view());
            prop_assert!(p_te.iter().all(|p| (0.0..=1.0).contains(p)));
            for row in p_te.rows() {
                prop_assert!((row.sum() - 1.0).abs() < TOLERANCE);
            }
        }

        #[test]
        fn softmax_ignores_a_shift(logits_te in matrix(3, 5, 10.0), shift in -1e3..1e3) {
            let difference = softmax(logits_te.view()) - softmax(logits_te.mapv(|v| v + shift).view());
            prop_assert!(difference.iter().all(|v| v.abs() < TOLERANCE));
        }

        #[test]
        fn logarithms_agree_with_softmax(logits_te in matrix(4, 6, 20.0)) {
            let p_te = softmax(logits_te.view());
            let log_te = log_softmax(logits_te.view());
            let lse_t = log_sum_exp(logits_te.view());
            for ((t, e), p) in p_te.indexed_iter() {
                prop_assert!((log_te[[t, e]] - p.ln()).abs() < 1e-9);
                prop_assert!((logits_te[[t, e]] - lse_t[t] - log_te[[t, e]]).abs() < 1e-9);
            }
        }

        #[test]
        fn cosine_is_bounded_and_scale_free(
            x_td in matrix(4, 3, 100.0), w_ed in matrix(5, 3, 1e-3), scale in 1e-3..1e3,
        ) {
            let cos_te = cosine(x_td.view(), w_ed.view(), 1e-30);
            prop_assert!(cos_te.iter().all(|c| c.abs() <= 1.0 + TOLERANCE));
            let scaled_te = cosine(x_td.mapv(|v| v * scale).view(), w_ed.view(), 1e-30);
            prop_assert!((cos_te - scaled_te).iter().all(|v| v.abs() < TOLERANCE));
        }

        #[test]
        fn normal_cdf_is_symmetric_and_rises(x in -6.0..6.0, step in 1e-3..1.0) {
            prop_assert!((normal_cdf(x) + normal_cdf(-x) - 1.0).abs() < TOLERANCE);
            prop_assert!(normal_cdf(x) < normal_cdf(x + step));
        }

        #[test]
        fn sigmoid_is_symmetric_and_the_slope_of_softplus(x in -30.0..30.0) {
            prop_assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < TOLERANCE);
            let slope = (softplus(x + 1e-4) - softplus(x - 1e-4)) / 2e-4;
            prop_assert!((slope - sigmoid(x)).abs() < 1e-7);
        }
    }
}
