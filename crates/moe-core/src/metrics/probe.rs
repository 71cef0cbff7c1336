//! Linear probes: what class can be read off frozen features.
//!
//! Axis letters: `n` samples, `d` width, `c` classes.

mod few_shot;
mod logistic;
mod ridge;

pub use few_shot::{FewShot, L2_EXPONENTS, Labelled, few_shot};
pub use logistic::{LogisticOptions, LogisticProbe};
pub use ridge::{RidgeOptions, RidgeProbe};

use super::{MetricError, information};
use crate::select::top_k;
use ndarray::ArrayView2;

/// More classes than this are a mistaken label.
const MAX_CLASSES: usize = 1 << 20;

/// The class with the highest score in every row; the lower one of equals.
///
/// # Panics
///
/// If there are no classes.
pub fn predictions(score_nc: ArrayView2<'_, f64>) -> Vec<usize> {
    score_nc.outer_iter().map(|score_c| top_k(score_c.iter().copied(), 1)[0]).collect()
}

/// The share of predictions that are right; NaN without any.
///
/// # Panics
///
/// If there is not one label per prediction.
pub fn accuracy(predicted_n: &[usize], label_n: &[usize]) -> f64 {
    assert_eq!(predicted_n.len(), label_n.len(), "predictions and labels differ in number");
    let right = predicted_n.iter().zip(label_n).filter(|(a, b)| a == b).count();
    right as f64 / label_n.len() as f64
}

/// Checks what a probe is fitted to, and says how many classes there are.
fn check_fit(
    x_nd: ArrayView2<'_, f64>,
    label_n: &[usize],
    classes: Option<usize>,
) -> Result<usize, MetricError> {
    if let Some(classes) = classes {
        MetricError::check_setting("classes", classes as f64, "at least 1", classes > 0)?;
    }
    MetricError::check_not_empty("samples", x_nd.len())?;
    MetricError::check_finite("samples", x_nd)?;
    MetricError::check_shape("labels", &[label_n.len()], &[x_nd.nrows()])?;
    information::below("labels", label_n, classes, MAX_CLASSES)
}

/// Checks what a probe of `width` is asked about.
fn check_asked(x_nd: ArrayView2<'_, f64>, width: usize) -> Result<(), MetricError> {
    MetricError::check_finite("samples", x_nd)?;
    MetricError::check_shape("samples", x_nd.shape(), &[x_nd.nrows(), width])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_lower_of_equal_scores_is_predicted() {
        let predicted = predictions(array![[1.0, 2.0, 2.0], [0.0, 0.0, -1.0]].view());
        assert_eq!(predicted, [1, 0]);
        assert_eq!(accuracy(&predicted, &[1, 1]), 0.5);
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let x_nd = array![[1.0], [2.0]];
        let refused = |label_n: &[usize], classes| {
            check_fit(x_nd.view(), label_n, classes).unwrap_err().to_string()
        };
        assert_eq!(refused(&[0, 3], Some(3)), "value 1 of labels is 3, out of range 0..3");
        assert_eq!(refused(&[0], None), "labels: shape [1], expected [2]");
        assert_eq!(refused(&[0, 0], Some(0)), "classes: 0 is not at least 1");
        assert!(refused(&[0, usize::MAX], None).contains("range"));
        assert_eq!(check_fit(x_nd.view(), &[0, 3], None), Ok(4));
        assert!(check_asked(x_nd.view(), 2).unwrap_err().to_string().contains("shape"));
    }
}
