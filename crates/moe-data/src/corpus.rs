//! A corpus: three texts under one name, from the crate itself, a file, a directory or memory.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use crate::builtin;
use crate::error::DataError;
use crate::layout;
use crate::split::{BySplit, Split};

/// Bytes and where they came from.
#[derive(Clone)]
pub(crate) struct Text {
    /// The file, as errors name it.
    pub(crate) place: String,
    /// Offset of the first byte in that file, after decompression.
    pub(crate) start: usize,
    pub(crate) bytes: Vec<u8>,
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {} from {}", self.bytes.len(), self.place, self.start)
    }
}

/// Training, validation and test text, as bytes: a corpus does not have to be UTF-8, only the word
/// and BPE tokenisers ask for that.
#[derive(Clone, Debug)]
pub struct Corpus {
    name: String,
    pub(crate) texts: BySplit<Text>,
}

impl Corpus {
    /// Opens a [built-in corpus](crate::BUILTIN_CORPORA) by name, or a path; a built-in name wins
    /// over a file of that name (write `./sotu` for the file). Names that end in `.gz` are
    /// decompressed.
    ///
    /// - A directory in WikiText layout: `wiki.{train,valid,test}.tokens`, else
    ///   `{train,valid,test}.txt`, each file plain or with `.gz` appended.
    /// - A file named `enwik8` or `text8` (or `.gz` of it): cut at 90 % and 95 % of the bytes,
    ///   which are the published 90 M / 5 M / 5 M for the published 100,000,000 bytes.
    /// - Any other file: the last 5 % of the bytes are the test split and the 5 % before are the
    ///   valid split. Each cut moves back to the end of a line if one ends in the 2.5 % before it,
    ///   else it stays, moved back by at most 3 bytes so as not to divide a UTF-8 character.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownCorpus`] if nothing has this name; [`DataError::Read`],
    /// [`DataError::NotAFile`], [`DataError::Gzip`] and [`DataError::TooLarge`] (over 2 GiB) for a
    /// file that cannot be read; [`DataError::Empty`] and [`DataError::TooSmall`] (under 100 bytes)
    /// for one that cannot be split; [`DataError::UnknownLayout`] and [`DataError::MissingSplit`]
    /// for a directory that lacks the files above.
    pub fn open(spec: &str) -> Result<Self, DataError> {
        let path = Path::new(spec);
        let texts = match builtin::read(spec) {
            Some(texts) => texts?,
            None => read_path(path)?,
        };
        Ok(Self { name: last_component(path), texts })
    }

    /// A corpus from three texts in memory.
    ///
    /// # Errors
    ///
    /// [`DataError::Empty`] if one of them has no bytes.
    pub fn from_bytes(
        name: &str,
        train: &[u8],
        valid: &[u8],
        test: &[u8],
    ) -> Result<Self, DataError> {
        let text = |split, bytes: &[u8]| {
            Text::new(format!("the {split} split of `{name}`"), bytes.to_vec())
        };
        let texts = BySplit {
            train: text(Split::Train, train)?,
            valid: text(Split::Valid, valid)?,
            test: text(Split::Test, test)?,
        };
        Ok(Self { name: name.to_owned(), texts })
    }

    /// The built-in name, or the last component of the path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of a split; never empty.
    pub fn text(&self, split: Split) -> &[u8] {
        &self.texts.get(split).bytes
    }
}

impl Text {
    /// A whole text.
    ///
    /// # Errors
    ///
    /// [`DataError::Empty`] if there is no byte.
    pub(crate) fn new(place: String, bytes: Vec<u8>) -> Result<Self, DataError> {
        if bytes.is_empty() {
            return Err(DataError::Empty { place });
        }
        Ok(Self { place, start: 0, bytes })
    }
}

fn read_path(path: &Path) -> Result<BySplit<Text>, DataError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => layout::read_directory(path),
        Ok(_) => layout::read_and_cut(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(DataError::UnknownCorpus { spec: path.display().to_string() })
        }
        Err(source) => Err(DataError::Read { path: path.to_owned(), source }),
    }
}

/// The last component, or all of a path such as `..` that ends in none.
fn last_component(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
