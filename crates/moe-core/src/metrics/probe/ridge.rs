//! Ridge regression onto +1/-1, in closed form: the few-shot probe of V-MoE's code (arXiv 2106.05974).
//!
//! Axis letters: `n` samples, `d` width, `p` width and the constant, `c` classes.

use super::{check_asked, check_fit};
use crate::metrics::MetricError;
use nalgebra::{Cholesky, DMatrix};
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate};

/// Settings of [`RidgeProbe`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RidgeOptions {
    /// Weight of the squared norm.
    pub l2: f64,
    /// The constant appended to the features. Its weight is regularised too: a large constant hardly.
    pub bias: f64,
    /// Number of classes, or the largest label plus 1.
    pub classes: Option<usize>,
}

impl Default for RidgeOptions {
    fn default() -> Self {
        Self { l2: 1.0, bias: 100.0, classes: None }
    }
}

/// A fitted ridge probe.
#[derive(Debug, Clone, PartialEq)]
pub struct RidgeProbe {
    mean_d: Array1<f64>,
    scale_d: Array1<f64>,
    bias: f64,
    /// Weights of the standardised features, the constant's last, `[d + 1, c]`.
    pub weight_pc: Array2<f64>,
}

impl RidgeProbe {
    /// Fits `W = (A^T A + l2 I)^-1 A^T Y`, where `A` are the features standardised with the training
    /// mean and the population deviation + 1e-5, and `Y` is +1 at the label and -1 elsewhere.
    ///
    /// # Errors
    ///
    /// If there are no samples, one is not finite, there is not one label per sample, a label is not
    /// below the number of classes, `l2` is negative, or the system is singular.
    pub fn fit(
        x_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
        options: &RidgeOptions,
    ) -> Result<Self, MetricError> {
        let RidgeOptions { l2, bias, classes } = *options;
        MetricError::check_setting("l2", l2, "at least 0", (0.0..f64::INFINITY).contains(&l2))?;
        MetricError::check_setting("bias", bias, "finite", bias.is_finite())?;
        let classes = check_fit(x_nd, label_n, classes)?;
        let mean_d = x_nd.mean_axis(Axis(0)).expect("there are samples");
        let scale_d = x_nd.std_axis(Axis(0), 0.0) + 1e-5;
        let weight_pc = Array2::zeros((0, classes));
        let mut probe = Self { mean_d, scale_d, bias, weight_pc };
        let a_np = probe.standardised(x_nd);
        let y_nc = Array2::from_shape_fn((label_n.len(), classes), |(n, c)| {
            if label_n[n] == c { 1.0 } else { -1.0 }
        });
        let gram_pp = a_np.t().dot(&a_np) + Array2::<f64>::eye(a_np.ncols()) * l2;
        probe.weight_pc = solve(&gram_pp, &a_np.t().dot(&y_nc), l2)?;
        Ok(probe)
    }

    /// Scores of every class, `[n, d] -> [n, c]`.
    ///
    /// # Errors
    ///
    /// If a sample is not finite or has another width.
    pub fn scores(&self, x_nd: ArrayView2<'_, f64>) -> Result<Array2<f64>, MetricError> {
        check_asked(x_nd, self.mean_d.len())?;
        Ok(self.standardised(x_nd).dot(&self.weight_pc))
    }

    fn standardised(&self, x_nd: ArrayView2<'_, f64>) -> Array2<f64> {
        let z_nd = (&x_nd - &self.mean_d) / &self.scale_d;
        let bias_n1 = Array2::from_elem((x_nd.nrows(), 1), self.bias);
        concatenate![Axis(1), z_nd, bias_n1]
    }
}

/// Solves `gram W = b`; `l2` is in the message if it cannot.
fn solve(gram_pp: &Array2<f64>, b_pc: &Array2<f64>, l2: f64) -> Result<Array2<f64>, MetricError> {
    let matrix = |a: &Array2<f64>| DMatrix::from_fn(a.nrows(), a.ncols(), |i, j| a[[i, j]]);
    let singular = MetricError::Setting { key: "l2", value: l2, allowed: "enough: singular" };
    let cholesky = Cholesky::new(matrix(gram_pp)).ok_or(singular.clone())?;
    let w = cholesky.solve(&matrix(b_pc));
    let weight_pc = Array2::from_shape_fn(b_pc.dim(), |(p, c)| w[(p, c)]);
    if weight_pc.iter().all(|v| v.is_finite()) { Ok(weight_pc) } else { Err(singular) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn ridge_by_hand() {
        // Features 3 and 1: mean 2, deviation 1, so +-s with s = 1 / 1.00001; constant 2; l2 = 3.
        // A^T A + 3 I = diag(2 s^2 + 3, 8 + 3); A^T Y of class 0 = (2 s, 0).
        let options = RidgeOptions { l2: 3.0, bias: 2.0, classes: None };
        let probe = RidgeProbe::fit(array![[3.0], [1.0]].view(), &[0, 1], &options).unwrap();
        let s = 1.0 / 1.00001;
        let w = 2.0 * s / (2.0 * s * s + 3.0);
        assert!((&probe.weight_pc - &array![[w, -w], [0.0, 0.0]]).iter().all(|v| v.abs() < 1e-15));
        let score_nc = probe.scores(array![[4.0]].view()).unwrap();
        assert!((score_nc[[0, 0]] - 2.0 * s * w).abs() < 1e-14);
        assert!(probe.scores(array![[4.0, 1.0]].view()).is_err());
    }

    #[test]
    fn a_class_without_samples_is_scored_low() {
        let options = RidgeOptions { classes: Some(3), ..RidgeOptions::default() };
        let probe = RidgeProbe::fit(array![[3.0], [1.0]].view(), &[0, 1], &options).unwrap();
        // Its targets are -1 throughout: the constant alone explains them, (2 b^2 + 1) w = -2 b.
        let w = -200.0 / 20001.0;
        assert!((probe.weight_pc[[1, 2]] - w).abs() < 1e-15);
        assert!(probe.weight_pc[[0, 2]].abs() < 1e-15);
    }

    #[test]
    fn without_regularisation_a_constant_feature_is_singular() {
        let options = RidgeOptions { l2: 0.0, ..RidgeOptions::default() };
        let fit = |options| RidgeProbe::fit(array![[0.0], [0.0]].view(), &[0, 1], options);
        assert_eq!(fit(&options).unwrap_err().to_string(), "l2: 0 is not enough: singular");
        let negative = RidgeOptions { l2: -1.0, ..options };
        assert_eq!(fit(&negative).unwrap_err().to_string(), "l2: -1 is not at least 0");
    }
}
