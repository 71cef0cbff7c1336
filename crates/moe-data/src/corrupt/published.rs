//! Readers of published sets of damaged, of hard and of unknown images: CIFAR-10-C, ImageNet-C, ImageNet-A,
//! ImageNet-R and ImageNet-O.

use std::path::Path;

use super::ImageCorruption;
use crate::error::DataError;
use crate::image::{
    CIFAR_SIZE, Form, ImageSet, ImageSize, Images, labelled_pictures, read_npy, unlabelled_pictures,
};
use crate::read::read_file;

/// Severities of a published set.
const SEVERITIES: usize = 5;

/// The images of a corruption and severity in the directory of a published set; `None` if they are not there.
///
/// - CIFAR-10-C: `<corruption>.npy` of `(n, 32, 32, 3)` bytes, severity after severity, with `labels.npy`;
/// - ImageNet-C: `<corruption>/<severity>/<class>/` of PNG and JPEG files, at most in one more folder
///   (`noise`, `blur`, `weather`, `digital`), whose classes are those of `like`.
///
/// # Errors
///
/// What the files are refused for, a class that `like` has not, or a severity outside 1..=5.
pub fn read(
    directory: &Path,
    like: &Images,
    (corruption, severity): (ImageCorruption, usize),
) -> Result<Option<ImageSet>, DataError> {
    if !(1..=SEVERITIES).contains(&severity) {
        let problem = format!("severity {severity} is outside 1..={SEVERITIES}");
        return Err(DataError::ImageSet { place: directory.display().to_string(), problem });
    }
    let array = directory.join(format!("{}.npy", corruption.name()));
    if array.is_file() {
        return read_array(&array, &directory.join("labels.npy"), severity).map(Some);
    }
    let groups = ["", "noise", "blur", "weather", "digital"];
    let folder =
        |group: &str| directory.join(group).join(corruption.name()).join(severity.to_string());
    let found = groups.into_iter().map(folder).find(|folder| folder.is_dir());
    found.map(|folder| read_folder(&folder, like)).transpose()
}

/// The images of a directory of classes, some of those of `like`: ImageNet-A, ImageNet-R, or one severity of
/// ImageNet-C. A label is an index into the classes of `like`. Squares are resized and cut to the size of
/// `like`, and colours become brightness where it has one channel.
///
/// # Errors
///
/// A folder that is no class of `like`, and pictures that cannot be decoded.
pub fn read_folder(directory: &Path, like: &Images) -> Result<ImageSet, DataError> {
    labelled_pictures(directory, like.classes(), Form::of(like.size()))
}

/// The images of a directory and its folders that show no class of `like`: ImageNet-O. All have the label 0,
/// which means nothing. They are made alike as in [`read_folder`].
///
/// # Errors
///
/// No picture there, and pictures that cannot be decoded.
pub fn read_unknown(directory: &Path, like: &Images) -> Result<ImageSet, DataError> {
    unlabelled_pictures(directory, Form::of(like.size()))
}

fn read_array(array: &Path, labels: &Path, severity: usize) -> Result<ImageSet, DataError> {
    let ImageSize { channels, height, width } = CIFAR_SIZE;
    let (place, labels_place) = (array.display().to_string(), labels.display().to_string());
    let (bytes, label_bytes) = (read_file(array)?, read_file(labels)?);
    let values = read_npy(&place, &bytes, &[&[height, width, channels]])?;
    let labels = read_npy(&labels_place, &label_bytes, &[&[]])?;
    let images = values.len() / CIFAR_SIZE.values();
    if labels.len() != images || !images.is_multiple_of(SEVERITIES) {
        let problem = format!(
            "{images} images and {} labels; expected as many of both, the same number for each of {SEVERITIES} \
             severities",
            labels.len()
        );
        return Err(DataError::ImageSet { place, problem });
    }
    let part = images / SEVERITIES;
    let range = (severity - 1) * part..severity * part;
    let area = height * width;
    let planes = |image: usize| {
        let pixels = &values[image * CIFAR_SIZE.values()..][..CIFAR_SIZE.values()];
        (0..channels).flat_map(move |c| (0..area).map(move |p| pixels[p * channels + c]))
    };
    let pixels = range.clone().flat_map(planes).collect();
    let labels = labels[range].iter().map(|&label| u32::from(label)).collect();
    ImageSet::new(place, pixels, labels, CIFAR_SIZE)
}
