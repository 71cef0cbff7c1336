//! Folders of pictures by class: the layouts of ImageNet and Tiny-ImageNet.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::DynamicImage;
use rayon::prelude::*;

use super::Parts;
use super::decode::{grey_plane, open, planes, square};
use super::set::{ImageSet, ImageSize};
use crate::error::DataError;
use crate::read::read_file;

/// The most bytes of pixels that a set may hold in memory (8 GiB).
const MAX_SET_BYTES: usize = 1 << 33;

const PICTURES: [&str; 3] = ["png", "jpg", "jpeg"];

/// A picture and its class.
type Labelled = (PathBuf, u32);

/// What every picture is made to be.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Side of the square it is resized and cut to; its own size if absent.
    side: Option<u32>,
    /// Brightness in the place of colours.
    grey: bool,
}

impl Form {
    /// The form of images of this size; pictures that are no squares must have it already.
    pub(crate) fn of(size: ImageSize) -> Self {
        let side = (size.height == size.width).then_some(size.height as u32);
        Self { side, grey: size.channels == 1 }
    }

    fn planes(self, picture: &DynamicImage) -> (ImageSize, Vec<u8>) {
        let cut = self.side.map(|side| square(picture, side));
        let picture = cut.as_ref().unwrap_or(picture);
        if self.grey { grey_plane(picture) } else { planes(picture) }
    }
}

/// Reads `train` and `val` or `test`.
pub(crate) fn read(directory: &Path, side: Option<u32>) -> Result<Parts, DataError> {
    let train = directory.join("train");
    let classes = names(&train, Path::is_dir)?;
    if classes.is_empty() {
        return Err(problem(&train, "expected a folder for each class"));
    }
    let [val, test] = ["val", "test"].map(|name| labelled(&directory.join(name), &classes));
    let (valid, test) = match (val?, test?) {
        (val, Some(test)) => (val, test),
        (Some(val), None) => (None, val),
        (None, None) => {
            let what = "expected labelled pictures: val/<class>/, test/<class>/ or val/val_annotations.txt";
            return Err(problem(directory, what));
        }
    };
    let train = by_class(&train, (0..).zip(&classes))?;
    let form = Form { side, grey: false };
    Ok(Parts {
        train: load(directory, &train, form)?,
        valid: valid.map(|valid| load(directory, &valid, form)).transpose()?,
        test: load(directory, &test, form)?,
        classes,
    })
}

fn problem(path: &Path, problem: &str) -> DataError {
    DataError::ImageSet { place: path.display().to_string(), problem: problem.to_owned() }
}

