//! Augmentations of training images: each a function of (seed, epoch, index) alone.
//!
//! Crop and flip as in He et al. 2016 (arXiv 1512.03385, section 4.2): the image is padded with zeros
//! and a window of its own size is cut at random. Mixup: Zhang et al. 2018, arXiv 1710.09412.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_distr::{Beta, Distribution};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::randaugment::RandAugment;
use super::set::{ImageSet, ImageSize};
use crate::order::{below, draws};

/// What happens to training images; by default nothing does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Pixels of padding on every side of which a window of the image's size is cut.
    pub crop: usize,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// RandAugment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub randaugment: Option<RandAugment>,
    /// `alpha` of mixup's Beta distribution; 0 does not mix.
    pub mixup: f64,
    /// Label smoothing: this share of a target is spread over all classes.
    pub label_smoothing: f64,
}

impl Augment {
    /// Refuses values outside their range.
    ///
    /// # Errors
    ///
    /// The key, and what is wrong with its value.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.crop > 1024 {
            return Err(("crop", format!("{} is above 1024 pixels", self.crop)));
        }
        if !(0.0..=1e3).contains(&self.mixup) {
            return Err(("mixup", format!("{} is outside 0..=1000", self.mixup)));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let reason = format!("{} is outside 0..1", self.label_smoothing);
            return Err(("label_smoothing", reason));
        }
        self.randaugment.as_ref().map_or(Ok(()), RandAugment::check)
    }

    /// Image `index` of `set` as epoch `epoch` sees it, `[c, h, w]`.
    pub fn image(&self, set: &ImageSet, seed: u64, epoch: u64, index: usize) -> Vec<u8> {
        let (size, mut draws) = (set.size(), draws(seed, epoch, index));
        let mut pixels = set.pixels(index).to_vec();
        if self.crop > 0 {
            let [down, right] = [0; 2].map(|_: u8| below(draws.next_u64(), 2 * self.crop + 1));
            pixels = cropped(&pixels, size, self.crop, (down, right));
        }
        if self.flip && draws.next_u64() >> 63 == 1 {
            pixels = flipped(&pixels, size.width);
        }
        match &self.randaugment {
            Some(randaugment) => randaugment.apply(pixels, size, &mut draws),
            None => pixels,
        }
    }

    /// Share of image `index` in its mixture with the next one, at least a half; 1 without mixup.
    pub fn share(&self, seed: u64, epoch: u64, index: usize) -> f32 {
        if self.mixup == 0.0 {
            return 1.0;
        }
        let beta = Beta::new(self.mixup, self.mixup).expect("a positive alpha");
        // Mixed apart from the draws of the image, whose number depends on what else is on.
        let mut draws: ChaCha8Rng = draws(!seed, epoch, index);
        let share: f64 = beta.sample(&mut draws);
        share.max(1.0 - share) as f32
    }
}

/// The window at `(down, right)` of the image padded with `by` zeros on every side.
fn cropped(pixels: &[u8], size: ImageSize, by: usize, (down, right): (usize, usize)) -> Vec<u8> {
    let ImageSize { height, width, .. } = size;
    let mut window = vec![0; pixels.len()];
    let planes = pixels.chunks_exact(height * width);
    for (from, to) in planes.zip(window.chunks_exact_mut(height * width)) {
        // In the padded image, row y of the window is row y + down, which is y + down - by here.
        for y in by.saturating_sub(down)..height.min((height + by).saturating_sub(down)) {
            let left = by.saturating_sub(right).min(width);
            let end = width.min((width + by).saturating_sub(right)).max(left);
            let source = (y + down - by) * width;
            to[y * width + left..y * width + end]
                .copy_from_slice(&from[source + left + right - by..][..end - left]);
        }
    }
    window
}

/// Mirrored left to right.
fn flipped(pixels: &[u8], width: usize) -> Vec<u8> {
    pixels.chunks_exact(width).flat_map(|row| row.iter().rev().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ImageSet {
        let size = ImageSize { channels: 2, height: 3, width: 3 };
        ImageSet::new("here".into(), (1..=36).collect(), vec![0, 1], size).unwrap()
    }

    /// Padding by 1 and a window at (0, 2): one row lower, one column to the left.
    #[test]
    fn crop_by_hand() {
        let size = ImageSize::grey(3, 3);
        let pixels: Vec<u8> = (1..=9).collect();
        assert_eq!(cropped(&pixels, size, 1, (0, 2)), [0, 0, 0, 2, 3, 0, 5, 6, 0]);
        assert_eq!(cropped(&pixels, size, 1, (1, 1)), pixels);
        assert_eq!(cropped(&pixels, size, 5, (0, 10)), [0; 9]);
    }

    #[test]
    fn every_window_of_a_crop_is_drawn_and_a_flip_half_the_time() {
        let set = set();
        let crop = Augment { crop: 1, ..Augment::default() };
        let mut windows: Vec<_> = (0..200).map(|epoch| crop.image(&set, 5, epoch, 0)).collect();
        windows.sort_unstable();
        windows.dedup();
        assert_eq!(windows.len(), 9);
        let flip = Augment { flip: true, ..Augment::default() };
        let flips = (0..400).filter(|&e| flip.image(&set, 5, e, 1) != set.pixels(1)).count();
        assert!((150..250).contains(&flips), "{flips}");
        let mirrored = flip.image(&set, 5, 0, 1) == flipped(set.pixels(1), 3);
        assert!(mirrored || flip.image(&set, 5, 0, 1) == set.pixels(1));
        assert_eq!(flipped(&[1, 2, 3, 4, 5, 6], 3), [3, 2, 1, 6, 5, 4]);
    }

    /// With alpha = 1 the share is uniform, and the larger part of it has mean 3/4.
    #[test]
    fn the_larger_part_of_a_uniform_share_is_three_quarters() {
        let mixup = Augment { mixup: 1.0, ..Augment::default() };
        let shares: Vec<f32> = (0..2000).map(|index| mixup.share(1, 0, index)).collect();
        assert!(shares.iter().all(|share| (0.5..=1.0).contains(share)));
        let mean = shares.iter().sum::<f32>() / 2000.0;
        assert!((mean - 0.75).abs() < 0.02, "{mean}");
        assert_eq!(Augment::default().share(1, 0, 3), 1.0);
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        let of = |augment: Augment| augment.check().unwrap_err().0;
        assert_eq!(of(Augment { crop: 2000, ..Augment::default() }), "crop");
        assert_eq!(of(Augment { mixup: f64::NAN, ..Augment::default() }), "mixup");
        assert_eq!(of(Augment { label_smoothing: 1.0, ..Augment::default() }), "label_smoothing");
        let wild = RandAugment { magnitude: 31.0, ..RandAugment::default() };
        let augment = Augment { randaugment: Some(wild), ..Augment::default() };
        assert_eq!(of(augment), "randaugment.magnitude");
    }
}
