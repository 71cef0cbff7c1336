//! Multinomial logistic regression to convergence: the probe of SMoE-VAE's code (scikit-learn's
//! defaults).
//!
//! Axis letters: `n` samples, `d` width, `p` width and the intercept, `c` classes.
//!
//! Newton's method, each step by conjugate gradients on products with the Hessian, which is never
//! built: it would have `(c p)^2` entries. The direction that the objective does not see (the same
//! intercept added to every class) is orthogonal to every gradient, so no step enters it.

use super::{check_asked, check_fit};
use crate::metrics::MetricError;
use crate::score::{log_softmax, softmax};
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate, s};

/// Settings of [`LogisticProbe`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogisticOptions {
    /// Inverse strength of the regularisation.
    pub c: f64,
    /// Number of classes, or the largest label plus 1.
    pub classes: Option<usize>,
}

impl Default for LogisticOptions {
    fn default() -> Self {
        Self { c: 1.0, classes: None }
    }
}

/// A fitted logistic probe.
#[derive(Debug, Clone, PartialEq)]
pub struct LogisticProbe {
    /// Weights, of mean 0 over classes, `[c, d]`.
    pub weight_cd: Array2<f64>,
    /// Intercepts, of mean 0 over classes: they are unique up to a common constant.
    pub intercept_c: Array1<f64>,
    /// The minimum that was reached.
    pub objective: f64,
}

/// Newton steps at most. Ten are usual; a class without samples takes a step per nat.
const MAX_STEPS: usize = 500;

impl LogisticProbe {
    /// Minimises `sum CE + |W|^2 / (2 c)`; intercepts are not regularised, features not standardised.
    ///
    /// # Errors
    ///
    /// If there are no samples, one is not finite, there is not one label per sample, a label is not
    /// below the number of classes, `c` is not positive, or the minimum is not reached.
    pub fn fit(
        x_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
        options: &LogisticOptions,
    ) -> Result<Self, MetricError> {
        let LogisticOptions { c, classes } = *options;
        MetricError::check_setting("c", c, "above 0", c > 0.0 && c.is_finite())?;
        let classes = check_fit(x_nd, label_n, classes)?;
        let problem = Problem::new(x_nd, label_n, classes, 1.0 / c);
        let theta_cp = problem.minimise()?;
        let objective = problem.objective(&theta_cp);
        let centred_cp = &theta_cp - &theta_cp.mean_axis(Axis(0)).expect("there are classes");
        let weight_cd = centred_cp.slice(s![.., ..-1]).to_owned();
        let intercept_c = centred_cp.column(x_nd.ncols()).to_owned();
        Ok(Self { weight_cd, intercept_c, objective })
    }

    /// Probability of every class, `[n, d] -> [n, c]`.
    ///
    /// # Errors
    ///
    /// If a sample is not finite or has another width.
    pub fn probs(&self, x_nd: ArrayView2<'_, f64>) -> Result<Array2<f64>, MetricError> {
        check_asked(x_nd, self.weight_cd.ncols())?;
        Ok(softmax((x_nd.dot(&self.weight_cd.t()) + &self.intercept_c).view()))
    }
}

/// The objective and its derivatives.
struct Problem {
    /// Features with a 1 appended.
    a_np: Array2<f64>,
    target_nc: Array2<f64>,
    /// `1 / c` for weights, 0 for the intercept.
    decay_p: Array1<f64>,
}

impl Problem {
    fn new(x_nd: ArrayView2<'_, f64>, label_n: &[usize], classes: usize, decay: f64) -> Self {
        let a_np = concatenate![Axis(1), x_nd, Array2::ones((x_nd.nrows(), 1))];
        let mut target_nc = Array2::zeros((label_n.len(), classes));
        label_n.iter().enumerate().for_each(|(n, &label)| target_nc[[n, label]] = 1.0);
        let mut decay_p = Array1::from_elem(a_np.ncols(), decay);
        decay_p[x_nd.ncols()] = 0.0;
        Self { a_np, target_nc, decay_p }
    }

    fn objective(&self, theta_cp: &Array2<f64>) -> f64 {
        let log_nc = log_softmax(self.a_np.dot(&theta_cp.t()).view());
        let penalty = (theta_cp * theta_cp * &self.decay_p).sum() / 2.0;
        penalty - (&self.target_nc * &log_nc).sum()
    }

    /// Probabilities, and the gradient `(P - Y)^T A + decay theta`.
    fn gradient(&self, theta_cp: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
        let prob_nc = softmax(self.a_np.dot(&theta_cp.t()).view());
        let gradient_cp = (&prob_nc - &self.target_nc).t().dot(&self.a_np);
        (prob_nc, gradient_cp + theta_cp * &self.decay_p)
    }

    /// The Hessian at `prob_nc` times a direction.
    fn curvature(&self, prob_nc: &Array2<f64>, step_cp: &Array2<f64>) -> Array2<f64> {
        let slope_nc = self.a_np.dot(&step_cp.t()) * prob_nc;
        let mean_n1 = slope_nc.sum_axis(Axis(1)).insert_axis(Axis(1));
        (slope_nc - prob_nc * &mean_n1).t().dot(&self.a_np) + step_cp * &self.decay_p
    }

