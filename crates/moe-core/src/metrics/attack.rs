//! Attacks on classifiers: FGSM, PGD and SPSA, in the norm of the largest change.
//!
//! Axis letters: `n` inputs, `d` width, `h` hidden width, `c` classes, `i` iterations, `s` samples.
//!
//! All of them raise the cross-entropy with given labels: the true ones, or the model's own
//! predictions on clean inputs. Every draw is an argument. For inputs normalised by mean and standard
//! deviation, `eps` is in normalised units.

mod gradient;
mod network;
mod spsa;

pub use gradient::{Fgsm, Pgd};
pub use network::{Classifier, DenseNet};
pub use spsa::{Spsa, SpsaPoint};

use super::{MetricError, probe};
use crate::score::log_softmax;
use ndarray::{Array2, ArrayView2};

/// What a pixel can be; the default is any number.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PixelRange {
    /// Smallest value.
    pub min: Option<f64>,
    /// Largest value.
    pub max: Option<f64>,
}

impl PixelRange {
    fn check(self) -> Result<(), MetricError> {
        let (min, max) = (self.low(), self.high());
        MetricError::check_setting("clip_min", min, "at most clip_max", min <= max)
    }

    fn low(self) -> f64 {
        self.min.unwrap_or(f64::NEG_INFINITY)
    }

    fn high(self) -> f64 {
        self.max.unwrap_or(f64::INFINITY)
    }

    fn cut(self, value: f64) -> f64 {
        value.clamp(self.low(), self.high())
    }
}

/// What an attack did.
#[derive(Debug, Clone, PartialEq)]
pub struct AttackStats {
    /// Mean cross-entropy with the labels on clean inputs.
    pub loss_before: f64,
    /// The same under attack.
    pub loss_after: f64,
    /// Predictions under attack.
    pub prediction_n: Vec<usize>,
    /// Predictions that differ from those on clean inputs.
    pub changed: usize,
    /// Predictions under attack that equal the labels, over all.
    pub robust_accuracy: f64,
}

impl AttackStats {
    /// Compares clean inputs `x_nd` with attacked ones, under the labels of the attack.
    ///
    /// # Errors
    ///
    /// If there are no inputs, one is not finite, the shapes differ, or the labels do not fit.
    pub fn of(
        network: &dyn Classifier,
        x_nd: ArrayView2<'_, f64>,
        attacked_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
    ) -> Result<Self, MetricError> {
        MetricError::check_shape("attacked inputs", attacked_nd.shape(), x_nd.shape())?;
        check_inputs(network, attacked_nd, label_n)?;
        check_inputs(network, x_nd, label_n)?;
        let (before_nc, after_nc) = (network.logits(x_nd), network.logits(attacked_nd));
        let prediction_n = probe::predictions(after_nc.view());
        let clean_n = probe::predictions(before_nc.view());
        let changed = prediction_n.iter().zip(&clean_n).filter(|(a, b)| a != b).count();
        Ok(Self {
            loss_before: cross_entropy(before_nc.view(), label_n),
            loss_after: cross_entropy(after_nc.view(), label_n),
            robust_accuracy: probe::accuracy(&prediction_n, label_n),
            prediction_n,
            changed,
        })
    }
}

/// Mean cross-entropy of the rows of logits with the labels.
fn cross_entropy(logits_nc: ArrayView2<'_, f64>, label_n: &[usize]) -> f64 {
    let log_nc = log_softmax(logits_nc);
    -label_n.iter().enumerate().map(|(n, &c)| log_nc[[n, c]]).sum::<f64>() / label_n.len() as f64
}

fn check_inputs(
    network: &dyn Classifier,
    x_nd: ArrayView2<'_, f64>,
    label_n: &[usize],
) -> Result<(), MetricError> {
    MetricError::check_not_empty("inputs", x_nd.len())?;
    MetricError::check_finite("inputs", x_nd)?;
    MetricError::check_shape("inputs", x_nd.shape(), &[x_nd.nrows(), network.width()])?;
    MetricError::check_shape("labels", &[label_n.len()], &[x_nd.nrows()])?;
    MetricError::check_below("labels", label_n, network.classes())
}

fn check_eps(eps: f64) -> Result<(), MetricError> {
    MetricError::check_setting("eps", eps, "at least 0", (0.0..f64::INFINITY).contains(&eps))
}

fn check_iters(iters: usize) -> Result<(), MetricError> {
    MetricError::check_setting("iters", iters as f64, "at least 1", iters > 0)
}

/// Offsets `eps s` of a start `s`, whose entries are cut to -1..=1; zero without a start.
fn start_offsets(
    x_nd: ArrayView2<'_, f64>,
    start_nd: Option<ArrayView2<'_, f64>>,
    eps: f64,
) -> Result<Array2<f64>, MetricError> {
    let Some(start_nd) = start_nd else { return Ok(Array2::zeros(x_nd.dim())) };
    MetricError::check_shape("start", start_nd.shape(), x_nd.shape())?;
    MetricError::check_finite("start", start_nd)?;
    Ok(start_nd.mapv(|s| eps * s.clamp(-1.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn stats_by_hand() {
        // Logits (x, -x): the clean inputs 1 and -1 are classes 0 and 1; under attack the second
        // is 2, class 0.
        let network = DenseNet::new(array![[1.0], [-1.0]], None, None).unwrap();
        let (x_nd, attacked_nd) = (array![[1.0], [-1.0]], array![[0.5], [2.0]]);
        let stats = AttackStats::of(&network, x_nd.view(), attacked_nd.view(), &[0, 1]).unwrap();
        assert_eq!(
            (stats.prediction_n, stats.changed, stats.robust_accuracy),
            (vec![0, 0], 1, 0.5)
        );
        // -ln s(2), and the mean of -ln s(1) and -ln s(-4).
        let nll = |z: f64| (1.0 + (-z).exp()).ln();
        assert!((stats.loss_before - nll(2.0)).abs() < 1e-15);
        assert!((stats.loss_after - (nll(1.0) + nll(-4.0)) / 2.0).abs() < 1e-15);
    }

    #[test]
    fn misfits_are_refused() {
        let network = DenseNet::new(array![[1.0], [-1.0]], None, None).unwrap();
        let refused = |x_nd: Array2<f64>, label_n: &[usize]| {
            check_inputs(&network, x_nd.view(), label_n).unwrap_err().to_string()
        };
        assert!(refused(array![[1.0]], &[2]).contains("range"));
        assert!(refused(array![[1.0, 2.0]], &[0]).contains("shape"));
        assert!(refused(array![[1.0]], &[0, 0]).contains("shape"));
        assert!(refused(array![[f64::NAN]], &[0]).contains("finite"));
        let backwards = PixelRange { min: Some(1.0), max: Some(0.0) };
        assert_eq!(
            backwards.check().unwrap_err().to_string(),
            "clip_min: 1 is not at most clip_max"
        );
    }
}
