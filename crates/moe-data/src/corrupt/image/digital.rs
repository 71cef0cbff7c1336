//! Bent, pixelated and compressed pictures.

use std::io::Cursor;
use std::path::PathBuf;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat};
use rand_chacha::ChaCha8Rng;

use super::picture::{Border, Picture};
use crate::corrupt::draw::uniform;
use crate::error::DataError;
use crate::image::ImageSize;

/// A point, row and column.
type Point = (f64, f64);

/// Three points of the picture are moved, which stretches it, then every pixel by a smooth field.
pub(super) fn elastic(
    clean: &Picture,
    (length, smooth, shift): (f64, f64, f64),
    draw: &mut ChaCha8Rng,
) -> Picture {
    let ImageSize { height, width, .. } = clean.size;
    let (cy, cx) = ((height / 2) as f64, (width / 2) as f64);
    let reach = (height.min(width) / 3) as f64;
    let from = [(cy + reach, cx + reach), (cy - reach, cx + reach), (cy - reach, cx - reach)];
    let mut jitter = |by: f64| by * (2.0 * uniform(draw) - 1.0);
    let to = from.map(|(y, x)| (y + jitter(shift), x + jitter(shift)));
    let stretched = clean.map(|channel, y, x| {
        clean.between(channel, source((y as f64, x as f64), (&from, &to)), Border::MirrorOnce)
    });
    let mut field = || {
        let rough = Picture::plane((height, width), |_, _| jitter(1.0));
        rough.gaussian(smooth, 3.0, Border::Mirror)
    };
    let (down, right) = (field(), field());
    stretched.map(|channel, y, x| {
        let place = (y as isize, x as isize);
        let offset = |field: &Picture| length * field.at(0, place, Border::Mirror);
        let point = (y as f64 + offset(&down), x as f64 + offset(&right));
        stretched.between(channel, point, Border::Mirror)
    })
}

/// Where `at` was before three points went from `from` to `to`, by its place relative to them.
fn source((y, x): Point, (from, to): (&[Point; 3], &[Point; 3])) -> Point {
    let [(ay, ax), (by, bx), (cy, cx)] = *to;
    let whole = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
    // Points moved onto one line stretch nothing.
    if whole.abs() < f64::EPSILON {
        return (y, x);
    }
    let a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / whole;
    let b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / whole;
    let weights = [a, b, 1.0 - a - b];
    let sum = |of: fn(&Point) -> f64| {
        from.iter().zip(weights).map(|(point, weight)| weight * of(point)).sum()
    };
    (sum(|point| point.0), sum(|point| point.1))
}

/// Fewer pixels, each the mean of a box, and back.
pub(super) fn pixelate(clean: &Picture, share: f64) -> Picture {
    let ImageSize { height, width, .. } = clean.size;
    let fewer = |length: usize| ((length as f64 * share) as usize).max(1);
    boxes(&boxes(clean, (fewer(height), fewer(width))), (height, width))
}

/// The picture at another size: every pixel is the mean of those in its box.
fn boxes(picture: &Picture, (height, width): (usize, usize)) -> Picture {
    let (old, area) = (picture.size, picture.area());
    let range = |at: usize, from: usize, to: usize| {
        let scale = from as f64 / to as f64;
        let (middle, reach) = ((at as f64 + 0.5) * scale, 0.5 * scale.max(1.0));
        let first = ((middle - reach + 0.5) as usize).min(from - 1);
        first..((middle + reach + 0.5) as usize).clamp(first + 1, from)
    };
    let value = |i: usize| {
        let (channel, y, x) = (i / (height * width), i % (height * width) / width, i % width);
        let (rows, columns) = (range(y, old.height, height), range(x, old.width, width));
        let count = (rows.len() * columns.len()) as f64;
        let plane = &picture.values[channel * area..][..area];
        let sum: f64 =
            rows.flat_map(|y| columns.clone().map(move |x| plane[y * old.width + x])).sum();
        sum / count
    };
    let values = (0..old.channels * height * width).map(value).collect();
    Picture { values, size: ImageSize { channels: old.channels, height, width } }
}

/// Through JPEG and back.
pub(super) fn jpeg(clean: &Picture, quality: u8) -> Result<Vec<u8>, DataError> {
    let ImageSize { channels, height, width } = clean.size;
    let (bytes, area) = (clean.bytes(), clean.area());
    let pixels: Vec<u8> = (0..area)
        .flat_map(|p| (0..channels).map(move |c| (p, c)))
        .map(|(p, c)| bytes[c * area + p])
        .collect();
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let failed =
        |source| DataError::Picture { path: PathBuf::from("an image through JPEG"), source };
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality)
        .encode(&pixels, width as u32, height as u32, colour)
        .map_err(failed)?;
    let mut reader = image::ImageReader::new(Cursor::new(file));
    reader.set_format(ImageFormat::Jpeg);
    let back = reader.decode().map_err(failed)?;
    let back = if channels == 1 { back.to_luma8().into_raw() } else { back.to_rgb8().into_raw() };
    Ok((0..channels).flat_map(|c| back.iter().skip(c).step_by(channels).copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_by_hand() {
        let four = Picture::plane((1, 4), |_, x| x as f64);
        assert_eq!(boxes(&four, (1, 2)).values, [0.5, 2.5]);
        assert_eq!(boxes(&boxes(&four, (1, 2)), (1, 4)).values, [0.5, 0.5, 2.5, 2.5]);
        assert_eq!(boxes(&four, (1, 4)), four);
    }

    /// All three points one row down: what is at row 3 was at row 2.
    #[test]
    fn three_points_move_the_rest() {
        let from = [(2.0, 2.0), (0.0, 2.0), (0.0, 0.0)];
        let down = from.map(|(y, x)| (y + 1.0, x));
        assert_eq!(source((3.0, 1.0), (&from, &down)), (2.0, 1.0));
        // Twice as far from the last point.
        let wide = from.map(|(y, x)| (2.0 * y, 2.0 * x));
        assert_eq!(source((2.0, 3.0), (&from, &wide)), (1.0, 1.5));
    }
}
