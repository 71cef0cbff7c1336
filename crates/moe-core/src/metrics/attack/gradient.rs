//! Attacks along the sign of the gradient.
//!
//! Axis letters: `n` inputs, `d` width.

use super::{Classifier, PixelRange, check_eps, check_inputs, check_iters, start_offsets};
use crate::metrics::MetricError;
use ndarray::{Array2, ArrayView2, Zip};

/// The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): `x + eps sign(gradient)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fgsm {
    /// The largest change of a value.
    pub eps: f64,
    /// What a pixel can be.
    pub clip: PixelRange,
}

impl Default for Fgsm {
    fn default() -> Self {
        Self { eps: 1.0 / 255.0, clip: PixelRange::default() }
    }
}

impl Fgsm {
    /// Attacks the inputs, `[n, d]`.
    ///
    /// # Errors
    ///
    /// If `eps` is negative, the clip is empty, or inputs and labels do not fit the network.
    pub fn attack(
        &self,
        network: &dyn Classifier,
        x_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
    ) -> Result<Array2<f64>, MetricError> {
        check_eps(self.eps)?;
        self.clip.check()?;
        check_inputs(network, x_nd, label_n)?;
        let mut attacked_nd = x_nd.to_owned();
        climb(network, &mut attacked_nd, label_n, self.eps);
        attacked_nd.mapv_inplace(|v| self.clip.cut(v));
        Ok(attacked_nd)
    }
}

/// Adds `step sign(gradient)`.
fn climb(network: &dyn Classifier, x_nd: &mut Array2<f64>, label_n: &[usize], step: f64) {
    let gradient_nd = network.loss_gradient(x_nd.view(), label_n);
    x_nd.scaled_add(step, &gradient_nd.mapv(sign));
}

/// 0 at 0, where `f64::signum` is 1 or -1.
fn sign(v: f64) -> f64 {
    if v == 0.0 { 0.0 } else { v.signum() }
}

/// Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pgd {
    /// The largest change of a value.
    pub eps: f64,
    /// Length of a step; `None` is `0.15 eps`, or `eps / iters` without projection.
    pub step: Option<f64>,
    /// Steps.
    pub iters: usize,
    /// Whether every step ends within `eps` of the clean input.
    pub project: bool,
    /// What a pixel can be.
    pub clip: PixelRange,
}

impl Default for Pgd {
    fn default() -> Self {
        let Fgsm { eps, clip } = Fgsm::default();
        Self { eps, step: None, iters: 20, project: true, clip }
    }
}

impl Pgd {
    /// As in V-MoE's code: 40 steps of `eps / 40`, without projection. It has no random start either.
    pub fn v_moe() -> Self {
        Self { iters: 40, project: false, ..Self::default() }
    }

    /// Length of a step.
    pub fn step_length(&self) -> f64 {
        let default = if self.project { 0.15 * self.eps } else { self.eps / self.iters as f64 };
        self.step.unwrap_or(default)
    }

    /// Attacks the inputs from `x + eps start`, whose entries are cut to -1..=1, `[n, d]`.
    ///
    /// # Errors
    ///
    /// If a setting is out of its range, or inputs, labels or start do not fit the network.
    pub fn attack(
        &self,
        network: &dyn Classifier,
        x_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
        start_nd: Option<ArrayView2<'_, f64>>,
    ) -> Result<Array2<f64>, MetricError> {
        check_eps(self.eps)?;
        check_iters(self.iters)?;
        self.clip.check()?;
        let step = self.step_length();
        MetricError::check_setting(
            "step",
            step,
            "at least 0",
            (0.0..f64::INFINITY).contains(&step),
        )?;
        check_inputs(network, x_nd, label_n)?;
        let mut attacked_nd = start_offsets(x_nd, start_nd, self.eps)? + x_nd;
        attacked_nd.mapv_inplace(|v| self.clip.cut(v));
        for _ in 0..self.iters {
            climb(network, &mut attacked_nd, label_n, step);
            Zip::from(&mut attacked_nd).and(x_nd).for_each(|v, &x| *v = self.allowed(*v, x));
        }
        Ok(attacked_nd)
    }