    fn minimise(&self) -> Result<Array2<f64>, MetricError> {
        let failed = MetricError::NotConverged { what: "the logistic probe" };
        let scale =
            self.a_np.iter().fold(1.0, |a: f64, v| a.max(v.abs())) * self.a_np.nrows() as f64;
        let mut theta_cp = Array2::zeros((self.target_nc.ncols(), self.a_np.ncols()));
        for _ in 0..MAX_STEPS {
            let (prob_nc, gradient_cp) = self.gradient(&theta_cp);
            let left = gradient_cp.iter().fold(0.0, |a: f64, v| a.max(v.abs())) / scale;
            if left <= 1e-14 {
                return Ok(theta_cp);
            }
            let step_cp = self.newton_step(&prob_nc, &gradient_cp);
            match self.line_search(&theta_cp, &gradient_cp, step_cp) {
                Some(next_cp) => theta_cp = next_cp,
                // No step improves on this in doubles: at a minimum the gradient is rounding.
                None if left <= 1e-9 => return Ok(theta_cp),
                None => return Err(failed),
            }
        }
        Err(failed)
    }

    /// Solves `H step = -gradient` by conjugate gradients, the more closely the smaller the gradient.
    fn newton_step(&self, prob_nc: &Array2<f64>, gradient_cp: &Array2<f64>) -> Array2<f64> {
        let dot = |a: &Array2<f64>, b: &Array2<f64>| (a * b).sum();
        let mut step_cp = Array2::zeros(gradient_cp.dim());
        let mut rest_cp = -gradient_cp;
        let mut way_cp = rest_cp.clone();
        let mut square = dot(&rest_cp, &rest_cp);
        let goal = square * square.sqrt().clamp(1e-12, 1e-2).powi(2);
        for _ in 0..2 * gradient_cp.len() + 10 {
            let bent_cp = self.curvature(prob_nc, &way_cp);
            let bend = dot(&way_cp, &bent_cp);
            if square <= goal || bend <= 0.0 {
                break;
            }
            step_cp.scaled_add(square / bend, &way_cp);
            rest_cp.scaled_add(-square / bend, &bent_cp);
            let next = dot(&rest_cp, &rest_cp);
            way_cp = &rest_cp + &way_cp * (next / square);
            square = next;
        }
        step_cp
    }

    /// Halves the step until the objective falls; `None` if it never does.
    fn line_search(
        &self,
        theta_cp: &Array2<f64>,
        gradient_cp: &Array2<f64>,
        mut step_cp: Array2<f64>,
    ) -> Option<Array2<f64>> {
        let (from, slope) = (self.objective(theta_cp), (gradient_cp * &step_cp).sum());
        let mut share = 1.0;
        for _ in 0..50 {
            let next_cp = theta_cp + &step_cp;
            if self.objective(&next_cp) <= from + 1e-4 * share * slope && next_cp != theta_cp {
                return Some(next_cp);
            }
            (share, step_cp) = (share / 2.0, step_cp / 2.0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::probe::{accuracy, predictions};
    use ndarray::array;

    fn fit(x_nd: &Array2<f64>, label_n: &[usize], c: f64, classes: Option<usize>) -> LogisticProbe {
        LogisticProbe::fit(x_nd.view(), label_n, &LogisticOptions { c, classes }).unwrap()
    }

    #[test]
    fn the_gradient_vanishes_by_hand() {
        // Samples 1 and -1 of two classes: by symmetry W = (w, -w), no intercept, p = s(2w) of the
        // right class. The derivative by w: -4 (1 - s(2w)) + 2 w / c = 0.
        let probe = fit(&array![[1.0], [-1.0]], &[0, 1], 0.5, None);
        let w = probe.weight_cd[[0, 0]];
        assert!((w - (1.0 - crate::score::sigmoid(2.0 * w))).abs() < 1e-12, "{w}");
        assert!((probe.weight_cd[[1, 0]] + w).abs() < 1e-15);
        assert!(probe.intercept_c.iter().all(|b| b.abs() < 1e-12));
        let objective = -2.0 * crate::score::sigmoid(2.0 * w).ln() + 2.0 * w * w;
        assert!((probe.objective - objective).abs() < 1e-14);
    }

    #[test]
    fn without_weights_the_intercepts_are_frequencies() {
        // A feature that is 0 throughout says nothing: the probabilities are 3/4 and 1/4.
        let probe = fit(&Array2::zeros((4, 1)), &[0, 1, 0, 0], 1.0, None);
        let prob_nc = probe.probs(array![[5.0]].view()).unwrap();
        assert!((&prob_nc - &array![[0.75, 0.25]]).iter().all(|v| v.abs() < 1e-12));
    }

    #[test]
    fn hard_cases_end() {
        let x_nd = array![[1.0, 500.0], [2.0, -100.0], [3.0, 20.0], [4.0, 0.5]];
        // Separable and hardly regularised; badly scaled; a class without samples; one class.
        let probe = fit(&x_nd, &[0, 0, 1, 1], 1e6, None);
        let predicted = predictions(probe.probs(x_nd.view()).unwrap().view());
        assert_eq!(accuracy(&predicted, &[0, 0, 1, 1]), 1.0);
        let absent = fit(&x_nd, &[0, 2, 0, 2], 1.0, None);
        assert!(absent.probs(x_nd.view()).unwrap().column(1).iter().all(|p| *p < 1e-9));
        assert_eq!(fit(&x_nd, &[0; 4], 1.0, None).objective, 0.0);
    }

    #[test]
    fn no_regularisation_is_refused() {
        let options = LogisticOptions { c: 0.0, classes: None };
        let refused = LogisticProbe::fit(array![[1.0]].view(), &[0], &options).unwrap_err();
        assert_eq!(refused.to_string(), "c: 0 is not above 0");
    }
}
