//! RandAugment: `ops` operations drawn from a list of 14, all at one magnitude.
//!
//! *RandAugment: Practical automated data augmentation with a reduced search space*, Cubuk, Zoph,
//! Shlens and Le 2020, arXiv 1909.13719. Ranges at magnitude 10 are those of the released code:
//! rotation 30 degrees, shear 0.3, posterize to 4 bits, enhancement by 0.9. Translation there is 100
//! pixels of 331, here the same share (0.3) of the side.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operations as color;
use super::set::ImageSize;
use super::warp::Warp;
use crate::order::below;

/// Settings of RandAugment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RandAugment {
    /// Operations one after the other.
    pub ops: usize,
    /// Strength of them all; 10 is the paper's full range, and more goes beyond it.
    pub magnitude: f64,
    /// Value of pixels that a geometric operation brings in from outside.
    pub fill: u8,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self { ops: 2, magnitude: 10.0, fill: 128 }
    }
}

/// One operation of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Identity,
    AutoContrast,
    Equalize,
    Posterize,
    Solarize,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    Rotate,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

impl Operation {
    pub(crate) const ALL: [Self; 14] = [
        Self::Identity,
        Self::AutoContrast,
        Self::Equalize,
        Self::Posterize,
        Self::Solarize,
        Self::Color,
        Self::Contrast,
        Self::Brightness,
        Self::Sharpness,
        Self::Rotate,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
    ];

    /// `[c, h, w] -> [c, h, w]`; `strength` is the magnitude over 10, with the sign of the draw.
    pub(crate) fn apply(
        self,
        pixels: Vec<u8>,
        size: ImageSize,
        strength: f64,
        fill: u8,
    ) -> Vec<u8> {
        let warp = |warp: Warp| warp.apply(&pixels, size, fill);
        match self {
            Self::Identity => pixels,
            Self::AutoContrast => color::auto_contrast(&pixels, size),
            Self::Equalize => color::equalize(&pixels, size),
            Self::Posterize => color::posterize(&pixels, strength.abs()),
            Self::Solarize => color::solarize(&pixels, strength.abs()),
            Self::Color => color::saturate(&pixels, size, 1.0 + 0.9 * strength),
            Self::Contrast => color::contrast(&pixels, size, 1.0 + 0.9 * strength),
            Self::Brightness => color::brightness(&pixels, 1.0 + 0.9 * strength),
            Self::Sharpness => color::sharpen(&pixels, size, 1.0 + 0.9 * strength),
            Self::Rotate => warp(Warp::rotation(30.0 * strength)),
            Self::ShearX => warp(Warp { xy: 0.3 * strength, ..Warp::IDENTITY }),
            Self::ShearY => warp(Warp { yx: 0.3 * strength, ..Warp::IDENTITY }),
            Self::TranslateX => {
                warp(Warp { x: 0.3 * strength * size.width as f64, ..Warp::IDENTITY })
            }
            Self::TranslateY => {
                warp(Warp { y: 0.3 * strength * size.height as f64, ..Warp::IDENTITY })
            }
        }
    }
}

impl RandAugment {
    /// Refuses values outside their range.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.ops > 14 {
            return Err(("randaugment.ops", format!("{} is above 14", self.ops)));
        }
        if !(0.0..=30.0).contains(&self.magnitude) {
            let reason = format!("{} is outside 0..=30", self.magnitude);
            return Err(("randaugment.magnitude", reason));
        }
        Ok(())
    }

    /// `[c, h, w] -> [c, h, w]` by operations and signs that `draws` says.
    pub(crate) fn apply(
        &self,
        pixels: Vec<u8>,
        size: ImageSize,
        draws: &mut ChaCha8Rng,
    ) -> Vec<u8> {
        (0..self.ops).fold(pixels, |pixels, _| {
            let operation = Operation::ALL[below(draws.next_u64(), Operation::ALL.len())];
            let sign = if draws.next_u64() >> 63 == 1 { -1.0 } else { 1.0 };
            operation.apply(pixels, size, sign * self.magnitude / 10.0, self.fill)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::draws;

    const SIZE: ImageSize = ImageSize { channels: 3, height: 36, width: 40 };

    fn picture() -> Vec<u8> {
        (0..SIZE.values()).map(|i| (i * 37 % 251) as u8).collect()
    }

    #[test]
    fn every_operation_keeps_the_size_and_does_something_at_full_strength_only() {
        for operation in Operation::ALL {
            for sign in [-1.0, 1.0] {
                let full = operation.apply(picture(), SIZE, sign, 128);
                assert_eq!(full.len(), SIZE.values(), "{operation:?}");
                let same = full == picture();
                assert_eq!(same, operation == Operation::Identity, "{operation:?} {sign}");
            }
            let stretches = [Operation::AutoContrast, Operation::Equalize].contains(&operation);
            let none = operation.apply(picture(), SIZE, 0.0, 128);
            assert_eq!(none == picture(), !stretches, "{operation:?}");
        }
    }

    #[test]
    fn draws_decide_and_nothing_else() {
        let randaugment = RandAugment::default();
        let of = |epoch| randaugment.apply(picture(), SIZE, &mut draws(1, epoch, 0));
        assert_eq!(of(3), of(3));
        assert!((0..20).any(|epoch| of(epoch) != of(3)));
        let none = RandAugment { ops: 0, ..randaugment };
        assert_eq!(none.apply(picture(), SIZE, &mut draws(1, 0, 0)), picture());
    }
}
