//! Which published layout a directory is in, and how its files become splits.

use std::fs;
use std::path::{Path, PathBuf};

use super::cifar::Cifar;
use super::set::{ImageSet, ImageSize};
use super::{Parts, folder, idx, npy, numbered, png_rows};
use crate::error::DataError;
use crate::read::read_file;

/// Of each class of bitmaps, one in this many is for the test, at the end of its file.
const TEST_SHARE: usize = 6;

/// What stands before the class in the names under which Google's bitmaps arrive.
const PUBLISHED: &str = "full_numpy_bitmap_";

/// The set in a directory.
pub(crate) fn read_directory(directory: &Path, side: Option<u32>) -> Result<Parts, DataError> {
    let has = |name: &str| find(directory, name).is_some();
    if has("train-images-idx3-ubyte") {
        read_idx(directory)
    } else if has("data_batch_1.bin") {
        let names: Vec<String> = (1..=5).map(|n| format!("data_batch_{n}.bin")).collect();
        read_cifar(directory, Cifar::Ten, &names, "test_batch.bin")
    } else if has("train.bin") {
        read_cifar(directory, Cifar::Hundred, &["train.bin".to_owned()], "test.bin")
    } else if has("data_batch_1.png") {
        read_png_rows(directory)
    } else if directory.join("train").is_dir() {
        folder::read(directory, side)
    } else {
        read_bitmaps(directory)
    }
}

/// The plain file, or else the compressed one.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let both = [name.to_owned(), format!("{name}.gz")];
    both.iter().map(|name| directory.join(name)).find(|path| path.exists())
}

/// The bytes of a file that the layout needs, with its name for errors.
fn required(directory: &Path, name: &str) -> Result<(String, Vec<u8>), DataError> {
    let path = find(directory, name).ok_or_else(|| DataError::ImageSet {
        place: directory.display().to_string(),
        problem: format!("expected `{name}` or `{name}.gz` beside the other files"),
    })?;
    Ok((path.display().to_string(), read_file(&path)?))
}

fn read_idx(directory: &Path) -> Result<Parts, DataError> {
    let split = |name: &str| {
        let (images_place, images) = required(directory, &format!("{name}-images-idx3-ubyte"))?;
        let (labels_place, labels) = required(directory, &format!("{name}-labels-idx1-ubyte"))?;
        idx::read((&images_place, &images), (&labels_place, &labels))
    };
    let (train, test) = (split("train")?, split("t10k")?);
    let classes = numbered(train.classes());
    Ok(Parts { train, valid: None, test, classes })
}

fn read_cifar(
    directory: &Path,
    kind: Cifar,
    train: &[String],
    test: &str,
) -> Result<Parts, DataError> {
    let file = |name: &str| {
        let (place, bytes) = required(directory, name)?;
        kind.read(&place, &bytes)
    };
    let train: Vec<ImageSet> = train.iter().map(|name| file(name)).collect::<Result<_, _>>()?;
    let classes = numbered(kind.classes());
    Ok(Parts { train: ImageSet::concat(train)?, valid: None, test: file(test)?, classes })
}

fn read_png_rows(directory: &Path) -> Result<Parts, DataError> {
    let pictures: Vec<PathBuf> =
        (1..=5).map(|n| directory.join(format!("data_batch_{n}.png"))).collect();
    let train = png_rows::read(&pictures, &directory.join("train_lables.json"))?;
    let test = [directory.join("test_batch.png")];
    let test = png_rows::read(&test, &directory.join("test_lables.json"))?;
    let classes = numbered(train.classes());
    Ok(Parts { train, valid: None, test, classes })
}

/// One `.npy` file a class, in the order of their names.
fn read_bitmaps(directory: &Path) -> Result<Parts, DataError> {
    let files = bitmap_files(directory)?;
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (label, (_, path)) in (0..).zip(&files) {
        let place = path.display().to_string();
        let bytes = read_file(path)?;
        let size = ImageSize::grey(28, 28);
        let pixels = npy::read(&place, &bytes)?.to_vec();
        let labels = vec![label; pixels.len() / size.values()];
        let all = ImageSet::new(place, pixels, labels, size)?;
        let cut = all.len() - all.len() / TEST_SHARE;
        train.push(all.select(&(0..cut).collect::<Vec<_>>())?);
        test.push(all.select(&(cut..all.len()).collect::<Vec<_>>())?);
    }
    let classes = files.into_iter().map(|(class, _)| class).collect();
    let (train, test) = (ImageSet::concat(train)?, ImageSet::concat(test)?);
    Ok(Parts { train, valid: None, test, classes })
}

/// Class and path of every `<class>.npy`, with or without [`PUBLISHED`] before and `.gz` behind, by class.
fn bitmap_files(directory: &Path) -> Result<Vec<(String, PathBuf)>, DataError> {
    let unreadable = |source| DataError::Read { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let class = name.strip_suffix(".gz").unwrap_or(&name).strip_suffix(".npy");
        let class = class.map(|class| class.strip_prefix(PUBLISHED).unwrap_or(class));
        files.extend(class.map(|class| (class.to_owned(), path)));
    }
    if files.is_empty() {
        return Err(DataError::UnknownImageLayout { path: directory.to_owned() });
    }
    files.sort_unstable();
    match files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        None => Ok(files),
        Some(pair) => {
            let problem = format!("two files of class `{}`; expected one", pair[0].0);
            Err(DataError::ImageSet { place: directory.display().to_string(), problem })
        }
    }
}
