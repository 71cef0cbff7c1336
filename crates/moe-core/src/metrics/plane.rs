//! Samples seen in the plane in which they vary most, for maps of router inputs.
//!
//! Axis letters: `n` samples, `d` width.

use super::MetricError;
use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array2, ArrayView2, Axis};

/// The two principal components of samples. Unlike t-SNE or UMAP it draws nothing and keeps distances as
/// far as two axes can.
#[derive(Debug, Clone, PartialEq)]
pub struct PrincipalPlane {
    /// Places of the samples about their mean, `[n, 2]`, in the samples' unit.
    pub xy_n2: Array2<f64>,
    /// Share of the variance that lies in the plane; 1 if there is none at all.
    pub explained: f64,
}

impl PrincipalPlane {
    /// The plane of `x_nd`. Each axis points to the side of its component of largest size, so that equal
    /// samples give equal maps.
    ///
    /// # Errors
    /// If there are no samples, there are fewer than two axes, or a sample is not finite.
    pub fn of(x_nd: ArrayView2<'_, f64>) -> Result<Self, MetricError> {
        MetricError::check_not_empty("samples", x_nd.len())?;
        let wide = x_nd.ncols() >= 2;
        MetricError::check_setting("width", x_nd.ncols() as f64, "at least 2", wide)?;
        MetricError::check_finite("samples", x_nd)?;
        let centre_d = x_nd.mean_axis(Axis(0)).expect("there are samples");
        let x_nd = &x_nd - &centre_d;
        let scatter_dd = x_nd.t().dot(&x_nd);
        MetricError::check_finite("scatters", scatter_dd.iter())?;
        let width = scatter_dd.nrows();
        let matrix = DMatrix::from_fn(width, width, |i, j| scatter_dd[[i, j]]);
        let eigen = SymmetricEigen::try_new(matrix, f64::EPSILON, 1000 + 100 * width)
            .ok_or(MetricError::NotConverged { what: "the eigenvalues of the scatter" })?;
        let total = eigen.eigenvalues.sum();
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|&i, &j| eigen.eigenvalues[j].total_cmp(&eigen.eigenvalues[i]));
        let axis_d2 = Array2::from_shape_fn((width, 2), |(d, side)| {
            let axis_d = eigen.eigenvectors.column(order[side]);
            axis_d[d] * axis_d[axis_d.iamax()].signum()
        });
        let kept = eigen.eigenvalues[order[0]] + eigen.eigenvalues[order[1]];
        let explained = if total > 0.0 { (kept / total).clamp(0.0, 1.0) } else { 1.0 };
        Ok(Self { xy_n2: x_nd.dot(&axis_d2), explained })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Variances 8, 2 and 1/2 along three axes: the first two hold 10 of 10.5.
    #[test]
    fn the_plane_holds_the_two_widest_axes() {
        let x_nd = array![
            [0.0, 2.0, 0.0],
            [0.0, -2.0, 0.0],
            [1.0, 0.0, 0.0],
            [-1.0, 0.0, 0.0],
            [0.0, 0.0, 0.5],
            [0.0, 0.0, -0.5],
        ];
        let plane = PrincipalPlane::of((&x_nd + 3.0).view()).unwrap();
        assert!((plane.explained - 10.0 / 10.5).abs() < 1e-12);
        let want_n2 =
            array![[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0], [0.0, 0.0]];
        let off = (&plane.xy_n2 - &want_n2).iter().fold(0.0f64, |most, off| most.max(off.abs()));
        assert!(off < 1e-12, "{:?}", plane.xy_n2);
    }

    #[test]
    fn what_has_no_plane() {
        let still = PrincipalPlane::of(array![[1.0, 2.0], [1.0, 2.0]].view()).unwrap();
        assert_eq!((still.explained, still.xy_n2), (1.0, Array2::zeros((2, 2))));
        let refused = |x_nd: Array2<f64>| PrincipalPlane::of(x_nd.view()).unwrap_err().to_string();
        assert_eq!(refused(array![[1.0]]), "width: 1 is not at least 2");
        assert!(refused(Array2::zeros((0, 3))).contains("empty"));
        assert!(refused(array![[f64::NAN, 0.0]]).contains("not finite"));
    }
}
