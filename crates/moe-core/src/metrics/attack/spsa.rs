//! An attack without gradients (Uesato et al. 2018, arXiv 1802.05666): simultaneous perturbation
//! stochastic approximation, descended by Adam.
//!
//! Axis letters: `n` inputs, `d` width, `i` iterations, `s` samples, `p` points.

use super::{Classifier, PixelRange, check_eps, check_inputs, check_iters, start_offsets};
use crate::metrics::MetricError;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayView3, ArrayView4, Axis};

/// Where the gradient is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpsaPoint {
    /// At the attacked input.
    #[default]
    Current,
    /// At twice the clean input, because ACMoE's released function adds the image twice; use it only
    /// to reproduce.
    Double,
}

/// The attack's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spsa {
    /// The largest change of a value.
    pub eps: f64,
    /// Steps.
    pub iters: usize,
    /// How far from the point the loss is looked at.
    pub delta: f64,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// Where the gradient is estimated.
    pub point: SpsaPoint,
    /// What a pixel can be.
    pub clip: PixelRange,
}

impl Default for Spsa {
    fn default() -> Self {
        Self {
            eps: 0.1,
            iters: 20,
            delta: 0.01,
            learning_rate: 0.01,
            point: SpsaPoint::Current,
            clip: PixelRange::default(),
        }
    }
}

impl Spsa {
    /// Attacks the inputs, `[n, d]`. `sign_nisd` are the directions, +1 or -1; every one is looked at
    /// both ways. The start is as for [`Pgd`](super::Pgd::attack).
    ///
    /// # Errors
    ///
    /// If a setting is out of its range, or inputs, labels, signs or start do not fit the network.
    pub fn attack(
        &self,
        network: &dyn Classifier,
        x_nd: ArrayView2<'_, f64>,
        label_n: &[usize],
        sign_nisd: ArrayView4<'_, f64>,
        start_nd: Option<ArrayView2<'_, f64>>,
    ) -> Result<Array2<f64>, MetricError> {
        self.check()?;
        check_inputs(network, x_nd, label_n)?;
        // With one class there is no wrong logit.
        MetricError::check_shape("classes", &[network.classes()], &[network.classes().max(2)])?;
        self.check_signs(x_nd, sign_nisd)?;
        let mut attacked_nd = start_offsets(x_nd, start_nd, self.eps)?;
        for (n, mut offset_d) in attacked_nd.outer_iter_mut().enumerate() {
            let target = Target { network, x_d: x_nd.row(n), label: label_n[n] };
            let found_d =
                self.descend(&target, offset_d.to_owned(), sign_nisd.index_axis(Axis(0), n));
            offset_d.assign(&(&found_d + &x_nd.row(n)));
        }
        Ok(attacked_nd)
    }

    fn check(&self) -> Result<(), MetricError> {
        let Self { eps, iters, delta, learning_rate, clip, .. } = *self;
        let positive = |v: f64| v > 0.0 && v.is_finite();
        check_eps(eps)?;
        check_iters(iters)?;
        MetricError::check_setting("delta", delta, "above 0", positive(delta))?;
        let holds = positive(learning_rate);
        MetricError::check_setting("learning_rate", learning_rate, "above 0", holds)?;
        clip.check()
    }

    fn check_signs(
        &self,
        x_nd: ArrayView2<'_, f64>,
        sign_nisd: ArrayView4<'_, f64>,
    ) -> Result<(), MetricError> {
        let (inputs, width) = x_nd.dim();
        let expected = [inputs, self.iters, sign_nisd.dim().2.max(1), width];
        MetricError::check_shape("signs", sign_nisd.shape(), &expected)?;
        match sign_nisd.iter().enumerate().find(|(_, v)| v.abs() != 1.0) {
            Some((index, &value)) => Err(MetricError::Range { what: "signs", index, value }),
            None => Ok(()),
        }
    }

    /// Adam (0.9, 0.999, 1e-8) on one input's perturbation.
    fn descend(
        &self,
        target: &Target<'_>,
        mut offset_d: Array1<f64>,
        sign_isd: ArrayView3<'_, f64>,
    ) -> Array1<f64> {
        let (mut mean_d, mut square_d) =
            (Array1::zeros(offset_d.len()), Array1::zeros(offset_d.len()));
        for (i, sign_sd) in sign_isd.outer_iter().enumerate() {
            let gradient_d = self.gradient(target, &offset_d, sign_sd);
            mean_d = mean_d * 0.9 + &gradient_d * 0.1;
            square_d = square_d * 0.999 + &gradient_d * &gradient_d * 0.001;
            let rounds = (i + 1) as i32;
            let first_d: Array1<f64> = &mean_d / (1.0 - 0.9f64.powi(rounds));
            let second_d: Array1<f64> = &square_d / (1.0 - 0.999f64.powi(rounds));
            offset_d = offset_d - first_d / (second_d.sqrt() + 1e-8) * self.learning_rate;
            offset_d.zip_mut_with(&target.x_d, |p, &x| {
                *p = self.clip.cut(x + p.clamp(-self.eps, self.eps)) - x;
            });
        }
        offset_d
    }

    /// Mean of `loss(point +- delta v) (+-v) / delta` over the directions `v`, both ways.
    fn gradient(
        &self,
        target: &Target<'_>,
        offset_d: &Array1<f64>,
        sign_sd: ArrayView2<'_, f64>,
    ) -> Array1<f64> {
        let point_d = match self.point {
            SpsaPoint::Current => &target.x_d + offset_d,
            SpsaPoint::Double => &target.x_d * 2.0,
        };
        let ahead_s = target.losses((&sign_sd * self.delta + &point_d).view());
        let behind_s = target.losses((&sign_sd * -self.delta + &point_d).view());
        let count = 2.0 * sign_sd.nrows() as f64;
        (ahead_s - behind_s).dot(&sign_sd) / (count * self.delta)
    }
}

