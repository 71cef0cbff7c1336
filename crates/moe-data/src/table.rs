//! Labelled texts from tables: CSV, TSV, and lines of `label text`.
//!
//! Fields in quotes may hold separators and line ends, as in Banking77's published files. A table with a
//! header names its columns; one without is read by numbers from 1. A name ending in `.gz` is
//! decompressed; what is read is bounded by [`MAX_FILE_BYTES`](crate::read).

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use csv::{ErrorKind, ReaderBuilder, StringRecord, Trim};

use crate::error::DataError;
use crate::read::read_file;

/// Where a table's texts and labels stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Column of the text: its name, or its number from 1 in a table without header.
    pub text: String,
    /// Column of the label, likewise.
    pub label: String,
    /// Whether the first record names the columns.
    pub header: bool,
    /// Byte between fields: `,` for CSV, a tab for TSV.
    pub separator: u8,
}

impl TableSpec {
    /// A table with a header; the separator is that of the file's name: a tab for `.tsv`, a comma for
    /// everything else.
    pub fn of_columns(path: &Path, text: &str, label: &str) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
        let name = name.unwrap_or_default();
        let tabs = name.trim_end_matches(".gz").ends_with(".tsv");
        let separator = if tabs { b'\t' } else { b',' };
        Self { text: text.to_owned(), label: label.to_owned(), header: true, separator }
    }
}

/// Texts and the class of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledTexts {
    /// The texts, in the order of the file.
    pub texts: Vec<String>,
    /// Class of each text, an index into `classes`.
    pub class: Vec<u32>,
    /// Names of the classes, sorted: numbers by value, words by their bytes.
    pub classes: Vec<String>,
}

impl LabelledTexts {
    /// Reads a table.
    ///
    /// # Errors
    ///
    /// Those of reading a file; [`DataError::Table`] for a missing column, a record of another length, bytes
    /// that are no UTF-8, an empty label, or a table without a record, each with its line.
    pub fn read_table(path: &Path, spec: &TableSpec) -> Result<Self, DataError> {
        let bytes = read_file(path)?;
        Self::parse_table(&bytes, spec, &path.display().to_string())
    }

