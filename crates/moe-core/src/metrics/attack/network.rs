//! What is attacked.
//!
//! Axis letters: `n` inputs, `d` width, `h` hidden width, `c` classes.

use crate::metrics::MetricError;
use crate::score::softmax;
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

/// A differentiable classifier. Implement it for a network of your own to attack that.
pub trait Classifier {
    /// Width of an input.
    fn width(&self) -> usize;

    /// Number of classes.
    fn classes(&self) -> usize;

    /// Logits, `[n, d] -> [n, c]`.
    fn logits(&self, x_nd: ArrayView2<'_, f64>) -> Array2<f64>;

    /// Derivative of every input's cross-entropy with its label by that input, `[n, d]`.
    fn loss_gradient(&self, x_nd: ArrayView2<'_, f64>, label_n: &[usize]) -> Array2<f64>;
}

/// `softmax(w h + b)` with `h = x`, or `h = relu(w1 x + b1)`.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseNet {
    w_ch: Array2<f64>,
    b_c: Array1<f64>,
    hidden: Option<(Array2<f64>, Array1<f64>)>,
}

impl DenseNet {
    /// A network of these weights; `hidden` is `w1_hd` and `b1_h`. A missing bias is zero.
    ///
    /// # Errors
    ///
    /// If weights are absent or not finite, or do not fit each other.
    pub fn new(
        w_ch: Array2<f64>,
        b_c: Option<Array1<f64>>,
        hidden: Option<(Array2<f64>, Option<Array1<f64>>)>,
    ) -> Result<Self, MetricError> {
        let (w_ch, b_c) = dense("w", w_ch, "b", b_c)?;
        let hidden = hidden.map(|(w1, b1)| dense("w1", w1, "b1", b1)).transpose()?;
        if let Some((w1_hd, _)) = &hidden {
            MetricError::check_shape("w", w_ch.shape(), &[w_ch.nrows(), w1_hd.nrows()])?;
        }
        Ok(Self { w_ch, b_c, hidden })
    }

    /// Before the rectifier; the input itself without a hidden layer.
    fn features(&self, x_nd: ArrayView2<'_, f64>) -> Array2<f64> {
        match &self.hidden {
            Some((w1_hd, b1_h)) => x_nd.dot(&w1_hd.t()) + b1_h,
            None => x_nd.to_owned(),
        }
    }

    fn head(&self, feature_nh: Array2<f64>) -> Array2<f64> {
        let h_nh = if self.hidden.is_some() { feature_nh.mapv(|v| v.max(0.0)) } else { feature_nh };
        h_nh.dot(&self.w_ch.t()) + &self.b_c
    }
}

fn dense(
    w_name: &'static str,
    w_oi: Array2<f64>,
    b_name: &'static str,
    b_o: Option<Array1<f64>>,
) -> Result<(Array2<f64>, Array1<f64>), MetricError> {
    MetricError::check_not_empty(w_name, w_oi.len())?;
    let b_o = b_o.unwrap_or_else(|| Array1::zeros(w_oi.nrows()));
    MetricError::check_shape(b_name, b_o.shape(), &[w_oi.nrows()])?;
    MetricError::check_finite(w_name, &w_oi)?;
    MetricError::check_finite(b_name, &b_o)?;
    Ok((w_oi, b_o))
}

impl Classifier for DenseNet {
    fn width(&self) -> usize {
        self.hidden.as_ref().map_or(self.w_ch.ncols(), |(w1_hd, _)| w1_hd.ncols())
    }

    fn classes(&self) -> usize {
        self.w_ch.nrows()
    }

    fn logits(&self, x_nd: ArrayView2<'_, f64>) -> Array2<f64> {
        self.head(self.features(x_nd))
    }

    fn loss_gradient(&self, x_nd: ArrayView2<'_, f64>, label_n: &[usize]) -> Array2<f64> {
        let feature_nh = self.features(x_nd);
        let mut error_nc = softmax(self.head(feature_nh.clone()).view());
        let rows = error_nc.axis_iter_mut(Axis(0)).zip(label_n);
        rows.for_each(|(mut error_c, &label)| error_c[label] -= 1.0);
        let mut gradient_nh = error_nc.dot(&self.w_ch);
        let Some((w1_hd, _)) = &self.hidden else { return gradient_nh };
        let closed = |gradient: &mut f64, feature: &f64| {
            if *feature <= 0.0 {
                *gradient = 0.0;
            }
        };
        Zip::from(&mut gradient_nh).and(&feature_nh).for_each(closed);
        gradient_nh.dot(w1_hd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn network(hidden: bool) -> DenseNet {
        let w_ch = array![[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]];
        let w1_hd = array![[0.4, 0.9], [-1.1, 0.6]];
        let hidden = hidden.then(|| (w1_hd, Some(array![0.3, -0.2])));
        DenseNet::new(w_ch, Some(array![0.1, 0.0, -0.4]), hidden).unwrap()
    }

    #[test]
    fn logits_by_hand() {
        // h = relu(0.4 + 1.8 + 0.3, -1.1 + 1.2 - 0.2) = (2.5, 0).
        let got = network(true).logits(array![[1.0, 2.0]].view());
        let want = array![[2.6, 0.75, -2.15]];
        assert!((&got - &want).iter().all(|v| v.abs() < 1e-14), "{got}");
    }

    #[test]
    fn gradients_are_central_differences() {
        let x_nd = array![[0.5, 0.2], [-0.4, 1.3]];
        let (label_n, h) = ([2, 0], 1e-5);
        for hidden in [false, true] {
            let network = network(hidden);
            let gradient_nd = network.loss_gradient(x_nd.view(), &label_n);
            for ((n, d), gradient) in gradient_nd.indexed_iter() {
                let loss = |step: f64| {
                    let mut x_nd = x_nd.clone();
                    x_nd[[n, d]] += step;
                    let log_nc = crate::score::log_softmax(network.logits(x_nd.view()).view());
                    -log_nc[[n, label_n[n]]]
                };
                let difference = (loss(h) - loss(-h)) / (2.0 * h);
                assert!((gradient - difference).abs() < 1e-9, "{gradient} is not {difference}");
            }
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let refused =
            |b_c, hidden| DenseNet::new(array![[1.0, 2.0]], b_c, hidden).unwrap_err().to_string();
        assert_eq!(refused(Some(array![1.0, 2.0]), None), "b: shape [2], expected [1]");
        let hidden = Some((array![[1.0]], None));
        assert_eq!(refused(None, hidden), "w: shape [1, 2], expected [1, 1]");
        assert!(refused(Some(array![f64::NAN]), None).contains("not finite"));
    }
}
