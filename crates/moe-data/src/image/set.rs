//! Images of one size and their labels, in memory as bytes.

use std::fmt;

use crate::error::DataError;
use crate::order::permutation;
use crate::split::hold_out;

/// Size of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSize {
    /// Colour channels: 1 is grey, 3 is RGB.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageSize {
    /// Grey images.
    pub(crate) fn grey(height: usize, width: usize) -> Self {
        Self { channels: 1, height, width }
    }

    /// Values of one image; saturates, so that an absurd size fits no file.
    pub fn values(self) -> usize {
        self.channels.saturating_mul(self.height).saturating_mul(self.width)
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} x {}", self.channels, self.height, self.width)
    }
}

/// Images of one size with a label each; at least one.
#[derive(Clone)]
pub struct ImageSet {
    /// Where they came from, for errors.
    place: String,
    /// `[n, c, h, w]`.
    pixels: Vec<u8>,
    labels: Vec<u32>,
    size: ImageSize,
}

impl fmt::Debug for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images {} from {}", self.len(), self.size, self.place)
    }
}

impl ImageSet {
    /// Images `[n, c, h, w]` and their `n` labels; `place` names them in errors.
    ///
    /// # Errors
    ///
    /// [`DataError::ImageSet`] if there is none, or if the numbers of values and labels do not fit.
    pub fn new(
        place: String,
        pixels: Vec<u8>,
        labels: Vec<u32>,
        size: ImageSize,
    ) -> Result<Self, DataError> {
        let wanted = labels.len().checked_mul(size.values());
        if labels.is_empty() || size.values() == 0 || wanted != Some(pixels.len()) {
            let (values, labels) = (pixels.len(), labels.len());
            let problem = format!(
                "{values} values and {labels} labels; expected at least one image of {size} values \
                 a label"
            );
            return Err(DataError::ImageSet { place, problem });
        }
        Ok(Self { place, pixels, labels, size })
    }

    /// Where the images came from.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never: a set has at least one image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Size of every image.
    pub fn size(&self) -> ImageSize {
        self.size
    }

    /// The values of an image, `[c, h, w]`.
    ///
    /// # Panics
    ///
    /// If there is no such image.
    pub fn pixels(&self, index: usize) -> &[u8] {
        let values = self.size.values();
        &self.pixels[index * values..][..values]
    }

    /// The label of every image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// One more than the largest label.
    pub(crate) fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |&label| label as usize + 1)
    }

    /// The images at these places.
    pub(crate) fn select(&self, places: &[usize]) -> Result<Self, DataError> {
        let pixels = places.iter().flat_map(|&i| self.pixels(i)).copied().collect();
        let labels = places.iter().map(|&i| self.labels[i]).collect();
        Self::new(self.place.clone(), pixels, labels, self.size)
    }

    /// The same images in an order that `seed` decides.
    ///
    /// # Errors
    ///
    /// None for a set that was read.
    pub fn shuffled(&self, seed: u64) -> Result<Self, DataError> {
        self.select(&permutation(seed, 0, self.len()))
    }

    /// Without every `nth` image of those sorted by label, and those alone: all classes lose the same
    /// share, in whatever order a set lists them.
    pub(crate) fn hold_out(&self, nth: usize) -> Result<(Self, Self), DataError> {
        let (kept, held) = hold_out(&self.labels, nth);
        Ok((self.select(&kept)?, self.select(&held)?))
    }

    /// Sets of the same size one after the other.
    pub(crate) fn concat(sets: Vec<Self>) -> Result<Self, DataError> {
        let mut sets = sets.into_iter();
        let Some(mut all) = sets.next() else {
            let problem = "no file of this split".to_owned();
            return Err(DataError::ImageSet { place: "images".to_owned(), problem });
        };
        for set in sets {
            set.check_size(&all)?;
            all.pixels.extend(set.pixels);
            all.labels.extend(set.labels);
        }
        Ok(all)
    }

    fn check_size(&self, other: &Self) -> Result<(), DataError> {
        if self.size == other.size {
            return Ok(());
        }
        let problem =
            format!("images of {}; expected {} as in {}", self.size, other.size, other.place);
        Err(DataError::ImageSet { place: self.place.clone(), problem })
    }

    /// Refuses images that are not like those of the training set.
    pub(crate) fn check_like(&self, train: &Self, classes: usize) -> Result<(), DataError> {
        self.check_size(train)?;
        match self.labels.iter().position(|&label| label as usize >= classes) {
            None => Ok(()),
            Some(index) => {
                let label = self.labels[index];
                let problem = format!("image {index} has label {label} of {classes} classes");
                Err(DataError::ImageSet { place: self.place.clone(), problem })
            }
        }
    }

    /// Mean and standard deviation of the values by channel, on `[0, 1]`; the deviation is 1 where all
    /// values are equal, so that it can be divided by.
    pub(crate) fn moments(&self) -> (Vec<f32>, Vec<f32>) {
        let area = self.size.height * self.size.width;
        let mut counts_c = vec![[0_u64; 256]; self.size.channels];
        for (plane, values) in self.pixels.chunks_exact(area).enumerate() {
            let counts = &mut counts_c[plane % self.size.channels];
            values.iter().for_each(|&value| counts[usize::from(value)] += 1);
        }
        counts_c.iter().map(moments_of).unzip()
    }
}

