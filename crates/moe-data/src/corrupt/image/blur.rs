//! Four blurs.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::picture::{Border, Picture};
use crate::corrupt::draw::uniform;
use crate::image::below;

/// Deviations at which a blur is cut off, as in scikit-image.
const TRUNCATE: f64 = 4.0;

/// The mean over a disk whose edge is smoothed.
pub(super) fn defocus(clean: &Picture, (radius, smooth): (f64, f64)) -> Picture {
    clean.weighed(&disk(radius, smooth), Border::MirrorOnce)
}

/// Weights of a disk: of radius up to 8 on 17 x 17 places, smoothed by 3 x 3, else by 5 x 5.
fn disk(radius: f64, smooth: f64) -> Vec<(isize, isize, f64)> {
    let (reach, taps) = if radius <= 8.0 { (8, 1) } else { (radius as isize, 2) };
    let side = (2 * reach + 1) as usize;
    let inside = |y: usize, x: usize| {
        let (y, x) = (y as isize - reach, x as isize - reach);
        f64::from(u8::from((y * y + x * x) as f64 <= radius * radius))
    };
    let hard = Picture::plane((side, side), inside);
    let total: f64 = hard.values.iter().sum();
    // Cut off so that so many places on each side count.
    let soft = hard.gaussian(smooth, f64::from(taps) / smooth, Border::MirrorOnce);
    let weight = |(place, value): (usize, &f64)| {
        let (y, x) = (place / side, place % side);
        (y as isize - reach, x as isize - reach, value / total)
    };
    let weights = soft.values.iter().enumerate().map(weight);
    weights.filter(|(_, _, weight)| *weight > 0.0).collect()
}

/// Pixels exchanged with near ones, between two blurs.
pub(super) fn glass(
    clean: &Picture,
    (sigma, shift, rounds): (f64, usize, usize),
    draw: &mut ChaCha8Rng,
) -> Picture {
    let mut picture = clean.gaussian(sigma, TRUNCATE, Border::Nearest);
    let (area, height, width) = (picture.area(), picture.size.height, picture.size.width);
    let mut near = |at: usize| at + below(draw.next_u64(), 2 * shift) - shift;
    for _ in 0..rounds {
        for y in (shift + 1..=height.saturating_sub(shift)).rev() {
            for x in (shift + 1..=width.saturating_sub(shift)).rev() {
                let (other_y, other_x) = (near(y), near(x));
                // The published loop begins one line beyond the last for a shift of 0; here it stays inside.
                let [here, there] = [(y, x), (other_y, other_x)]
                    .map(|(y, x)| y.min(height - 1) * width + x.min(width - 1));
                for plane in picture.values.chunks_exact_mut(area) {
                    plane.swap(here, there);
                }
            }
        }
    }
    picture.gaussian(sigma, TRUNCATE, Border::Nearest)
}

/// A one-sided Gaussian along a line at -45 to 45 degrees.
pub(super) fn motion(clean: &Picture, how: (usize, f64), draw: &mut ChaCha8Rng) -> Picture {
    moved(clean, how, -45.0 + 90.0 * uniform(draw))
}

/// A one-sided Gaussian along a line at this angle, as ImageMagick's motion blur, over `2 radius + 1` pixels.
pub(super) fn moved(clean: &Picture, (radius, sigma): (usize, f64), degrees: f64) -> Picture {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let weight = |i: usize| (-0.5 * (i as f64 / sigma).powi(2)).exp();
    let total: f64 = (0..=2 * radius).map(weight).sum();
    let tap = |i: usize| {
        let along = |part: f64| -(i as f64 * part - 0.5).ceil() as isize;
        (along(sin), along(cos), weight(i) / total)
    };
    clean.weighed(&(0..=2 * radius).map(tap).collect::<Vec<_>>(), Border::Nearest)
}

/// The mean of the picture and its zooms.
pub(super) fn zoom(clean: &Picture, (zooms, step): (usize, f64)) -> Picture {
    let add = |sum: Picture, i: usize| sum.with(&clean.zoomed(1.0 + i as f64 * step), |a, b| a + b);
    let sum = (0..zooms).fold(clean.clone(), add);
    let parts = (zooms + 1) as f64;
    sum.map(|channel, y, x| sum.at(channel, (y as isize, x as isize), Border::Nearest) / parts)
}