/// One input under attack.
struct Target<'a> {
    network: &'a dyn Classifier,
    x_d: ArrayView1<'a, f64>,
    label: usize,
}

impl Target<'_> {
    /// True logit less the best wrong one, at every point: below 0, the attack has succeeded.
    fn losses(&self, x_pd: ArrayView2<'_, f64>) -> Array1<f64> {
        self.network.logits(x_pd).map_axis(Axis(1), |logit_c| {
            let wrong = logit_c.iter().enumerate().filter(|(c, _)| *c != self.label);
            logit_c[self.label] - wrong.map(|(_, v)| *v).fold(f64::NEG_INFINITY, f64::max)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::DenseNet;
    use super::*;
    use ndarray::{Array4, array};

    fn network() -> DenseNet {
        DenseNet::new(array![[1.0, 0.0], [-1.0, 0.0]], None, None).unwrap()
    }

    fn attack(spsa: Spsa, sign_nisd: &Array4<f64>, start_nd: Option<Array2<f64>>) -> Array2<f64> {
        let x_nd = array![[0.5, 0.5]];
        let start_nd = start_nd.as_ref().map(|start_nd| start_nd.view());
        spsa.attack(&network(), x_nd.view(), &[0], sign_nisd.view(), start_nd).unwrap()
    }

    #[test]
    fn one_step_by_hand() {
        // The loss is 2 x0. Along (1, 1) and back: (2 delta)(1, 1) / delta = (2, 2) per pair of ways,
        // (2, 2) on the mean over them and (1, -1): (2, 0). Adam's first step is the learning rate
        // against the sign, within 1e-8 / 2.
        let sign_nisd = array![[[[1.0, 1.0], [1.0, -1.0]]]];
        let spsa = Spsa { iters: 1, ..Spsa::default() };
        let got = attack(spsa, &sign_nisd, None);
        assert!((got[[0, 0]] - 0.49).abs() < 1e-10 && (got[[0, 1]] - 0.5).abs() < 1e-10, "{got}");
        // Started at the ball's edge, the step leads out of it and is projected.
        let got = attack(spsa, &sign_nisd, Some(array![[-3.0, 1.0]]));
        assert!((got[[0, 0]] - 0.4).abs() < 1e-15 && (got[[0, 1]] - 0.6).abs() < 1e-10, "{got}");
        let clip = PixelRange { min: Some(0.495), max: None };
        let got = attack(Spsa { clip, ..spsa }, &sign_nisd, None);
        assert!((got[[0, 0]] - 0.495).abs() < 1e-15, "{got}");
    }

    #[test]
    fn the_gradient_has_its_size() {
        // Adam hides the size: the gradient of 2 x0 along (1, 1) and (1, -1) is (2, 0).
        let (network, x_d) = (network(), array![0.5, 0.5]);
        let target = Target { network: &network, x_d: x_d.view(), label: 0 };
        let sign_sd = array![[1.0, 1.0], [1.0, -1.0]];
        let got = Spsa::default().gradient(&target, &Array1::zeros(2), sign_sd.view());
        assert!((got[0] - 2.0).abs() < 1e-12 && got[1].abs() < 1e-12, "{got}");
    }

    #[test]
    fn the_doubled_point_is_another() {
        // Beyond x0 = 0.75 the rectified network has no slope: twice the input lies there.
        let hidden = Some((array![[-1.0, 0.0]], Some(array![0.75])));
        let network = DenseNet::new(array![[-1.0], [1.0]], None, hidden).unwrap();
        let (x_nd, sign_nisd) = (array![[0.5, 0.5]], array![[[[1.0, 1.0], [1.0, -1.0]]]]);
        let run = |point| {
            let spsa = Spsa { iters: 1, point, ..Spsa::default() };
            spsa.attack(&network, x_nd.view(), &[0], sign_nisd.view(), None).unwrap()
        };
        assert!((run(SpsaPoint::Current)[[0, 0]] - 0.49).abs() < 1e-10);
        assert_eq!(run(SpsaPoint::Double), x_nd);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |spsa: Spsa, sign_nisd: Array4<f64>| {
            let x_nd = array![[0.5, 0.5]];
            let attacked = spsa.attack(&network(), x_nd.view(), &[0], sign_nisd.view(), None);
            attacked.unwrap_err().to_string()
        };
        let (spsa, sign) = (Spsa { iters: 1, ..Spsa::default() }, Array4::ones((1, 1, 1, 2)));
        assert!(refused(spsa, Array4::ones((1, 2, 1, 2))).contains("shape"));
        assert!(refused(spsa, Array4::ones((1, 1, 0, 2))).contains("shape"));
        assert!(refused(spsa, Array4::zeros((1, 1, 1, 2))).contains("range"));
        let still = Spsa { delta: 0.0, ..spsa };
        assert_eq!(refused(still, sign.clone()), "delta: 0 is not above 0");
        let single = DenseNet::new(array![[1.0, 0.0]], None, None).unwrap();
        let x_nd = array![[0.5, 0.5]];
        let one = spsa.attack(&single, x_nd.view(), &[0], sign.view(), None).unwrap_err();
        assert_eq!(one.to_string(), "classes: shape [1], expected [2]");
    }
}