    /// Reads the bytes of a table; `place` names it in errors.
    ///
    /// # Errors
    ///
    /// As [`Self::read_table`].
    pub fn parse_table(bytes: &[u8], spec: &TableSpec, place: &str) -> Result<Self, DataError> {
        let table = Table { place, spec };
        let mut reader = ReaderBuilder::new()
            .has_headers(spec.header)
            .delimiter(spec.separator)
            .trim(Trim::Headers)
            .from_reader(bytes);
        let header = match spec.header {
            true => Some(reader.headers().map_err(|e| table.broken(&e))?.clone()),
            false => None,
        };
        let columns = [&spec.text, &spec.label].map(|name| table.column(name, header.as_ref()));
        let [text, label] = columns;
        let (text, label) = (text?, label?);
        let mut pairs = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| table.broken(&error))?;
            let line = record.position().map_or(0, csv::Position::line);
            pairs.push((table.field(&record, label, line)?, table.field(&record, text, line)?));
        }
        Self::new(pairs, place)
    }

    /// Reads lines of `label text`, as SST and TREC are published. Bytes that are no UTF-8 are read as
    /// Latin-1, line by line: the published files mix both.
    ///
    /// # Errors
    ///
    /// Those of reading a file; [`DataError::Table`] for a line without a text, with its number.
    pub fn read_lines(path: &Path) -> Result<Self, DataError> {
        let bytes = read_file(path)?;
        Self::parse_lines(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of such a file; `place` names it in errors.
    ///
    /// # Errors
    ///
    /// As [`Self::read_lines`].
    pub fn parse_lines(bytes: &[u8], place: &str) -> Result<Self, DataError> {
        let lines = (1..).zip(bytes.split(|byte| *byte == b'\n'));
        let mut pairs = Vec::new();
        for (line, bytes) in lines.filter(|(_, bytes)| !bytes.trim_ascii().is_empty()) {
            let text = text_of(bytes.trim_ascii());
            let (label, text) = text.split_once([' ', '\t']).ok_or_else(|| {
                wrong(place, line, "expected a label, a space and a text".to_owned())
            })?;
            pairs.push((label.to_owned(), text.trim().to_owned()));
        }
        Self::new(pairs, place)
    }

    /// The same texts with classes numbered as in `classes`: a test set follows its training set.
    ///
    /// # Errors
    ///
    /// [`DataError::Table`] for a class that `classes` does not have.
    pub fn with_classes(self, classes: &[String], place: &str) -> Result<Self, DataError> {
        let number: HashMap<&String, u32> = classes.iter().zip(0..).collect();
        let renumbered: Result<Vec<u32>, DataError> = self
            .class
            .iter()
            .map(|class| {
                let name = &self.classes[*class as usize];
                let found = number.get(name).copied();
                found.ok_or_else(|| wrong(place, 0, format!("class `{name}` is not in training")))
            })
            .collect();
        Ok(Self { class: renumbered?, classes: classes.to_vec(), texts: self.texts })
    }

    fn new(pairs: Vec<(String, String)>, place: &str) -> Result<Self, DataError> {
        if pairs.is_empty() {
            return Err(wrong(place, 0, "expected at least one text".to_owned()));
        }
        let names: BTreeSet<&str> = pairs.iter().map(|(label, _)| label.as_str()).collect();
        let mut classes: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if classes.iter().all(|name| name.parse::<i64>().is_ok()) {
            classes.sort_by_key(|name| name.parse::<i64>().unwrap_or_default());
        }
        let number: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let class = pairs.iter().map(|(label, _)| number[label.as_str()]).collect();
        let texts = pairs.into_iter().map(|(_, text)| text).collect();
        Ok(Self { texts, class, classes })
    }
}

/// A table that is being read.
struct Table<'a> {
    place: &'a str,
    spec: &'a TableSpec,
}

impl Table<'_> {
    fn column(&self, name: &str, header: Option<&StringRecord>) -> Result<usize, DataError> {
        let Some(header) = header else {
            return name.parse().ok().and_then(|n: usize| n.checked_sub(1)).ok_or_else(|| {
                let problem =
                    format!("column `{name}`: a table without header has columns 1, 2, …");
                wrong(self.place, 1, problem)
            });
        };
        // A byte order mark stands before the first name of files that spreadsheets wrote.
        let plain = |title: &str| title.trim_start_matches('\u{feff}') == name;
        header.iter().position(plain).ok_or_else(|| {
            let titles: Vec<&str> = header.iter().collect();
            let problem = format!("no column `{name}`; the table has {}", titles.join(", "));
            wrong(self.place, 1, problem)
        })
    }

    fn field(&self, record: &StringRecord, column: usize, line: u64) -> Result<String, DataError> {
        let field = record.get(column).map(str::trim).filter(|field| !field.is_empty());
        field.map(str::to_owned).ok_or_else(|| {
            let name = if self.spec.header { "a field" } else { "a column" };
            wrong(self.place, line, format!("{name} is missing or empty, number {}", column + 1))
        })
    }

    fn broken(&self, error: &csv::Error) -> DataError {
        let line = error.position().map_or(1, csv::Position::line);
        let problem = match error.kind() {
            ErrorKind::Utf8 { .. } => "expected UTF-8".to_owned(),
            ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} fields, expected {expected_len}")
            }
            _ => error.to_string(),
        };
        wrong(self.place, line, problem)
    }
}

fn wrong(place: &str, line: u64, problem: String) -> DataError {
    DataError::Table { place: place.to_owned(), line, problem }
}

