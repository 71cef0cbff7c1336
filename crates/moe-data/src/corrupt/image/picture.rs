//! A picture as planes of numbers, and how to read between its pixels.

use crate::image::ImageSize;

/// Values on `[0, 1]`, `[c, h, w]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    pub(super) values: Vec<f64>,
    pub(super) size: ImageSize,
}

/// What lies beyond the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Border {
    /// The nearest pixel.
    Nearest,
    /// The picture in a mirror, the border pixel twice.
    Mirror,
    /// The picture in a mirror, the border pixel once.
    MirrorOnce,
}

impl Border {
    /// The place on a line of `length` pixels.
    pub(super) fn place(self, at: isize, length: usize) -> usize {
        let n = length as isize;
        match self {
            Self::Nearest => at.clamp(0, n - 1) as usize,
            Self::Mirror => {
                let at = at.rem_euclid(2 * n);
                at.min(2 * n - 1 - at) as usize
            }
            Self::MirrorOnce if n == 1 => 0,
            Self::MirrorOnce => {
                let at = at.rem_euclid(2 * n - 2);
                at.min(2 * n - 2 - at) as usize
            }
        }
    }
}

impl Picture {
    pub(super) fn new(pixels: &[u8], size: ImageSize) -> Self {
        Self { values: pixels.iter().map(|&v| f64::from(v) / 255.0).collect(), size }
    }

    /// One channel of a function of row and column.
    pub(super) fn plane(
        (height, width): (usize, usize),
        mut of: impl FnMut(usize, usize) -> f64,
    ) -> Self {
        let values = (0..height * width).map(|p| of(p / width, p % width)).collect();
        Self { values, size: ImageSize { channels: 1, height, width } }
    }

    /// As bytes; what is out of range is cut.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.values.iter().map(|v| (v.clamp(0.0, 1.0) * 255.0).round() as u8).collect()
    }

    pub(super) fn area(&self) -> usize {
        self.size.height * self.size.width
    }

    /// The value at a place that may be outside.
    pub(super) fn at(&self, channel: usize, (y, x): (isize, isize), border: Border) -> f64 {
        let ImageSize { height, width, .. } = self.size;
        self.values
            [channel * self.area() + border.place(y, height) * width + border.place(x, width)]
    }

    /// The value between four pixels, by distance.
    pub(super) fn between(&self, channel: usize, (y, x): (f64, f64), border: Border) -> f64 {
        let (top, left) = (y.floor(), x.floor());
        let (down, right) = (y - top, x - left);
        let (top, left) = (top as isize, left as isize);
        let row = |y| {
            let at = |x| self.at(channel, (y, x), border);
            at(left) * (1.0 - right) + at(left + 1) * right
        };
        row(top) * (1.0 - down) + row(top + 1) * down
    }

    /// Every pixel of every channel as a function of channel, row and column.
    pub(super) fn map(&self, of: impl Fn(usize, usize, usize) -> f64) -> Self {
        let (area, width) = (self.area(), self.size.width);
        let value = |i: usize| of(i / area, i % area / width, i % width);
        Self { values: (0..self.values.len()).map(value).collect(), size: self.size }
    }

    /// Two pictures of one size, value by value.
    pub(super) fn with(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| of(*a, *b)).collect();
        Self { values, size: self.size }
    }

    /// Every channel with the one of `layer`, value by value.
    pub(super) fn with_layer(&self, layer: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        let area = self.area();
        let values = self.values.iter().enumerate().map(|(i, v)| of(*v, layer.values[i % area]));
        Self { values: values.collect(), size: self.size }
    }

    /// Weighted neighbours of every pixel: row and column from it, and weight.
    pub(super) fn weighed(&self, taps: &[(isize, isize, f64)], border: Border) -> Self {
        self.map(|channel, y, x| {
            let tap = |&(dy, dx, weight): &(isize, isize, f64)| {
                weight * self.at(channel, (y as isize + dy, x as isize + dx), border)
            };
            taps.iter().map(tap).sum()
        })
    }

    /// Gaussian blur, cut off at `truncate` deviations.
    pub(super) fn gaussian(&self, sigma: f64, truncate: f64, border: Border) -> Self {
        let radius = (truncate * sigma + 0.5) as isize;
        if radius == 0 {
            return self.clone();
        }
        let weight = |d: isize| (-0.5 * (d as f64 / sigma).powi(2)).exp();
        let total: f64 = (-radius..=radius).map(weight).sum();
        let along = |step: fn(isize) -> (isize, isize)| -> Vec<(isize, isize, f64)> {
            let tap = |d| (step(d).0, step(d).1, weight(d) / total);
            (-radius..=radius).map(tap).collect()
        };
        self.weighed(&along(|d| (d, 0)), border).weighed(&along(|d| (0, d)), border)
    }

    /// The middle of the picture at `factor` times its size, cut to its size.
    pub(super) fn zoomed(&self, factor: f64) -> Self {
        let ImageSize { height, width, .. } = self.size;
        let axis = |length: usize| {
            let cut = (length as f64 / factor).ceil();
            let first = ((length as f64 - cut) / 2.0).floor();
            let grown = (cut * factor).round();
            let trim = ((grown - length as f64) / 2.0).floor();
            let scale = if grown > 1.0 { (cut - 1.0) / (grown - 1.0) } else { 0.0 };
            move |at: usize| first + (at as f64 + trim) * scale
        };
        let (down, right) = (axis(height), axis(width));
        self.map(|channel, y, x| self.between(channel, (down(y), right(x)), Border::Nearest))
    }

    /// The brightness as the eye sees it (ITU-R 601), one channel.
    pub(super) fn grey(&self) -> Self {
        let area = self.area();
        let weights: &[f64] = if self.size.channels == 3 { &[0.299, 0.587, 0.114] } else { &[1.0] };
        Self::plane((self.size.height, self.size.width), |y, x| {
            let value = |(c, weight): (usize, &f64)| {
                weight * self.values[c * area + y * self.size.width + x]
            };
            weights.iter().enumerate().map(value).sum()
        })
    }
}
