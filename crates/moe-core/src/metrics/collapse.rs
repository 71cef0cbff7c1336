//! Representation collapse of router inputs (Chi et al. 2022, X-MoE, arXiv 2204.09179).
//!
//! Axis letters: `n` samples, `d` width, `k` classes.

use super::{MetricError, entropy};
use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use std::collections::BTreeMap;

/// How much a class counts in the scatter of class means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClassWeighting {
    /// Every class alike, `1/k`: the paper.
    #[default]
    Uniform,
    /// By its share of the samples, `n_c / n`.
    Size,
}

/// Settings of [`Collapse`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollapseOptions {
    /// How much a class counts in `sigma_b_dd`.
    pub weighting: ClassWeighting,
    /// Divide by the number of classes, as the neural-collapse literature does.
    pub divide_by_classes: bool,
    /// Eigenvalues below this times the largest are zero to the pseudo-inverse.
    pub rcond: f64,
}

impl Default for CollapseOptions {
    fn default() -> Self {
        Self { weighting: ClassWeighting::Uniform, divide_by_classes: false, rcond: 1e-10 }
    }
}

/// `rc = Tr(sigma_w pinv(sigma_b))`: the scatter within classes measured by that between them.
/// The smaller, the more the inputs have collapsed onto their class means.
#[derive(Debug, Clone, PartialEq)]
pub struct Collapse {
    /// Scatter about the own class mean, `(1/n) sum (x - mean_c)(x - mean_c)^T`, `[d, d]`.
    pub sigma_w_dd: Array2<f64>,
    /// Scatter of class means about the mean of all samples, `[d, d]`, of rank at most `k - 1`.
    pub sigma_b_dd: Array2<f64>,
    /// Classes that occur.
    pub classes: usize,
    /// The measure; 0 for a single class.
    pub rc: f64,
}

impl Collapse {
    /// Collapse of the samples `x_nd` under the labels `label_n`, usually the assigned experts. Labels
    /// may be any numbers; one that does not occur is no class.
    ///
    /// # Errors
    ///
    /// If there are no samples, one is not finite, there is not one label per sample, or `rcond` is
    /// negative.
    pub fn of(
        x_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
        options: &CollapseOptions,
    ) -> Result<Self, MetricError> {
        let holds = options.rcond >= 0.0;
        MetricError::check_setting("rcond", options.rcond, "at least 0", holds)?;
        MetricError::check_not_empty("samples", x_nd.len())?;
        MetricError::check_finite("samples", x_nd)?;
        MetricError::check_shape("labels", &[label_n.len()], &[x_nd.nrows()])?;
        let members = members(label_n);
        let (sigma_w_dd, sigma_b_dd) = scatters(x_nd, &members, options.weighting);
        let classes = members.len();
        let trace = match classes {
            1 => 0.0,
            _ => trace_with_pinv(&sigma_w_dd, &sigma_b_dd, options.rcond)?,
        };
        let rc = if options.divide_by_classes { trace / classes as f64 } else { trace };
        Ok(Self { sigma_w_dd, sigma_b_dd, classes, rc })
    }
}

/// The samples of every class, classes in the order of their labels.
fn members(label_n: &[usize]) -> Vec<Vec<usize>> {
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (n, &label) in label_n.iter().enumerate() {
        members.entry(label).or_default().push(n);
    }
    members.into_values().collect()
}

/// Scatter within and between classes.
fn scatters(
    x_nd: ArrayView2<'_, f64>,
    members: &[Vec<usize>],
    weighting: ClassWeighting,
) -> (Array2<f64>, Array2<f64>) {
    let (samples, width) = x_nd.dim();
    let mut within_nd = x_nd.as_standard_layout().into_owned();
    let mean_d = within_nd.mean_axis(Axis(0)).expect("there are samples");
    let mut gap_kd = Array2::zeros((members.len(), width));
    for (rows, mut gap_d) in members.iter().zip(gap_kd.outer_iter_mut()) {
        let class_d = x_nd.select(Axis(0), rows).mean_axis(Axis(0)).expect("classes have samples");
        rows.iter().for_each(|&n| within_nd.row_mut(n).scaled_add(-1.0, &class_d));
        let weight = match weighting {
            ClassWeighting::Uniform => 1.0 / members.len() as f64,
            ClassWeighting::Size => rows.len() as f64 / samples as f64,
        };
        gap_d.assign(&((class_d - &mean_d) * weight.sqrt()));
    }
    (within_nd.t().dot(&within_nd) / samples as f64, gap_kd.t().dot(&gap_kd))
}