    /// The allowed value nearest to `value` for the clean one `x`.
    fn allowed(&self, value: f64, x: f64) -> f64 {
        let near = if self.project { value.clamp(x - self.eps, x + self.eps) } else { value };
        self.clip.cut(near)
    }
}

#[cfg(test)]
mod tests {
    use super::super::DenseNet;
    use super::*;
    use ndarray::array;

    /// Logits `(x0, -x0)`: the gradient for label 0 is negative along the first axis, 0 along the other.
    fn network() -> DenseNet {
        DenseNet::new(array![[1.0, 0.0], [-1.0, 0.0]], None, None).unwrap()
    }

    #[track_caller]
    fn assert_near(got: Result<Array2<f64>, MetricError>, want: Array2<f64>) {
        let got = got.unwrap();
        assert!((&got - &want).iter().all(|v| v.abs() < 1e-15), "{got} is not {want}");
    }

    #[test]
    fn fgsm_by_hand() {
        let x_nd = array![[0.5, 0.5], [0.5, 0.95]];
        let fgsm = Fgsm { eps: 0.25, ..Fgsm::default() };
        let attacked = fgsm.attack(&network(), x_nd.view(), &[0, 1]);
        assert_near(attacked, array![[0.25, 0.5], [0.75, 0.95]]);
        let clip = PixelRange { min: Some(0.4), max: Some(0.7) };
        let attacked = Fgsm { clip, ..fgsm }.attack(&network(), x_nd.view(), &[0, 1]);
        assert_near(attacked, array![[0.4, 0.5], [0.7, 0.7]]);
    }

    #[test]
    fn pgd_by_hand() {
        let x_nd = array![[0.5, 0.5]];
        let pgd = Pgd { eps: 0.25, iters: 2, ..Pgd::default() };
        // Two steps of 0.15 * 0.25 down.
        assert_near(pgd.attack(&network(), x_nd.view(), &[0], None), array![[0.425, 0.5]]);
        // From 0.5 - 0.25, cut from -2, and 0.5 + 0.125: the first coordinate is at the ball's edge.
        let start_nd = array![[-2.0, 0.5]];
        let start = Some(start_nd.view());
        assert_near(pgd.attack(&network(), x_nd.view(), &[0], start), array![[0.25, 0.625]]);
        // Long steps end at the edge too, unless there is no projection.
        let long = Pgd { step: Some(0.5), ..pgd };
        assert_near(long.attack(&network(), x_nd.view(), &[0], None), array![[0.25, 0.5]]);
        let free = Pgd { project: false, ..long };
        assert_near(free.attack(&network(), x_nd.view(), &[0], None), array![[-0.5, 0.5]]);
        // Without projection the steps add up to eps.
        let free = Pgd { eps: 0.25, ..Pgd::v_moe() };
        assert_eq!(free.step_length(), 0.25 / 40.0);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let refused = |pgd: Pgd| {
            pgd.attack(&network(), array![[0.5, 0.5]].view(), &[0], None).unwrap_err().to_string()
        };
        let pgd = Pgd::default();
        assert_eq!(refused(Pgd { eps: -1.0, ..pgd }), "eps: -1 is not at least 0");
        assert_eq!(refused(Pgd { iters: 0, ..pgd }), "iters: 0 is not at least 1");
        assert_eq!(refused(Pgd { step: Some(-1.0), ..pgd }), "step: -1 is not at least 0");
        let start_nd = array![[0.0]];
        let misfit = pgd.attack(&network(), array![[0.5, 0.5]].view(), &[0], Some(start_nd.view()));
        assert_eq!(misfit.unwrap_err().to_string(), "start: shape [1, 1], expected [1, 2]");
        assert_eq!((sign(-0.0), sign(-3.0), sign(2.0)), (0.0, -1.0, 1.0));
    }
}
