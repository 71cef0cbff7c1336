//! Corruptions of ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261) that treat every pixel
//! alone, with the severities of its code, and with their draws as arguments.
//!
//! Axis letters: `p` pixels, `c` the three channels.

use super::MetricError;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, Axis, Zip};

/// A corruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corruption {
    /// `x + c n`.
    GaussianNoise,
    /// `x + c x n`.
    SpeckleNoise,
    /// `Poisson(c x) / c`.
    ShotNoise,
    /// With probability `c` a value becomes 0 or 1.
    ImpulseNoise,
    /// `(x - mean) c + mean`, the mean of the image's channel.
    Contrast,
    /// The value channel of HSV `+ c`.
    Brightness,
}

/// Draws; one that is absent means no noise.
#[derive(Debug, Clone, Copy, Default)]
pub struct CorruptionDraws<'a> {
    /// Standard normal, for Gaussian and speckle noise, `[p, c]`.
    pub normal_pc: Option<ArrayView2<'a, f64>>,
    /// Poisson with mean `c x`, for shot noise, `[p, c]`.
    pub count_pc: Option<ArrayView2<'a, f64>>,
    /// Uniform in 0..=1, for impulse noise: below `c`, the value is replaced, `[p, c]`.
    pub uniform_pc: Option<ArrayView2<'a, f64>>,
    /// Uniform in 0..=1, for impulse noise: below 1/2 by 1, else by 0, `[p, c]`.
    pub salt_pc: Option<ArrayView2<'a, f64>>,
}

impl Corruption {
    /// The constants `c` of severities 1 to 5.
    pub fn constants(self) -> [f64; 5] {
        match self {
            Self::GaussianNoise => [0.08, 0.12, 0.18, 0.26, 0.38],
            Self::SpeckleNoise => [0.15, 0.2, 0.35, 0.45, 0.6],
            Self::ShotNoise => [60.0, 25.0, 12.0, 5.0, 3.0],
            Self::ImpulseNoise => [0.03, 0.06, 0.09, 0.17, 0.27],
            Self::Contrast => [0.4, 0.3, 0.2, 0.1, 0.05],
            Self::Brightness => [0.1, 0.2, 0.3, 0.4, 0.5],
        }
    }

    /// Corrupts an image with values in 0..=1, `[p, 3]`; so are those of the result.
    ///
    /// # Errors
    ///
    /// If the severity is not in 1..=5, the image has not three channels or a value is not in 0..=1,
    /// or a draw that is needed has another shape or is not of its distribution.
    pub fn apply(
        self,
        severity: usize,
        x_pc: ArrayView2<'_, f64>,
        draws: &CorruptionDraws<'_>,
    ) -> Result<Array2<f64>, MetricError> {
        let holds = (1..=5).contains(&severity);
        MetricError::check_setting("severity", severity as f64, "in 1..=5", holds)?;
        MetricError::check_not_empty("the image", x_pc.len())?;
        MetricError::check_shape("the image", x_pc.shape(), &[x_pc.nrows(), 3])?;
        self.apply_with(self.constants()[severity - 1], x_pc, draws)
    }

    /// The same with a constant of one's own, on any number of channels: CIFAR-10-C has the rules of
    /// ImageNet-C and other constants.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`], and if the constant is not finite.
    pub fn apply_with(
        self,
        c: f64,
        x_pc: ArrayView2<'_, f64>,
        draws: &CorruptionDraws<'_>,
    ) -> Result<Array2<f64>, MetricError> {
        MetricError::check_finite("the constant", &[c])?;
        MetricError::check_not_empty("the image", x_pc.len())?;
        check_values("the image", x_pc, 1.0)?;
        let mut y_pc = self.raw(c, x_pc, draws)?;
        y_pc.mapv_inplace(|v| v.clamp(0.0, 1.0));
        Ok(y_pc)
    }

