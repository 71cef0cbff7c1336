//! The binary CIFAR files: records of one or two label bytes and 3 x 32 x 32 values.

use super::cursor::Cursor;
use super::set::{ImageSet, ImageSize};
use crate::error::DataError;

/// Size of every CIFAR image.
pub(crate) const SIZE: ImageSize = ImageSize { channels: 3, height: 32, width: 32 };

/// Which of the two sets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cifar {
    /// One label byte below 10.
    Ten,
    /// A coarse label byte, then the fine one below 100, which counts.
    Hundred,
}

impl Cifar {
    pub(crate) fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    fn label_bytes(self) -> usize {
        match self {
            Self::Ten => 1,
            Self::Hundred => 2,
        }
    }

    /// The images of one file.
    pub(crate) fn read(self, place: &str, bytes: &[u8]) -> Result<ImageSet, DataError> {
        let record = self.label_bytes() + SIZE.values();
        let mut cursor = Cursor::new(place, bytes);
        let (mut pixels, mut labels) = (Vec::with_capacity(bytes.len()), Vec::new());
        for index in 0..bytes.len().div_ceil(record) {
            let label = *cursor.take(self.label_bytes(), "label")?.last().expect("a label byte");
            if usize::from(label) >= self.classes() {
                let offset = index * record + self.label_bytes() - 1;
                let problem = format!("label {label} is outside 0..{}", self.classes());
                return Err(cursor.error_at(offset, problem));
            }
            labels.push(u32::from(label));
            pixels.extend(cursor.take(SIZE.values(), "pixels of an image")?);
        }
        ImageSet::new(place.to_owned(), pixels, labels, SIZE)
    }
}
