//! Batches of images: standardised pixels, and how much of each class a target holds.

use ndarray::{Array1, Array2, Array4};
use rayon::prelude::*;

use super::augment::Augment;
use super::{ImageSet, Images};
use crate::error::DataError;
use crate::order::{permutation, visits};
use crate::split::Split;

/// The most values of one batch (1 GiB of f32): beyond it a size is a mistake in a recipe.
const MAX_BATCH_VALUES: usize = 1 << 28;

/// Images and their targets.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// Pixels, less the training mean of their channel, over its deviation.
    pub x_bchw: Array4<f32>,
    /// Share of every class in the target; rows sum to one.
    pub target_bv: Array2<f32>,
    /// The class of every image, before mixing.
    pub label_b: Array1<i64>,
}

impl Images {
    /// The training batch of a step: images in the order of an endless row of epochs, each a
    /// permutation of the training split, augmented as `augment` says. With mixup every image is mixed
    /// with the one after it in that row.
    ///
    /// A function of the arguments and the training images, so that resuming needs no generator state.
    ///
    /// # Errors
    ///
    /// [`DataError::ImageBatch`] for a batch without an image, or of more values than will be held.
    pub fn train_batch(
        &self,
        (seed, step): (u64, u64),
        batch: usize,
        augment: &Augment,
    ) -> Result<ImageBatch, DataError> {
        self.check_batch(batch)?;
        let set = self.split(Split::Train);
        // A mixed image needs the one after it, so one more is looked at than is returned.
        let row = visits(seed, step.wrapping_mul(batch as u64), batch + 1, set.len());
        let pictures: Vec<Vec<f32>> = row
            .par_iter()
            .map(|&(epoch, index)| self.standardised(&augment.image(set, seed, epoch, index)))
            .collect();
        let share = |&(epoch, index): &(u64, usize)| augment.share(seed, epoch, index);
        let share_b: Vec<f32> = row[..batch].iter().map(share).collect();
        let class = |place: usize| set.labels()[row[place].1] as usize;
        let pixels = (0..batch).into_par_iter().flat_map_iter(|b| {
            let pair = pictures[b].iter().zip(&pictures[b + 1]);
            let share = share_b[b];
            pair.map(
                move |(one, next)| {
                    if share < 1.0 { share * one + (1.0 - share) * next } else { *one }
                },
            )
        });
        let mut target_bv = Array2::zeros((batch, self.classes().len()));
        for (b, &share) in share_b.iter().enumerate() {
            target_bv[[b, class(b)]] += share;
            target_bv[[b, class(b + 1)]] += 1.0 - share;
        }
        smooth(&mut target_bv, augment.label_smoothing as f32);
        Ok(ImageBatch {
            x_bchw: self.shaped(batch, pixels.collect()),
            target_bv,
            label_b: (0..batch).map(|b| class(b) as i64).collect(),
        })
    }

    /// The images of a split in their order, `batch` at a time; the last batch has those that are left.
    ///
    /// # Errors
    ///
    /// As [`Self::train_batch`].
    pub fn eval_batches(
        &self,
        split: Split,
        batch: usize,
    ) -> Result<impl ExactSizeIterator<Item = ImageBatch>, DataError> {
        self.check_batch(batch)?;
        let set = self.split(split);
        Ok((0..set.len().div_ceil(batch)).map(move |index| {
            let range = index * batch..set.len().min((index + 1) * batch);
            self.plain(set, &range.collect::<Vec<_>>())
        }))
    }

    /// These images of a split, in the order given, as they are.
    ///
    /// # Errors
    ///
    /// As [`Self::train_batch`].
    ///
    /// # Panics
    ///
    /// If there is no such image.
    pub fn images(&self, split: Split, places: &[usize]) -> Result<ImageBatch, DataError> {
        self.check_batch(places.len())?;
        Ok(self.plain(self.split(split), places))
    }

    /// Places of `per_class` training images of every class, those that come first in the order of `seed`;
    /// by class. `None` where a class has fewer.
    pub fn shots(&self, seed: u64, per_class: usize) -> Option<Vec<usize>> {
        let labels = self.split(Split::Train).labels();
        let order = permutation(seed, 0, labels.len());
        let of_class = |class: usize| {
            let of_class = order.iter().copied().filter(|&i| labels[i] as usize == class);
            let chosen: Vec<usize> = of_class.take(per_class).collect();
            (chosen.len() == per_class).then_some(chosen)
        };
        let chosen: Option<Vec<_>> = (0..self.classes().len()).map(of_class).collect();
        chosen.map(|chosen| chosen.concat())
    }

    /// Images as they are.
    fn plain(&self, set: &ImageSet, places: &[usize]) -> ImageBatch {
        let label = |&place: &usize| set.labels()[place];
        let mut target_bv = Array2::zeros((places.len(), self.classes().len()));
        for (b, place) in places.iter().enumerate() {
            target_bv[[b, label(place) as usize]] = 1.0;
        }
        let pixels = places.par_iter().flat_map_iter(|&i| self.standardised(set.pixels(i)));
        ImageBatch {
            x_bchw: self.shaped(places.len(), pixels.collect()),
            target_bv,
            label_b: places.iter().map(label).map(i64::from).collect(),
        }
    }

    fn standardised(&self, pixels: &[u8]) -> Vec<f32> {
        let area = self.size().height * self.size().width;
        let (mean_c, std_c) = self.moments();
        let planes = pixels.chunks_exact(area).zip(mean_c.iter().zip(std_c));
        planes
            .flat_map(|(plane, (&mean, &std))| {
                plane.iter().map(move |&value| (f32::from(value) / 255.0 - mean) / std)
            })
            .collect()
    }

    fn shaped(&self, batch: usize, values: Vec<f32>) -> Array4<f32> {
        let size = self.size();
        let shape = (batch, size.channels, size.height, size.width);
        Array4::from_shape_vec(shape, values).expect("as many values as the images have")
    }

    fn check_batch(&self, batch: usize) -> Result<(), DataError> {
        match batch.checked_mul(self.size().values()) {
            Some(1..=MAX_BATCH_VALUES) => Ok(()),
            _ => Err(DataError::ImageBatch { batch, size: self.size(), limit: MAX_BATCH_VALUES }),
        }
    }
}

/// Spreads a share of every target over all classes.
fn smooth(target_bv: &mut Array2<f32>, share: f32) {
    let even = share / target_bv.ncols() as f32;
    target_bv.mapv_inplace(|target| target * (1.0 - share) + even);
}
