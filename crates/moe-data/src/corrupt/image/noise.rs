//! Corruptions that treat every pixel alone: noise, brightness, contrast. The rules are
//! [`moe_core::metrics::Corruption`]'s.

use moe_core::metrics::{Corruption, CorruptionDraws};
use ndarray::{Array2, ArrayView2};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Poisson, StandardNormal};

use super::ImageCorruption;
use super::picture::Picture;
use crate::corrupt::draw::uniform;

pub(super) fn apply(
    corruption: ImageCorruption,
    clean: &Picture,
    constant: f64,
    draw: &mut ChaCha8Rng,
) -> Picture {
    let planes_cp = ArrayView2::from_shape((clean.size.channels, clean.area()), &clean.values);
    let x_pc = planes_cp.expect("planes of one size").reversed_axes();
    let shape = x_pc.dim();
    let (mut normal_pc, mut count_pc, mut uniform_pc) = (None, None, None);
    let rule = match corruption {
        ImageCorruption::GaussianNoise => {
            normal_pc = Some(Array2::from_shape_simple_fn(shape, || StandardNormal.sample(draw)));
            Corruption::GaussianNoise
        }
        ImageCorruption::ShotNoise => {
            count_pc = Some(x_pc.mapv(|x| photons(x * constant, draw)));
            Corruption::ShotNoise
        }
        ImageCorruption::ImpulseNoise => {
            let mut two = || Array2::from_shape_simple_fn(shape, || uniform(draw));
            uniform_pc = Some((two(), two()));
            Corruption::ImpulseNoise
        }
        ImageCorruption::Contrast => Corruption::Contrast,
        _ => Corruption::Brightness,
    };
    let draws = CorruptionDraws {
        normal_pc: normal_pc.as_ref().map(|draws| draws.view()),
        count_pc: count_pc.as_ref().map(|draws| draws.view()),
        uniform_pc: uniform_pc.as_ref().map(|(replaced, _)| replaced.view()),
        salt_pc: uniform_pc.as_ref().map(|(_, salt)| salt.view()),
    };
    let y_pc = rule.apply_with(constant, x_pc, &draws).expect("values in 0..=1 and their draws");
    Picture { values: y_pc.reversed_axes().iter().copied().collect(), size: clean.size }
}

/// A Poisson draw; darkness has no photons.
fn photons(mean: f64, draw: &mut ChaCha8Rng) -> f64 {
    Poisson::new(mean).map_or(0.0, |poisson| poisson.sample(draw))
}
