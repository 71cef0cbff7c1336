//! Images as models that draw them want them: values on `[0, 1]`, a share of the training images, and the
//! error of who draws the mean.
//!
//! Axis letters: `c` channels, `h` height, `w` width.

use super::Images;
use crate::error::DataError;
use crate::split::Split;

impl Images {
    /// The same images whose batches are values on `[0, 1]`, not standardised.
    pub fn on_unit_interval(mut self) -> Self {
        self.mean_c.fill(0.0);
        self.std_c.fill(1.0);
        self
    }

    /// The same images with the first `share` of the training images of every class, rounded down but at
    /// least one; other splits stay whole.
    ///
    /// # Errors
    ///
    /// [`DataError::ImageSet`] for a share outside `0..=1`, or of nothing.
    pub fn with_train_share(mut self, share: f64) -> Result<Self, DataError> {
        if !(share > 0.0 && share <= 1.0) {
            let problem = format!("a share of {share} of the training images; expected 0..=1");
            return Err(DataError::ImageSet { place: self.name, problem });
        }
        let labels = self.splits.train.labels();
        let mut left_v = vec![0.0_f64; self.classes.len()];
        labels.iter().for_each(|&label| left_v[label as usize] += 1.0);
        left_v.iter_mut().for_each(|count| *count = (*count * share).floor().max(1.0));
        let mut take = |label: u32| {
            let left = &mut left_v[label as usize];
            *left -= 1.0;
            *left >= 0.0
        };
        let kept: Vec<usize> = (0..labels.len()).filter(|&index| take(labels[index])).collect();
        self.splits.train = self.splits.train.select(&kept)?;
        (self.mean_c, self.std_c) = self.splits.train.moments();
        Ok(self)
    }

    /// The mean training image, `[c, h, w]` on `[0, 1]`.
    pub fn mean_image(&self) -> Vec<f64> {
        let train = self.split(Split::Train);
        let mut sum = vec![0_u64; train.size().values()];
        for index in 0..train.len() {
            let pixels = train.pixels(index).iter();
            sum.iter_mut().zip(pixels).for_each(|(sum, &value)| *sum += u64::from(value));
        }
        sum.into_iter().map(|sum| sum as f64 / (255.0 * train.len() as f64)).collect()
    }

    /// Squared error over the values of an image, mean over the images of a split, of who draws the mean
    /// training image: a model that looks at the image has to be below it.
    pub fn mean_image_error(&self, split: Split) -> f64 {
        let (mean, set) = (self.mean_image(), self.split(split));
        let error = |index: usize| -> f64 {
            let off = |(&value, mean): (&u8, &f64)| (f64::from(value) / 255.0 - mean).powi(2);
            set.pixels(index).iter().zip(&mean).map(off).sum()
        };
        (0..set.len()).map(error).sum::<f64>() / set.len() as f64
    }
}