/// Mean and deviation of values that occur this often.
fn moments_of(counts: &[u64; 256]) -> (f32, f32) {
    let total = counts.iter().sum::<u64>() as f64;
    let mean_of = |power: i32| {
        let sum: f64 = (0..256).map(|v| counts[v] as f64 * (v as f64 / 255.0).powi(power)).sum();
        sum / total
    };
    let (mean, square) = (mean_of(1), mean_of(2));
    let variance = (square - mean * mean).max(0.0);
    let std = if variance < f64::from(f32::EPSILON) { 1.0 } else { variance.sqrt() };
    (mean as f32, std as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pixels: Vec<u8>, labels: Vec<u32>) -> Result<ImageSet, DataError> {
        let size = ImageSize { channels: 2, height: 1, width: 2 };
        ImageSet::new("here".into(), pixels, labels, size)
    }

    /// Channel 0 holds 0, 255, 255, 0: mean 1/2, deviation 1/2. Channel 1 holds 51 four times: mean
    /// 1/5, and no deviation, for which 1 stands.
    #[test]
    fn moments_by_hand() {
        let set = set(vec![0, 255, 51, 51, 255, 0, 51, 51], vec![0, 1]).unwrap();
        assert_eq!(set.moments(), (vec![0.5, 0.2], vec![0.5, 1.0]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (pixels, labels) in [(vec![0; 7], vec![0, 1]), (vec![], vec![])] {
            let error = set(pixels, labels).unwrap_err().to_string();
            assert!(error.starts_with("here: ") && error.contains("2 x 1 x 2"), "{error}");
        }
    }

    #[test]
    fn another_order_has_every_image_with_its_label() {
        let set = set((0..40).collect(), (0..10).collect()).unwrap();
        let other = set.shuffled(3).unwrap();
        assert_ne!(other.labels(), set.labels());
        assert_eq!(other.labels(), set.shuffled(3).unwrap().labels());
        for (place, &label) in other.labels().iter().enumerate() {
            assert_eq!(other.pixels(place), set.pixels(label as usize));
        }
        let mut labels = other.labels().to_vec();
        labels.sort_unstable();
        assert_eq!(labels, set.labels());
    }

    /// Labels by turns 0 and 1, every fifth held out: image 8 is the fifth of class 0, image 9 of class 1.
    #[test]
    fn the_same_share_of_every_class_is_held_out() {
        let set = set((0..40).collect(), [0, 1].repeat(5)).unwrap();
        let (kept, held) = set.hold_out(5).unwrap();
        assert_eq!(kept.labels(), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(held.labels(), [0, 1]);
        assert_eq!(held.pixels(1), [36, 37, 38, 39]);
    }
}
