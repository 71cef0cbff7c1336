//! The constants of the five severities: of CIFAR-10-C for small pictures, of ImageNet-C for others.
//!
//! Those of CIFAR-10-C are the authors' `make_cifar_c.py`; those of ImageNet-C are this workspace's
//! specification of `make_imagenet_c.py`, but elastic, which is from memory and not compared.

use super::ImageCorruption;

/// The longest side of a small picture.
pub(super) const SMALL: usize = 64;

fn pick<T>(small: bool, of_small: T, of_large: T) -> T {
    if small { of_small } else { of_large }
}

/// Of the corruptions with one constant, which treat every pixel alone.
pub(super) fn value(corruption: ImageCorruption, small: bool) -> [f64; 5] {
    use ImageCorruption as C;
    match corruption {
        C::GaussianNoise => {
            pick(small, [0.04, 0.06, 0.08, 0.09, 0.1], [0.08, 0.12, 0.18, 0.26, 0.38])
        }
        C::ShotNoise => {
            pick(small, [500.0, 250.0, 100.0, 75.0, 50.0], [60.0, 25.0, 12.0, 5.0, 3.0])
        }
        C::ImpulseNoise => {
            pick(small, [0.01, 0.02, 0.03, 0.05, 0.07], [0.03, 0.06, 0.09, 0.17, 0.27])
        }
        C::Brightness => pick(small, [0.05, 0.1, 0.15, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]),
        C::Contrast => pick(small, [0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.3, 0.2, 0.1, 0.05]),
        other => unreachable!("{other:?} has other constants"),
    }
}

/// Radius of the disk, and deviation of the blur that smooths its edge.
pub(super) fn defocus(small: bool) -> [(f64, f64); 5] {
    pick(
        small,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)],
        [(3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)],
    )
}

/// Deviation of the blurs, largest shift, rounds.
pub(super) fn glass(small: bool) -> [(f64, usize, usize); 5] {
    pick(
        small,
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    )
}

/// Radius and deviation.
pub(super) fn motion(small: bool) -> [(usize, f64); 5] {
    pick(
        small,
        [(6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)],
        [(10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)],
    )
}

/// Number of zooms from 1 on, and the distance between them; the published end is excluded.
pub(super) fn zoom(small: bool) -> [(usize, f64); 5] {
    pick(
        small,
        [(6, 0.01), (11, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)],
        [(11, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)],
    )
}

/// Mean and deviation of the flakes, zoom, threshold, radius and deviation of their fall, weight of the image.
pub(super) type Snow = (f64, f64, f64, f64, usize, f64, f64);

pub(super) fn snow(small: bool) -> [Snow; 5] {
    pick(
        small,
        [
            (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
        ],
        [
            (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
            (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
            (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
        ],
    )
}

/// Weight of the image and of the frost.
pub(super) fn frost(small: bool) -> [(f64, f64); 5] {
    pick(
        small,
        [(1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        [(1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    )
}

/// Weight of the fog, and how fast its detail decays.
pub(super) fn fog(small: bool) -> [(f64, f64); 5] {
    pick(
        small,
        [(0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)],
        [(1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)],
    )
}

/// Length and smoothness of the bending, and largest shift of the corners, in pixels of a side of `side`.
pub(super) fn elastic(small: bool, side: f64) -> [(f64, f64, f64); 5] {
    let shares = pick(
        small,
        [
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ],
        [
            (2.0, 0.7, 0.1),
            (2.0, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ],
    );
    shares.map(|(length, smooth, shift)| (length * side, smooth * side, shift * side))
}

/// Share of a side's pixels that are left.
pub(super) fn pixelate(small: bool) -> [f64; 5] {
    pick(small, [0.95, 0.9, 0.85, 0.75, 0.65], [0.6, 0.5, 0.4, 0.3, 0.25])
}

/// Quality.
pub(super) fn jpeg(small: bool) -> [u8; 5] {
    pick(small, [80, 65, 58, 50, 40], [25, 18, 15, 10, 7])
}