/// UTF-8, or else Latin-1, whose bytes are the first 256 characters.
fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(header: bool, separator: u8) -> TableSpec {
        let names = if header { ["text", "category"] } else { ["2", "1"] };
        let [text, label] = names.map(str::to_owned);
        TableSpec { text, label, header, separator }
    }

    fn table(text: &str) -> Result<LabelledTexts, DataError> {
        LabelledTexts::parse_table(text.as_bytes(), &spec(true, b','), "t.csv")
    }

    #[test]
    fn quotes_hold_commas_line_ends_and_quotes() {
        let got = table("text,category\n\"a,\nb \"\"c\"\"\",card\nd,age\r\n").unwrap();
        assert_eq!(got.texts, ["a,\nb \"c\"", "d"]);
        assert_eq!((got.class, got.classes), (vec![1, 0], vec!["age".into(), "card".into()]));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_name() {
        assert_eq!(table("\u{feff}text,category\na,b\n").unwrap().texts, ["a"]);
    }

    #[test]
    fn columns_go_by_name_or_by_number() {
        let got =
            LabelledTexts::parse_table(b"9\tnine\n10\tten\n", &spec(false, b'\t'), "t").unwrap();
        assert_eq!(got.texts, ["nine", "ten"]);
        // As numbers: 9 before 10.
        assert_eq!((got.class, got.classes), (vec![0, 1], vec!["9".into(), "10".into()]));
        let path = Path::new("a/B.TSV.gz");
        assert_eq!(TableSpec::of_columns(path, "x", "y").separator, b'\t');
        assert_eq!(TableSpec::of_columns(Path::new("tsv"), "x", "y").separator, b',');
    }

    #[test]
    fn errors_name_file_line_and_expectation() {
        for (text, want) in [
            ("", "`t.csv`, line 1: no column `text`; the table has "),
            (
                "text,label\na,b\n",
                "`t.csv`, line 1: no column `category`; the table has text, label",
            ),
            ("text,category\n", "`t.csv`: expected at least one text"),
            ("text,category\na,b\nc\n", "`t.csv`, line 3: 1 fields, expected 2"),
            ("text,category\n\"a\n\",\n", "`t.csv`, line 2: a field is missing or empty, number 2"),
        ] {
            assert_eq!(table(text).unwrap_err().to_string(), want, "{text:?}");
        }
        let bytes = b"text,category\na,\xff\n";
        let error = LabelledTexts::parse_table(bytes, &spec(true, b','), "t.csv").unwrap_err();
        assert_eq!(error.to_string(), "`t.csv`, line 2: expected UTF-8");
        let numbers = TableSpec { label: "0".into(), ..spec(false, b',') };
        let error = LabelledTexts::parse_table(b"a,b", &numbers, "t").unwrap_err().to_string();
        assert_eq!(error, "`t`, line 1: column `0`: a table without header has columns 1, 2, …");
    }

    #[test]
    fn lines_of_label_and_text_in_two_encodings() {
        let bytes = b"0 cr\xe8me\n4 cr\xc3\xa8me br\xc3\xbbl\xc3\xa9e\n\n";
        let got = LabelledTexts::parse_lines(bytes, "sst").unwrap();
        assert_eq!(got.texts, ["crème", "crème brûlée"]);
        assert_eq!(got.classes, ["0", "4"]);
        let error = LabelledTexts::parse_lines(b"0 a\n1\n", "sst").unwrap_err().to_string();
        assert_eq!(error, "`sst`, line 2: expected a label, a space and a text");
    }

    #[test]
    fn a_test_set_takes_the_numbers_of_its_training_set() {
        let train = table("text,category\na,x\nb,y\n").unwrap();
        let test = table("text,category\nc,y\n").unwrap();
        let test = test.with_classes(&train.classes, "test.csv").unwrap();
        assert_eq!(test.class, [1]);
        let other = table("text,category\nc,z\n").unwrap().with_classes(&train.classes, "test.csv");
        assert_eq!(other.unwrap_err().to_string(), "`test.csv`: class `z` is not in training");
    }
}