/// Sorted names of what is in a directory, as far as `keep` wants it.
fn names(directory: &Path, keep: impl Fn(&Path) -> bool) -> Result<Vec<String>, DataError> {
    let unreadable = |source| DataError::Read { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if keep(&path) {
            found.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| PICTURES.contains(&extension.as_str())) && path.is_file()
}

/// The pictures of a held-out split; `None` where they are not there or have no labels.
fn labelled(directory: &Path, classes: &[String]) -> Result<Option<Vec<Labelled>>, DataError> {
    let annotations = directory.join("val_annotations.txt");
    if annotations.is_file() {
        return annotated(&annotations, &directory.join("images"), classes).map(Some);
    }
    let present = |(_, class): &(u32, &String)| directory.join(class).is_dir();
    let present: Vec<_> = (0..).zip(classes).filter(present).collect();
    if present.is_empty() {
        return Ok(None);
    }
    by_class(directory, present).map(Some)
}

/// Pictures of `directory/<class>` or `directory/<class>/images`.
fn by_class<'a>(
    directory: &Path,
    classes: impl IntoIterator<Item = (u32, &'a String)>,
) -> Result<Vec<Labelled>, DataError> {
    let mut found = Vec::new();
    for (label, class) in classes {
        let folder = directory.join(class);
        let inner = folder.join("images");
        let folder = if inner.is_dir() { inner } else { folder };
        let pictures = names(&folder, is_picture)?;
        if pictures.is_empty() {
            return Err(problem(&folder, "expected PNG or JPEG pictures"));
        }
        found.extend(pictures.into_iter().map(|name| (folder.join(name), label)));
    }
    Ok(found)
}

/// The pictures of a directory, in the order of their names.
pub(crate) fn picture_files(directory: &Path) -> Result<Vec<PathBuf>, DataError> {
    Ok(names(directory, is_picture)?.into_iter().map(|name| directory.join(name)).collect())
}

/// The pictures of folders named after some of `classes`, in the layout of ImageNet-A, -R and -C.
pub(crate) fn labelled_pictures(
    directory: &Path,
    classes: &[String],
    form: Form,
) -> Result<ImageSet, DataError> {
    let folders = names(directory, Path::is_dir)?;
    if let Some(other) = folders.iter().find(|folder| !classes.contains(folder)) {
        let what = format!("folder `{other}` is no class of the training images");
        return Err(problem(directory, &what));
    }
    let labels = (0..).zip(classes).filter(|(_, class)| folders.contains(class));
    load(directory, &by_class(directory, labels)?, form)
}

/// All pictures of a directory and of its folders, whatever these are called, with the label 0: pictures of no
/// class, in the layout of ImageNet-O.
pub(crate) fn unlabelled_pictures(directory: &Path, form: Form) -> Result<ImageSet, DataError> {
    let mut files = picture_files(directory)?;
    for folder in names(directory, Path::is_dir)? {
        files.extend(picture_files(&directory.join(folder))?);
    }
    if files.is_empty() {
        return Err(problem(directory, "expected PNG or JPEG pictures, or folders of them"));
    }
    load(directory, &files.into_iter().map(|file| (file, 0)).collect::<Vec<_>>(), form)
}

/// Tiny-ImageNet's list: the name of a picture, a tab, its class, and what does not matter here.
fn annotated(file: &Path, folder: &Path, classes: &[String]) -> Result<Vec<Labelled>, DataError> {
    let number: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let text = String::from_utf8_lossy(&read_file(file)?).into_owned();
    let line = |(index, line): (usize, &str)| {
        let mut fields = line.split('\t');
        let (name, class) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let label = number.get(class.trim()).ok_or_else(|| {
            let what =
                format!("line {}: expected a picture, a tab and a class of train", index + 1);
            problem(file, &what)
        })?;
        // A name with a path in it would read files outside the set.
        let name = Path::new(name).file_name().unwrap_or_default();
        Ok((folder.join(name), *label))
    };
    text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()).map(line).collect()
}

/// Decodes every picture; the first one says of what size the others must be.
fn load(directory: &Path, pictures: &[Labelled], form: Form) -> Result<ImageSet, DataError> {
    let decoded = |path: &Path| Ok(form.planes(&open(path)?));
    let Some((first, _)) = pictures.first() else {
        return Err(problem(directory, "a split without a picture"));
    };
    let (size, _) = decoded(first)?;
    let bytes = pictures.len().saturating_mul(size.values());
    if bytes > MAX_SET_BYTES {
        let what = format!(
            "{} images of {size} take {bytes} bytes; at most {MAX_SET_BYTES} are held in memory: set vision.side",
            pictures.len()
        );
        return Err(problem(directory, &what));
    }
    let one = |(path, _): &Labelled| -> Result<Vec<u8>, DataError> {
        let (found, values) = decoded(path)?;
        if found == size { Ok(values) } else { Err(other_size(path, found, size)) }
    };
    let pixels: Vec<Vec<u8>> = pictures.par_iter().map(one).collect::<Result<_, _>>()?;
    let labels = pictures.iter().map(|(_, label)| *label).collect();
    ImageSet::new(directory.display().to_string(), pixels.concat(), labels, size)
}

fn other_size(path: &Path, found: ImageSize, wanted: ImageSize) -> DataError {
    problem(path, &format!("{found}; expected {wanted} as the first picture, or set vision.side"))
}