/// `Tr(a pinv(b)) = sum_i v_i^T a v_i / lambda_i` over the eigenvalues of `b` that are kept.
fn trace_with_pinv(a_dd: &Array2<f64>, b_dd: &Array2<f64>, rcond: f64) -> Result<f64, MetricError> {
    // Squares of finite samples may overflow, and the solver would not end on NaN.
    MetricError::check_finite("scatters", a_dd.iter().chain(b_dd))?;
    let (a, b) = (matrix(a_dd), matrix(b_dd));
    let steps = 1000 + 100 * b.nrows();
    let eigen = SymmetricEigen::try_new(b, f64::EPSILON, steps)
        .ok_or(MetricError::NotConverged { what: "the eigenvalues of sigma_b" })?;
    let cutoff = rcond * eigen.eigenvalues.max();
    let pairs = eigen.eigenvalues.iter().zip(eigen.eigenvectors.column_iter());
    let kept = pairs.filter(|(lambda, _)| **lambda > 0.0 && **lambda >= cutoff);
    Ok(kept.map(|(lambda, v)| (&a * v).dot(&v) / lambda).sum())
}

/// Effective rank of samples (Roy and Vetterli 2007): `exp` of the entropy of the normalised singular
/// values of the centred samples. Between 1, a line, and `d`; 0 if all samples are equal.
///
/// # Errors
///
/// If there are no samples or one is not finite.
pub fn effective_rank(x_nd: ArrayView2<'_, f64>) -> Result<f64, MetricError> {
    MetricError::check_not_empty("samples", x_nd.len())?;
    MetricError::check_finite("samples", x_nd)?;
    let centre_d = x_nd.mean_axis(Axis(0)).expect("there are samples");
    let x_nd = &x_nd - &centre_d;
    let scatter_dd = x_nd.t().dot(&x_nd);
    MetricError::check_finite("scatters", scatter_dd.iter())?;
    let steps = 1000 + 100 * scatter_dd.nrows();
    let eigen = SymmetricEigen::try_new(matrix(&scatter_dd), f64::EPSILON, steps)
        .ok_or(MetricError::NotConverged { what: "the eigenvalues of the scatter" })?;
    // Rounding leaves what should be zero slightly below or above it.
    let noise = eigen.eigenvalues.max() * f64::EPSILON * x_nd.ncols() as f64;
    let singular: Vec<f64> =
        eigen.eigenvalues.iter().filter(|v| **v > noise).map(|v| v.sqrt()).collect();
    let total: f64 = singular.iter().sum();
    let share_d: Array1<f64> = singular.iter().map(|value| value / total).collect();
    Ok(if total > 0.0 { entropy(share_d.view()).exp() } else { 0.0 })
}

