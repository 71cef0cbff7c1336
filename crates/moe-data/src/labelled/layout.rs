//! Where the three splits of labelled texts lie in a directory.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::split::{BySplit, Split, hold_out};
use crate::table::{LabelledTexts, TableSpec};

/// Every tenth training text of those sorted by label is held out for validation where a layout has no
/// validation split.
const HELD_OUT: usize = 10;

/// How labelled texts lie in a directory; every file may have `.gz` appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TextLayout {
    /// SST-2 as `stsa.binary.{train,dev,test}`, lines of a label and a text.
    Sst2,
    /// SST-5 as `stsa.fine.{train,dev,test}`, likewise.
    Sst5,
    /// TREC questions as `TREC.{train,test}.all`, likewise.
    Trec,
    /// Banking77 as `{train,test}.csv` with columns `text` and `category`.
    Banking77,
    /// Any CSV or TSV files.
    Table(TableFiles),
}

/// Tables of labelled texts, and the columns of text and label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableFiles {
    /// File of the training split in the directory; `.tsv` has tabs between fields, any other commas.
    pub train: String,
    /// File of the validation split; a tenth of the training texts unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<String>,
    /// File of the test split.
    pub test: String,
    /// Column of the text: its name, or its number from 1 in files without header.
    pub text: String,
    /// Column of the label, likewise.
    pub label: String,
    /// Whether the first record names the columns.
    #[serde(default = "with_header")]
    pub header: bool,
}

fn with_header() -> bool {
    true
}

/// File names of the splits, and how they are read; `None` for lines of a label and a text.
struct Files<'a> {
    names: BySplit<Option<&'a str>>,
    columns: Option<(&'a str, &'a str, bool)>,
}

impl TextLayout {
    fn files(&self) -> Files<'_> {
        let lines = |train, valid, test| Files {
            names: BySplit { train: Some(train), valid, test: Some(test) },
            columns: None,
        };
        match self {
            Self::Sst2 => lines("stsa.binary.train", Some("stsa.binary.dev"), "stsa.binary.test"),
            Self::Sst5 => lines("stsa.fine.train", Some("stsa.fine.dev"), "stsa.fine.test"),
            Self::Trec => lines("TREC.train.all", None, "TREC.test.all"),
            Self::Banking77 => Files {
                columns: Some(("text", "category", true)),
                ..lines("train.csv", None, "test.csv")
            },
            Self::Table(files) => Files {
                columns: Some((&files.text, &files.label, files.header)),
                ..lines(&files.train, files.valid.as_deref(), &files.test)
            },
        }
    }

    /// Reads the splits in `directory`; validation and test texts have the training texts' classes.
    ///
    /// # Errors
    ///
    /// [`DataError::MissingSplit`] for a file that is not there, and those of [`LabelledTexts`].
    pub(super) fn read(&self, directory: &Path) -> Result<BySplit<LabelledTexts>, DataError> {
        let files = self.files();
        let train = read(directory, Split::Train, &files)?.expect("every layout has one");
        let like_train = |split| -> Result<Option<LabelledTexts>, DataError> {
            let texts = read(directory, split, &files)?;
            let place = directory.join(files.names.get(split).unwrap_or_default());
            let place = place.display().to_string();
            texts.map(|texts| texts.with_classes(&train.classes, &place)).transpose()
        };
        let (valid, test) = (like_train(Split::Valid)?, like_train(Split::Test)?);
        let test = test.expect("every layout has one");
        let (train, valid) = match valid {
            Some(valid) => (train, valid),
            None => divide(&train, directory)?,
        };
        Ok(BySplit { train, valid, test })
    }
}

/// The texts of a split, if the layout has it.
fn read(
    directory: &Path,
    split: Split,
    files: &Files<'_>,
) -> Result<Option<LabelledTexts>, DataError> {
    let Some(name) = *files.names.get(split) else { return Ok(None) };
    let path = find(directory, name).ok_or_else(|| DataError::MissingSplit {
        path: directory.to_owned(),
        split,
        file: name.to_owned(),
    })?;
    let texts = match files.columns {
        None => LabelledTexts::read_lines(&path),
        Some((text, label, header)) => {
            let spec = TableSpec { header, ..TableSpec::of_columns(&path, text, label) };
            LabelledTexts::read_table(&path, &spec)
        }
    };
    texts.map(Some)
}

/// The plain file, or else the compressed one.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    [name.to_owned(), format!("{name}.gz")]
        .iter()
        .map(|name| directory.join(name))
        .find(|path| path.exists())
}

/// Training and validation texts of a set without the latter.
fn divide(
    texts: &LabelledTexts,
    directory: &Path,
) -> Result<(LabelledTexts, LabelledTexts), DataError> {
    let (kept, held) = hold_out(&texts.class, HELD_OUT);
    if held.is_empty() {
        let problem = format!(
            "{} training texts; holding out a validation split needs at least {HELD_OUT}",
            texts.texts.len()
        );
        let place = directory.display().to_string();
        return Err(DataError::Table { place, line: 0, problem });
    }
    let select = |places: &[usize]| LabelledTexts {
        texts: places.iter().map(|&place| texts.texts[place].clone()).collect(),
        class: places.iter().map(|&place| texts.class[place]).collect(),
        classes: texts.classes.clone(),
    };
    Ok((select(&kept), select(&held)))
}