    /// Before the cut to 0..=1.
    fn raw(
        self,
        c: f64,
        x_pc: ArrayView2<'_, f64>,
        draws: &CorruptionDraws<'_>,
    ) -> Result<Array2<f64>, MetricError> {
        let clean = || Ok(x_pc.to_owned());
        match self {
            Self::GaussianNoise | Self::SpeckleNoise => {
                let Some(normal_pc) = draws.normal_pc else { return clean() };
                check_draw("noise", normal_pc, x_pc)?;
                let scale_pc =
                    if self == Self::GaussianNoise { x_pc.mapv(|_| c) } else { &x_pc * c };
                Ok(scale_pc * normal_pc + x_pc)
            }
            Self::ShotNoise => {
                let Some(count_pc) = draws.count_pc else { return clean() };
                check_counts(count_pc, x_pc)?;
                Ok(&count_pc / c)
            }
            Self::ImpulseNoise => draws
                .uniform_pc
                .map_or_else(clean, |uniform_pc| impulses(c, x_pc, uniform_pc, draws.salt_pc)),
            Self::Contrast => {
                let mean_c: Array1<f64> = x_pc.mean_axis(Axis(0)).expect("there are pixels");
                Ok((&x_pc - &mean_c) * c + mean_c)
            }
            Self::Brightness => {
                let mut y_pc = x_pc.to_owned();
                y_pc.outer_iter_mut().for_each(|pixel_c| brighten(pixel_c, c));
                Ok(y_pc)
            }
        }
    }
}

fn impulses(
    c: f64,
    x_pc: ArrayView2<'_, f64>,
    uniform_pc: ArrayView2<'_, f64>,
    salt_pc: Option<ArrayView2<'_, f64>>,
) -> Result<Array2<f64>, MetricError> {
    let salt_pc = salt_pc.ok_or(MetricError::Missing { what: "uniform2" })?;
    check_draw("uniform", uniform_pc, x_pc)?;
    check_values("uniform", uniform_pc, 1.0)?;
    check_draw("uniform2", salt_pc, x_pc)?;
    check_values("uniform2", salt_pc, 1.0)?;
    let salt = |salt: f64| if salt < 0.5 { 1.0 } else { 0.0 };
    let pixels = Zip::from(x_pc).and(uniform_pc).and(salt_pc);
    Ok(pixels.map_collect(|&x, &u, &s| if u < c { salt(s) } else { x }))
}

/// The value of HSV is the largest channel; hue and saturation are the ratios of the channels.
fn brighten(mut pixel_c: ArrayViewMut1<'_, f64>, c: f64) {
    let value = pixel_c.fold(0.0, |a: f64, &b| a.max(b));
    let brighter = (value + c).clamp(0.0, 1.0);
    if value == 0.0 {
        pixel_c.fill(brighter);
    } else {
        pixel_c.mapv_inplace(|v| v / value * brighter);
    }
}

fn check_values(
    what: &'static str,
    x_pc: ArrayView2<'_, f64>,
    max: f64,
) -> Result<(), MetricError> {
    MetricError::check_finite(what, x_pc)?;
    MetricError::check_range(what, x_pc, max)
}

fn check_draw(
    what: &'static str,
    draw_pc: ArrayView2<'_, f64>,
    x_pc: ArrayView2<'_, f64>,
) -> Result<(), MetricError> {
    MetricError::check_shape(what, draw_pc.shape(), x_pc.shape())?;
    MetricError::check_finite(what, draw_pc)
}

