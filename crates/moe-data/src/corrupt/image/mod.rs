//! The 15 corruptions of ImageNet-C in five severities (Hendrycks & Dietterich 2019, arXiv 1903.12261).
//!
//! Pictures with both sides up to 64 are corrupted with the constants of CIFAR-10-C (the authors' code for
//! CIFAR, read; `constants`), larger ones with those of ImageNet-C. An image is a function of (seed, index,
//! corruption, severity). Departures, all of which make the result differ slightly from the published files:
//! values are rounded to bytes and not cut off; glass blur exchanges pixels, where the code copies one over the
//! other; motion blur samples the nearest pixel; JPEG is this workspace's encoder. Grey pictures have one
//! channel.
//!
//! Letters: `c` channels, `h` height, `w` width, `p` pixels.

mod blur;
mod constants;
mod digital;
mod noise;
mod picture;
mod weather;

use rayon::prelude::*;

use super::draw::draws;
use crate::error::DataError;
use crate::image::ImageSet;
pub use weather::FrostPictures;

use picture::Picture;

/// A corruption of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCorruption {
    /// Normal noise on every value.
    GaussianNoise,
    /// Poisson noise, as of few photons.
    ShotNoise,
    /// Values lost to black or white.
    ImpulseNoise,
    /// A lens out of focus.
    DefocusBlur,
    /// Frosted glass: pixels exchanged with near ones between two blurs.
    GlassBlur,
    /// A moving camera.
    MotionBlur,
    /// A camera moving towards the scene.
    ZoomBlur,
    /// Falling snow.
    Snow,
    /// Frost on the lens, from pictures of frost.
    Frost,
    /// Fog, by the diamond-square algorithm.
    Fog,
    /// More light.
    Brightness,
    /// Less contrast.
    Contrast,
    /// Stretched and bent.
    Elastic,
    /// Fewer pixels.
    Pixelate,
    /// JPEG's artefacts.
    Jpeg,
}

impl ImageCorruption {
    /// All corruptions, in the order of the paper.
    pub const ALL: [Self; 15] = [
        Self::GaussianNoise,
        Self::ShotNoise,
        Self::ImpulseNoise,
        Self::DefocusBlur,
        Self::GlassBlur,
        Self::MotionBlur,
        Self::ZoomBlur,
        Self::Snow,
        Self::Frost,
        Self::Fog,
        Self::Brightness,
        Self::Contrast,
        Self::Elastic,
        Self::Pixelate,
        Self::Jpeg,
    ];

    /// The name that the published files have.
    pub fn name(self) -> &'static str {
        match self {
            Self::GaussianNoise => "gaussian_noise",
            Self::ShotNoise => "shot_noise",
            Self::ImpulseNoise => "impulse_noise",
            Self::DefocusBlur => "defocus_blur",
            Self::GlassBlur => "glass_blur",
            Self::MotionBlur => "motion_blur",
            Self::ZoomBlur => "zoom_blur",
            Self::Snow => "snow",
            Self::Frost => "frost",
            Self::Fog => "fog",
            Self::Brightness => "brightness",
            Self::Contrast => "contrast",
            Self::Elastic => "elastic_transform",
            Self::Pixelate => "pixelate",
            Self::Jpeg => "jpeg_compression",
        }
    }

    /// Whether it takes pictures that are not in the crate.
    pub fn needs_pictures(self) -> bool {
        self == Self::Frost
    }

    /// Corrupts every image of a set.
    ///
    /// # Errors
    ///
    /// [`DataError::ImageSet`] for a severity outside 1..=5, and for frost without pictures of it or with
    /// smaller ones than the images.
    pub fn apply(
        self,
        set: &ImageSet,
        severity: usize,
        seed: u64,
        frost: Option<&FrostPictures>,
    ) -> Result<ImageSet, DataError> {
        if !(1..=5).contains(&severity) {
            let problem = format!("{}: severity {severity} is outside 1..=5", self.name());
            return Err(DataError::ImageSet { place: set.place().to_owned(), problem });
        }
        let one = |index: usize| self.image(set, index, (severity, seed), frost);
        let pixels: Vec<Vec<u8>> =
            (0..set.len()).into_par_iter().map(one).collect::<Result<_, _>>()?;
        let place = format!("{} with {} {severity}", set.place(), self.name());
        ImageSet::new(place, pixels.concat(), set.labels().to_vec(), set.size())
    }

    fn image(
        self,
        set: &ImageSet,
        index: usize,
        (severity, seed): (usize, u64),
        frost: Option<&FrostPictures>,
    ) -> Result<Vec<u8>, DataError> {
        let clean = Picture::new(set.pixels(index), set.size());
        let of = format!("{}/{severity}", self.name());
        let (mut draw, at) = (draws(seed, &of, index as u64), severity - 1);
        let small = set.size().height.max(set.size().width) <= constants::SMALL;
        let draw = &mut draw;
        let damaged = match self {
            Self::GaussianNoise
            | Self::ShotNoise
            | Self::ImpulseNoise
            | Self::Brightness
            | Self::Contrast => noise::apply(self, &clean, constants::value(self, small)[at], draw),
            Self::DefocusBlur => blur::defocus(&clean, constants::defocus(small)[at]),
            Self::GlassBlur => blur::glass(&clean, constants::glass(small)[at], draw),
            Self::MotionBlur => blur::motion(&clean, constants::motion(small)[at], draw),
            Self::ZoomBlur => blur::zoom(&clean, constants::zoom(small)[at]),
            Self::Snow => weather::snow(&clean, constants::snow(small)[at], draw),
            Self::Fog => weather::fog(&clean, constants::fog(small)[at], draw),
            Self::Frost => {
                let problem = "frost: expected pictures of frost".to_owned();
                let none = || DataError::ImageSet { place: set.place().to_owned(), problem };
                frost.ok_or_else(none)?.on(&clean, constants::frost(small)[at], draw)?
            }
            Self::Elastic => {
                let side = set.size().height.min(set.size().width) as f64;
                digital::elastic(&clean, constants::elastic(small, side)[at], draw)
            }
            Self::Pixelate => digital::pixelate(&clean, constants::pixelate(small)[at]),
            Self::Jpeg => return digital::jpeg(&clean, constants::jpeg(small)[at]),
        };
        Ok(damaged.bytes())
    }
}

#[cfg(test)]
mod tests;
