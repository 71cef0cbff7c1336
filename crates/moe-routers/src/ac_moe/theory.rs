//! The optimal weights of one cluster, from the paper's theory: the router itself does not use them.

use moe_core::RouteError;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

/// Halvings of the bracket: more than the bits of a double.
const HALVINGS: usize = 120;

/// Minimises `sum_q w_q s_q + lambda KL(uniform || w)` under `sum_q w_q = 1`, row by row:
/// `w_q = (lambda / d) / (s_q + alpha)`, `alpha` the root above `-min s` that makes the sum 1.
/// Returns `w [c, d]` and `alpha [c]`.
///
/// # Errors
/// A `lambda` that is not positive, or a negative dispersion.
pub fn theory_weights(
    dispersion_cd: ArrayView2<'_, f64>,
    lambda: f64,
) -> Result<(Array2<f64>, Array1<f64>), RouteError> {
    if !lambda.is_finite() || lambda <= 0.0 {
        let reason = format!("{lambda} must be finite and above 0");
        return Err(RouteError::Setting { key: "lambda", reason });
    }
    if let Some(s) = dispersion_cd.iter().find(|s| !s.is_finite() || **s < 0.0) {
        let reason = format!("{s} must be finite and at least 0");
        return Err(RouteError::Setting { key: "dispersion", reason });
    }
    let alpha_c: Array1<f64> =
        dispersion_cd.rows().into_iter().map(|s_d| root(s_d, lambda)).collect();
    let share = lambda / dispersion_cd.ncols() as f64;
    let weight = |(c, q)| share / (dispersion_cd[[c, q]] + alpha_c[c]);
    Ok((Array2::from_shape_fn(dispersion_cd.dim(), weight), alpha_c))
}

/// The sum falls in `alpha`. At `lambda / d - min s` the tightest feature alone has weight 1; at
/// `lambda - min s` no feature has more than `1 / d`. The root lies between.
fn root(s_d: ArrayView1<'_, f64>, lambda: f64) -> f64 {
    let (share, least) =
        (lambda / s_d.len() as f64, s_d.iter().copied().fold(f64::INFINITY, f64::min));
    let sum = |alpha: f64| s_d.iter().map(|s| share / (s + alpha)).sum::<f64>();
    let (mut low, mut high) = (share - least, lambda - least);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if sum(middle) > 1.0 { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::{relative_error, tolerance};
    use ndarray::array;

    /// Two features, s = (0, 1/2), lambda = 1: `1/(2 a) + 1/(1 + 2 a) = 1`, so `4 a^2 - 2 a - 1 = 0`
    /// and a is half the golden ratio. Equal spreads s: `lambda / (s + a) = 1`, a = lambda - s.
    #[test]
    fn by_hand() {
        let golden = 5f64.sqrt().midpoint(1.0);
        let (w_cd, alpha_c) = theory_weights(array![[0.0, 0.5], [0.4, 0.4]].view(), 1.0).unwrap();
        let limit = tolerance(tch::Kind::Double).value;
        let pairs = [(alpha_c[0], golden / 2.0), (w_cd[[0, 0]], 1.0 / golden), (alpha_c[1], 0.6)];
        assert!(pairs.iter().all(|(got, want)| relative_error(*got, *want) < limit), "{pairs:?}");
    }

    #[test]
    fn bad_input_is_named() {
        let error = |s, lambda| theory_weights(array![[s]].view(), lambda).unwrap_err().to_string();
        assert!(error(0.1, 0.0).starts_with("lambda"));
        assert!(error(-0.1, 1.0).starts_with("dispersion"));
    }
}
