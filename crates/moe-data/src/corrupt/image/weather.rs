//! Snow, frost and fog.

use std::path::{Path, PathBuf};

use image::DynamicImage;
use image::imageops::FilterType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::blur::moved;
use super::constants::{SMALL, Snow};
use super::picture::{Border, Picture};
use crate::corrupt::draw::uniform;
use crate::error::DataError;
use crate::image::{ImageSize, below, open_picture, picture_files, planes};

/// Flakes that fall, the same turned upside down, and a whiter picture.
pub(super) fn snow(
    clean: &Picture,
    (mean, deviation, zoom, threshold, radius, sigma, weight): Snow,
    draw: &mut ChaCha8Rng,
) -> Picture {
    let ImageSize { height, width, .. } = clean.size;
    let mut flake = || -> f64 { StandardNormal.sample(draw) };
    let flakes = Picture::plane((height, width), |_, _| mean + deviation * flake()).zoomed(zoom);
    let kept = |v: f64| if v < threshold { 0.0 } else { v.min(1.0) };
    let flakes = Picture { values: flakes.values.into_iter().map(kept).collect(), ..flakes };
    let flakes = moved(&flakes, (radius, sigma), -135.0 + 90.0 * uniform(draw));
    let white = clean
        .with_layer(&clean.grey(), |v, grey| weight * v + (1.0 - weight) * v.max(1.5 * grey + 0.5));
    let turned =
        Picture { values: flakes.values.iter().rev().copied().collect(), ..flakes.clone() };
    white.with_layer(&flakes, |v, flake| v + flake).with_layer(&turned, |v, flake| v + flake)
}

/// A layer of fog, brought back to the picture's range.
pub(super) fn fog(clean: &Picture, (weight, decay): (f64, f64), draw: &mut ChaCha8Rng) -> Picture {
    let ImageSize { height, width, .. } = clean.size;
    let side = height.max(width).next_power_of_two();
    let plasma = plasma(side, decay, draw);
    let layer = Picture::plane((height, width), |y, x| plasma[y * side + x]);
    let top = clean.values.iter().fold(0.0, |a: f64, &b| a.max(b));
    clean.with_layer(&layer, |v, fog| (v + weight * fog) * top / (top + weight))
}

/// Plasma on a torus by the diamond-square algorithm, on `[0, 1]`; `side` is a power of two.
fn plasma(side: usize, decay: f64, draw: &mut ChaCha8Rng) -> Vec<f64> {
    let mut map = vec![0.0; side * side];
    let (mut step, mut wobble) = (side, 100.0);
    while step >= 2 {
        let half = step / 2;
        // Middles of squares first, then of their edges, which lean on them.
        for (dy, dx, corners) in [
            (half, half, [(0, 0), (0, step), (step, 0), (step, step)]),
            (0, half, [(0, 0), (0, step), (half, half), (side - half, half)]),
            (half, 0, [(0, 0), (step, 0), (half, half), (half, side - half)]),
        ] {
            for y in (0..side).step_by(step) {
                for x in (0..side).step_by(step) {
                    let at = |(dy, dx): (usize, usize)| (y + dy) % side * side + (x + dx) % side;
                    let sum: f64 = corners.iter().map(|&corner| map[at(corner)]).sum();
                    let noise = wobble * wobble * (2.0 * uniform(draw) - 1.0);
                    map[at((dy, dx))] = sum / 4.0 + noise;
                }
            }
        }
        (step, wobble) = (half, wobble / decay);
    }
    let low = map.iter().copied().fold(f64::INFINITY, f64::min);
    let high = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = if high > low { high - low } else { 1.0 };
    map.into_iter().map(|v| (v - low) / range).collect()
}

/// Photographs of frost, which lie over pictures.
#[derive(Clone, Debug)]
pub struct FrostPictures {
    directory: PathBuf,
    pictures: Vec<DynamicImage>,
}

impl FrostPictures {
    /// Every PNG and JPEG file of a directory, in the order of their names.
    ///
    /// # Errors
    ///
    /// [`DataError::Read`], [`DataError::Picture`], and [`DataError::ImageSet`] for a directory without one.
    pub fn open(directory: &Path) -> Result<Self, DataError> {
        let files = picture_files(directory)?;
        let pictures: Vec<_> =
            files.iter().map(|file| open_picture(file)).collect::<Result<_, _>>()?;
        if pictures.is_empty() {
            let problem = "expected PNG or JPEG pictures of frost".to_owned();
            return Err(DataError::ImageSet { place: directory.display().to_string(), problem });
        }
        Ok(Self { directory: directory.to_owned(), pictures })
    }

    /// A part of one of them over a picture. For small pictures they are reduced to a fifth first.
    pub(super) fn on(
        &self,
        clean: &Picture,
        (weight, frost_weight): (f64, f64),
        draw: &mut ChaCha8Rng,
    ) -> Result<Picture, DataError> {
        let ImageSize { channels, height, width } = clean.size;
        let photo = &self.pictures[below(draw.next_u64(), self.pictures.len())];
        let small = height.max(width) <= SMALL;
        let fifth = |length: u32| (length / 5).max(1);
        let photo = match small {
            true => photo.resize_exact(
                fifth(photo.width()),
                fifth(photo.height()),
                FilterType::Triangle,
            ),
            false => photo.clone(),
        };
        let (size, bytes) = planes(&photo);
        if size.height < height || size.width < width {
            let problem = format!(
                "a picture of {size} after reduction; expected at least {height} x {width}"
            );
            return Err(DataError::ImageSet {
                place: self.directory.display().to_string(),
                problem,
            });
        }
        let photo = Picture::new(&bytes, size);
        let photo = if channels == 1 { photo.grey() } else { photo };
        let [top, left] = [(size.height, height), (size.width, width)]
            .map(|(long, short)| below(draw.next_u64(), long - short + 1));
        let value = |v: f64, frost: f64| weight * v + frost_weight * frost;
        Ok(clean.map(|channel, y, x| {
            let frost =
                photo.at(channel, ((top + y) as isize, (left + x) as isize), Border::Nearest);
            value(clean.at(channel, (y as isize, x as isize), Border::Nearest), frost)
        }))
    }
}