fn matrix(a_dd: &Array2<f64>) -> DMatrix<f64> {
    DMatrix::from_fn(a_dd.nrows(), a_dd.ncols(), |i, j| a_dd[[i, j]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Singular values 2 sqrt 2 and sqrt 2: shares 2/3 and 1/3, entropy ln 3 - (2/3) ln 2.
    #[test]
    fn effective_rank_by_hand() {
        let x_nd = array![[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]];
        let want = 3.0 / 2f64.powf(2.0 / 3.0);
        assert!((effective_rank(x_nd.view()).unwrap() - want).abs() < 1e-12);
        // A shift changes nothing; samples on a line have rank 1, equal ones none.
        assert!((effective_rank((&x_nd + 7.0).view()).unwrap() - want).abs() < 1e-12);
        let line = effective_rank(array![[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]].view()).unwrap();
        assert!((line - 1.0).abs() < 1e-6, "{line}");
        assert_eq!(effective_rank(array![[3.0, 1.0], [3.0, 1.0]].view()), Ok(0.0));
        assert!(effective_rank(Array2::zeros((0, 2)).view()).is_err());
    }

    fn of(x_nd: &Array2<f64>, label_n: &[usize], options: CollapseOptions) -> Collapse {
        Collapse::of(x_nd.view(), label_n, &options).unwrap()
    }

    #[test]
    fn collapse_by_hand() {
        // Class means (2, 0) of two samples and (-1, 0) of one; the mean of all three is (1, 0).
        // Within: (0, 1) and (0, -1) about their mean: sigma_w = diag(0, 2/3).
        // Between: gaps 1 and -2 along the first axis: (1 + 4) / 2.
        let x_nd = array![[2.0, 1.0], [2.0, -1.0], [-1.0, 0.0]];
        let got = of(&x_nd, &[7, 7, 2], CollapseOptions::default());
        assert!(
            (&got.sigma_w_dd - &array![[0.0, 0.0], [0.0, 2.0 / 3.0]])
                .iter()
                .all(|v| v.abs() < 1e-15)
        );
        assert!(
            (&got.sigma_b_dd - &array![[2.5, 0.0], [0.0, 0.0]]).iter().all(|v| v.abs() < 1e-15)
        );
        // The scatter within lies where the class means do not vary: the pseudo-inverse is 0 there.
        assert_eq!((got.classes, got.rc), (2, 0.0));
    }

    #[test]
    fn weights_and_classes_by_hand() {
        // One axis. Samples 3, 1 (mean 2) and -1: mean 1; sigma_w = (1 + 1) / 3.
        let x_nd = array![[3.0], [1.0], [-1.0]];
        let default = CollapseOptions::default();
        // Uniform: (1 + 4) / 2 = 5/2, rc = 2/3 / (5/2) = 4/15. By size: 2/3 + 4/3 = 2, rc = 1/3.
        assert!((of(&x_nd, &[0, 0, 1], default).rc - 4.0 / 15.0).abs() < 1e-15);
        let size = CollapseOptions { weighting: ClassWeighting::Size, ..default };
        assert!((of(&x_nd, &[0, 0, 1], size).rc - 1.0 / 3.0).abs() < 1e-15);
        let divided = CollapseOptions { divide_by_classes: true, ..default };
        assert!((of(&x_nd, &[0, 0, 1], divided).rc - 2.0 / 15.0).abs() < 1e-15);
    }

    #[test]
    fn small_eigenvalues_are_dropped() {
        // Tr(I pinv(diag(4, 1))) = 1/4 + 1; a quarter of the largest is not below it, a half is.
        let (a_dd, b_dd) = (Array2::eye(2), array![[4.0, 0.0], [0.0, 1.0]]);
        for (rcond, want) in [(0.0, 1.25), (0.25, 1.25), (0.5, 0.25)] {
            let got = trace_with_pinv(&a_dd, &b_dd, rcond).unwrap();
            assert!((got - want).abs() < 1e-15, "rcond {rcond}: {got}");
        }
    }

    #[test]
    fn one_class_has_collapsed() {
        let got = of(&array![[1.0, 0.1], [0.2, 0.7]], &[4, 4], CollapseOptions::default());
        assert_eq!((got.rc, got.sigma_b_dd), (0.0, Array2::zeros((2, 2))));
    }

    #[test]
    fn what_has_no_collapse_is_refused() {
        let default = CollapseOptions::default();
        let refused = |x_nd: Array2<f64>, label_n: &[usize], options| {
            Collapse::of(x_nd.view(), label_n, &options).unwrap_err().to_string()
        };
        assert_eq!(refused(Array2::zeros((0, 2)), &[], default), "samples are empty: bad shape");
        assert_eq!(refused(array![[1.0]], &[], default), "labels: shape [0], expected [1]");
        let overflow = refused(array![[1e200], [-1e200]], &[0, 1], default);
        assert!(overflow.contains("not finite"), "{overflow}");
        let negative = CollapseOptions { rcond: -1.0, ..default };
        assert_eq!(refused(array![[1.0]], &[0], negative), "rcond: -1 is not at least 0");
    }
}
