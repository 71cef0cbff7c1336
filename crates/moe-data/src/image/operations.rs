//! Operations on colours, as in PIL, which the published augmentations are defined by.
//!
//! Pixels are planes, `[c, h, w]`.

use super::set::ImageSize;

/// The nearest byte.
fn byte(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

/// `by` parts of the picture and `1 - by` of a degenerate one; beyond 1 it goes on in that direction.
fn blend(pixels: &[u8], degenerate: impl Iterator<Item = f64>, by: f64) -> Vec<u8> {
    let mixed = pixels.iter().zip(degenerate);
    mixed.map(|(&pixel, other)| byte(other + by * (f64::from(pixel) - other))).collect()
}

/// Every plane through a table of its own.
fn by_plane(pixels: &[u8], size: ImageSize, table: impl Fn(&[u8]) -> [u8; 256]) -> Vec<u8> {
    let planes = pixels.chunks_exact(size.height * size.width);
    planes
        .flat_map(|plane| {
            let table = table(plane);
            plane.iter().map(move |&value| table[usize::from(value)])
        })
        .collect()
}

fn table(of: impl Fn(usize) -> u8) -> [u8; 256] {
    std::array::from_fn(of)
}

/// The values of each plane stretched to 0..=255.
pub(crate) fn auto_contrast(pixels: &[u8], size: ImageSize) -> Vec<u8> {
    by_plane(pixels, size, |plane| {
        let low = f64::from(*plane.iter().min().expect("a pixel"));
        let high = f64::from(*plane.iter().max().expect("a pixel"));
        if high <= low {
            return table(|value| value as u8);
        }
        table(|value| byte((value as f64 - low) * 255.0 / (high - low)))
    })
}

/// Each plane with an even histogram, by PIL's integer rule.
pub(crate) fn equalize(pixels: &[u8], size: ImageSize) -> Vec<u8> {
    by_plane(pixels, size, |plane| {
        let mut counts = [0_usize; 256];
        plane.iter().for_each(|&value| counts[usize::from(value)] += 1);
        let last = counts.iter().rev().find(|&&count| count > 0).copied().unwrap_or_default();
        let step = (plane.len() - last) / 255;
        if step == 0 {
            return table(|value| value as u8);
        }
        let mut below = step / 2;
        let mut equal = [0; 256];
        for (to, count) in equal.iter_mut().zip(counts) {
            *to = (below / step).min(255) as u8;
            below += count;
        }
        equal
    })
}

/// Only the highest bits: 4 of 8 at strength 1.
pub(crate) fn posterize(pixels: &[u8], strength: f64) -> Vec<u8> {
    let dropped = ((4.0 * strength) as u32).min(8);
    let mask = 0xFF_u32.checked_shl(dropped).unwrap_or(0) as u8;
    pixels.iter().map(|value| value & mask).collect()
}

/// Values inverted from a threshold on, which is 0 at strength 1.
pub(crate) fn solarize(pixels: &[u8], strength: f64) -> Vec<u8> {
    let threshold = 256.0 - 256.0 * strength.min(1.0);
    let one = |&value: &u8| if f64::from(value) >= threshold { 255 - value } else { value };
    pixels.iter().map(one).collect()
}

/// The grey of every pixel: ITU-R 601 weights for RGB, the mean for other numbers of channels.
fn grey(pixels: &[u8], size: ImageSize) -> Vec<f64> {
    let area = size.height * size.width;
    let weight = |channel: usize| match size.channels {
        3 => [0.299, 0.587, 0.114][channel],
        channels => 1.0 / channels as f64,
    };
    let at = |place: usize| {
        (0..size.channels).map(|c| weight(c) * f64::from(pixels[c * area + place])).sum()
    };
    (0..area).map(at).collect()
}

/// Saturation: away from grey, or towards it.
pub(crate) fn saturate(pixels: &[u8], size: ImageSize, by: f64) -> Vec<u8> {
    let grey = grey(pixels, size);
    if size.channels == 1 {
        // A grey picture has no colour; its levels are moved instead, so that the draw is not lost.
        return brightness(pixels, by);
    }
    blend(pixels, grey.iter().copied().cycle(), by)
}

/// Away from the mean grey, or towards it.
pub(crate) fn contrast(pixels: &[u8], size: ImageSize, by: f64) -> Vec<u8> {
    let grey = grey(pixels, size);
    let mean = (grey.iter().sum::<f64>() / grey.len() as f64).round();
    blend(pixels, std::iter::repeat(mean), by)
}

/// Away from black, or towards it.
pub(crate) fn brightness(pixels: &[u8], by: f64) -> Vec<u8> {
    blend(pixels, std::iter::repeat(0.0), by)
}

/// Away from the smoothed picture, or towards it. The smoothing weighs a pixel 5 and its eight
/// neighbours 1; the border stays.
pub(crate) fn sharpen(pixels: &[u8], size: ImageSize, by: f64) -> Vec<u8> {
    let ImageSize { height, width, .. } = size;
    let smooth = |place: usize| {
        let (x, y) = (place % width, place / width % height);
        let plane = &pixels[place / (height * width) * (height * width)..];
        if x == 0 || y == 0 || x + 1 == width || y + 1 == height {
            return f64::from(pixels[place]);
        }
        let around = (y - 1..=y + 1).flat_map(|y| (x - 1..=x + 1).map(move |x| y * width + x));
        let sum: f64 = around.map(|at| f64::from(plane[at])).sum();
        ((sum + 4.0 * f64::from(pixels[place])) / 13.0).round()
    };
    blend(pixels, (0..pixels.len()).map(smooth), by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(width: usize) -> ImageSize {
        ImageSize::grey(1, width)
    }

    #[test]
    fn levels_by_hand() {
        assert_eq!(auto_contrast(&[50, 100, 150], row(3)), [0, 128, 255]);
        assert_eq!(auto_contrast(&[7, 7], row(2)), [7, 7]);
        assert_eq!(posterize(&[0xFF, 0x1F], 1.0), [0xF0, 0x10]);
        assert_eq!(posterize(&[0xFF], 3.0), [0]);
        assert_eq!(solarize(&[10, 128, 255], 0.5), [10, 127, 0]);
        assert_eq!(brightness(&[10, 100, 200], 1.5), [15, 150, 255]);
        // The mean of 10 and 90 is 50; twice as far from it.
        assert_eq!(contrast(&[10, 90], row(2), 2.0), [0, 130]);
    }

    /// 510 pixels, 255 of value 10 and 255 of value 20: the step is (510 - 255) / 255 = 1, so a value
    /// becomes the number of pixels below it.
    #[test]
    fn equalize_by_hand() {
        let pixels = [[10; 255], [20; 255]].concat();
        let equal = equalize(&pixels, row(510));
        assert_eq!((equal[0], equal[509]), (0, 255));
    }

    /// A dot of 130 in black is smoothed to 130 * 5 / 13 = 50 and spreads 10 to its neighbours; what
    /// touches the border stays.
    #[test]
    fn sharpness_by_hand() {
        let size = ImageSize::grey(4, 4);
        let mut pixels = [0; 16];
        pixels[5] = 130;
        let smooth = sharpen(&pixels, size, 0.0);
        assert_eq!((smooth[5], smooth[6], smooth[10], smooth[0]), (50, 10, 10, 0));
        assert_eq!(sharpen(&pixels, size, 2.0)[5], 210);
    }

    /// Pure red has grey 76; without saturation every channel is that.
    #[test]
    fn saturation_by_hand() {
        let size = ImageSize { channels: 3, height: 1, width: 1 };
        assert_eq!(saturate(&[255, 0, 0], size, 0.0), [76, 76, 76]);
        assert_eq!(saturate(&[255, 0, 0], size, 1.0), [255, 0, 0]);
    }
}
