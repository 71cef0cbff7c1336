//! IDX, the format of MNIST and Fashion-MNIST: two zero bytes, the kind of value (8: unsigned byte),
//! the number of axes, their lengths as big-endian u32, and the values.

use super::cursor::Cursor;
use super::set::{ImageSet, ImageSize};
use crate::error::DataError;

/// A file of images and its file of labels, decompressed; each with its name for errors.
pub(crate) fn read(
    (images_place, images): (&str, &[u8]),
    (labels_place, labels): (&str, &[u8]),
) -> Result<ImageSet, DataError> {
    let ([n, height, width], pixels) = array::<3>(images_place, images, "images")?;
    let ([labelled], labels) = array::<1>(labels_place, labels, "labels")?;
    if n != labelled {
        let problem =
            format!("{labelled} labels; expected {n}, as many as images in {images_place}");
        return Err(DataError::ImageSet { place: labels_place.to_owned(), problem });
    }
    let labels = labels.iter().copied().map(u32::from).collect();
    let size = ImageSize::grey(height, width);
    ImageSet::new(images_place.to_owned(), pixels.to_vec(), labels, size)
}

/// The lengths of the axes and the values.
fn array<'a, const AXES: usize>(
    place: &'a str,
    bytes: &'a [u8],
    what: &str,
) -> Result<([usize; AXES], &'a [u8]), DataError> {
    let mut cursor = Cursor::new(place, bytes);
    let magic: [u8; 4] = cursor.array("IDX header")?;
    let wanted = [0, 0, 8, AXES as u8];
    if magic != wanted {
        let problem = format!("expected {wanted:?}, an IDX file of {what}, found {magic:?}");
        return Err(cursor.error_at(0, problem));
    }
    let mut lengths = [0; AXES];
    for length in &mut lengths {
        *length = u32::from_be_bytes(cursor.array("axis lengths")?) as usize;
    }
    let count = lengths.iter().fold(1_usize, |product, &length| product.saturating_mul(length));
    let values = cursor.take(count, what)?;
    cursor.end(what)?;
    Ok((lengths, values))
}
