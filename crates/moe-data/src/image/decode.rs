//! PNG and JPEG pictures as planes of bytes, with a bound on what a small file may swell to.

use std::io::Cursor;
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageReader, Limits};

use super::set::ImageSize;
use crate::error::DataError;
use crate::read::read_file;

/// Bytes of a picture that one byte of its file can stand for at most: deflate's limit is 1032.
const SWELL: u64 = 1100;

/// The most that one decoded picture may take (1 GiB).
const MAX_PICTURE_BYTES: u64 = 1 << 30;

/// Decodes a file; PNG or JPEG is told by its first bytes.
pub(crate) fn open(path: &Path) -> Result<DynamicImage, DataError> {
    decode(path, &read_file(path)?)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<DynamicImage, DataError> {
    let undecodable = |source| DataError::Picture { path: path.to_owned(), source };
    let mut limits = Limits::no_limits();
    // A floor for the decoders' own tables.
    limits.max_alloc = Some((bytes.len() as u64 * SWELL + (1 << 20)).min(MAX_PICTURE_BYTES));
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|error| undecodable(error.into()))?;
    reader.limits(limits);
    reader.decode().map_err(undecodable)
}

/// The colours as planes, `[3, h, w]`.
pub(crate) fn planes(picture: &DynamicImage) -> (ImageSize, Vec<u8>) {
    let rgb = picture.to_rgb8();
    let size =
        ImageSize { channels: 3, height: rgb.height() as usize, width: rgb.width() as usize };
    let plane = |channel: usize| rgb.as_raw().iter().skip(channel).step_by(3).copied();
    (size, (0..3).flat_map(plane).collect())
}

/// The brightness as one plane, `[1, h, w]`.
pub(crate) fn grey_plane(picture: &DynamicImage) -> (ImageSize, Vec<u8>) {
    let grey = picture.to_luma8();
    let size =
        ImageSize { channels: 1, height: grey.height() as usize, width: grey.width() as usize };
    (size, grey.into_raw())
}

/// The middle square of the picture at this side: the shorter side is resized to it, the rest cut.
pub(crate) fn square(picture: &DynamicImage, side: u32) -> DynamicImage {
    picture.resize_to_fill(side, side, FilterType::Triangle)
}