fn check_counts(
    count_pc: ArrayView2<'_, f64>,
    x_pc: ArrayView2<'_, f64>,
) -> Result<(), MetricError> {
    check_draw("counts", count_pc, x_pc)?;
    let whole = |count: &f64| *count >= 0.0 && count.fract() == 0.0;
    match count_pc.iter().enumerate().find(|(_, count)| !whole(count)) {
        Some((index, &value)) => Err(MetricError::Range { what: "counts", index, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn apply(
        corruption: Corruption,
        x_pc: &Array2<f64>,
        draws: CorruptionDraws<'_>,
    ) -> Array2<f64> {
        corruption.apply(5, x_pc.view(), &draws).unwrap()
    }

    #[track_caller]
    fn assert_near(got: &Array2<f64>, want: &Array2<f64>) {
        assert!((got - want).iter().all(|v| v.abs() < 1e-15), "{got} is not {want}");
    }

    #[test]
    fn noises_by_hand() {
        let (x_pc, normal_pc) = (array![[0.5, 0.1, 0.9]], array![[1.0, -1.0, 0.5]]);
        let draws = CorruptionDraws { normal_pc: Some(normal_pc.view()), ..Default::default() };
        // 0.5 + 0.38, 0.1 - 0.38 cut at 0, 0.9 + 0.19 cut at 1.
        assert_near(&apply(Corruption::GaussianNoise, &x_pc, draws), &array![[0.88, 0.0, 1.0]]);
        // 0.5 + 0.6 * 0.5, 0.1 - 0.06, 0.9 + 0.27 cut.
        assert_near(&apply(Corruption::SpeckleNoise, &x_pc, draws), &array![[0.8, 0.04, 1.0]]);
        let count_pc = array![[1.0, 0.0, 4.0]];
        let draws = CorruptionDraws { count_pc: Some(count_pc.view()), ..Default::default() };
        assert_near(&apply(Corruption::ShotNoise, &x_pc, draws), &array![[1.0 / 3.0, 0.0, 1.0]]);
        // Replaced below 0.27, by 1 below 0.5.
        let (uniform_pc, salt_pc) = (array![[0.26, 0.27, 0.0]], array![[0.49, 0.1, 0.5]]);
        let draws = CorruptionDraws {
            uniform_pc: Some(uniform_pc.view()),
            salt_pc: Some(salt_pc.view()),
            ..Default::default()
        };
        assert_near(&apply(Corruption::ImpulseNoise, &x_pc, draws), &array![[1.0, 0.1, 0.0]]);
    }

    #[test]
    fn contrast_and_brightness_by_hand() {
        let (x_pc, none) = (array![[0.2, 0.4, 0.1], [0.0, 0.0, 0.0]], CorruptionDraws::default());
        // Means 0.1, 0.2, 0.05; a twentieth of the distance is left.
        let want = array![[0.105, 0.21, 0.0525], [0.095, 0.19, 0.0475]];
        assert_near(&apply(Corruption::Contrast, &x_pc, none), &want);
        // 0.4 becomes 0.9, the others in proportion; black becomes grey.
        let want = array![[0.45, 0.9, 0.225], [0.5, 0.5, 0.5]];
        assert_near(&apply(Corruption::Brightness, &x_pc, none), &want);
    }

    #[test]
    fn no_draw_no_noise() {
        let x_pc = array![[0.2, 0.4, 0.1]];
        use Corruption::{GaussianNoise, ImpulseNoise, ShotNoise, SpeckleNoise};
        for noise in [GaussianNoise, SpeckleNoise, ShotNoise, ImpulseNoise] {
            assert_eq!(apply(noise, &x_pc, CorruptionDraws::default()), x_pc);
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let refused = |x_pc: Array2<f64>, severity, draws: CorruptionDraws<'_>| {
            Corruption::ShotNoise.apply(severity, x_pc.view(), &draws).unwrap_err().to_string()
        };
        let (grey, none) = (array![[0.5, 0.5, 0.5]], CorruptionDraws::default());
        assert_eq!(refused(grey.clone(), 6, none), "severity: 6 is not in 1..=5");
        assert!(refused(array![[0.5]], 1, none).contains("shape"));
        assert!(refused(array![[0.5, 1.5, 0.0]], 1, none).contains("range"));
        let half = array![[0.5, 0.0, 1.0]];
        let draws = CorruptionDraws { count_pc: Some(half.view()), ..none };
        assert!(refused(grey, 1, draws).contains("range"));
    }
}
