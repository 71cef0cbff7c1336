//! Affine maps of an image about its centre, nearest neighbour.

use super::set::ImageSize;

/// Where a pixel comes from: `(xx, xy; yx, yy)` times its place from the centre, and a shift in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Warp {
    pub(crate) xx: f64,
    pub(crate) xy: f64,
    pub(crate) yx: f64,
    pub(crate) yy: f64,
    pub(crate) x: f64,
    pub(crate) y: f64,
}

impl Warp {
    pub(crate) const IDENTITY: Self = Self { xx: 1.0, xy: 0.0, yx: 0.0, yy: 1.0, x: 0.0, y: 0.0 };

    /// A turn by this many degrees.
    pub(crate) fn rotation(degrees: f64) -> Self {
        let (sin, cos) = degrees.to_radians().sin_cos();
        Self { xx: cos, xy: -sin, yx: sin, yy: cos, ..Self::IDENTITY }
    }

    /// `[c, h, w] -> [c, h, w]`; what comes from outside is `fill`.
    pub(crate) fn apply(&self, pixels: &[u8], size: ImageSize, fill: u8) -> Vec<u8> {
        let area = size.height * size.width;
        let sources: Vec<Option<usize>> = (0..area).map(|place| self.source(place, size)).collect();
        let planes = pixels.chunks_exact(area);
        planes.flat_map(|plane| sources.iter().map(|s| s.map_or(fill, |s| plane[s]))).collect()
    }

    /// Where in its plane a pixel comes from.
    fn source(&self, place: usize, size: ImageSize) -> Option<usize> {
        let center = |length: usize| (length as f64 - 1.0) / 2.0;
        let (cx, cy) = (center(size.width), center(size.height));
        let (x, y) = ((place % size.width) as f64 - cx, (place / size.width) as f64 - cy);
        let from_x = (self.xx * x + self.xy * y + self.x + cx).round();
        let from_y = (self.yx * x + self.yy * y + self.y + cy).round();
        let inside =
            |at: f64, length: usize| (at >= 0.0 && at < length as f64).then_some(at as usize);
        Some(inside(from_y, size.height)? * size.width + inside(from_x, size.width)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: ImageSize = ImageSize { channels: 1, height: 3, width: 3 };
    const PICTURE: [u8; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

    #[test]
    fn by_hand() {
        let quarter = Warp::rotation(90.0).apply(&PICTURE, SIZE, 0);
        assert_eq!(quarter, [3, 6, 9, 2, 5, 8, 1, 4, 7]);
        let right = Warp { x: 1.0, ..Warp::IDENTITY }.apply(&PICTURE, SIZE, 0);
        assert_eq!(right, [2, 3, 0, 5, 6, 0, 8, 9, 0]);
        let sheared = Warp { xy: 1.0, ..Warp::IDENTITY }.apply(&PICTURE, SIZE, 0);
        assert_eq!(sheared, [0, 1, 2, 4, 5, 6, 8, 9, 0]);
        assert_eq!(Warp::IDENTITY.apply(&PICTURE, SIZE, 0), PICTURE);
    }
}
