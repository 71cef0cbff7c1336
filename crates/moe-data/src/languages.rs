//! Paragraphs in several languages, some of them translations of each other.
//!
//! Three layouts, joined by `+` (`help8+udhr16`):
//!
//! - a table whose first line is `key` and one name of a language per column, then one paragraph per line in
//!   all languages;
//! - a table without such a line: language, any fields that together are the paragraph's key, text;
//! - a directory with a file `<language>.txt` per language, a paragraph a line; lines are no translations.
//!
//! Fields stand between tabs and hold neither tabs nor line ends; names ending in `.gz` are decompressed. Of
//! every ten paragraphs of a source the ninth is validation and the tenth test, in all languages at once, so
//! that no translation of a held-out paragraph is trained on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::builtin;
use crate::error::DataError;
use crate::read::read_file;
use crate::split::Split;

/// Codes of ISO 639-3 that have one in ISO 639-1, of the languages of the built-in tables and of the Tatoeba
/// pairs.
const SHORT: [(&str, &str); 17] = [
    ("ara", "ar"),
    ("arb", "ar"),
    ("cmn", "zh"),
    ("deu", "de"),
    ("ell", "el"),
    ("eng", "en"),
    ("fin", "fi"),
    ("fra", "fr"),
    ("hin", "hi"),
    ("jpn", "ja"),
    ("kor", "ko"),
    ("por", "pt"),
    ("rus", "ru"),
    ("spa", "es"),
    ("swh", "sw"),
    ("tur", "tr"),
    ("vie", "vi"),
];

/// The language without script, region and spelling: `zh-CN` and `cmn_hans` are `zh`.
pub(crate) fn short_code(name: &str) -> String {
    let primary = name.split(['-', '_']).next().unwrap_or(name).to_lowercase();
    let known = SHORT.iter().find(|(long, _)| *long == primary);
    known.map_or(primary, |(_, short)| (*short).to_owned())
}

/// One paragraph in the languages that have it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// By index of [`Languages::names`].
    pub(crate) texts: BTreeMap<usize, String>,
    /// Whether the texts are translations of each other.
    pub(crate) aligned: bool,
    pub(crate) split: Split,
}

/// Paragraphs in several languages.
#[derive(Clone)]
pub struct Languages {
    name: String,
    names: Vec<String>,
    rows: Vec<Row>,
}

impl fmt::Debug for Languages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} paragraphs in {}", self.name, self.rows.len(), self.names.join(" "))
    }
}

impl Languages {
    /// Opens built-in tables ([`BUILTIN_LANGUAGES`](crate::BUILTIN_LANGUAGES)), files and directories,
    /// joined by `+`; a path that has a `+` itself is found too.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownLanguages`] if nothing has a name; those of reading a file; [`DataError::Table`]
    /// for a line without its fields, a language that is there twice, or a source without a paragraph.
    pub fn open(spec: &str) -> Result<Self, DataError> {
        let whole = Path::new(spec).exists();
        let parts: Vec<&str> = if whole { vec![spec] } else { spec.split('+').collect() };
        let mut joined = Self { name: spec.to_owned(), names: Vec::new(), rows: Vec::new() };
        for part in parts {
            joined.join(open_one(part)?);
        }
        Ok(joined)
    }

    /// The source's name as it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Codes of the languages, in the order in which the sources have them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Text of a split in all languages, a paragraph a line: what a vocabulary is learned from.
    pub fn text(&self, split: Split) -> String {
        let rows = self.rows.iter().filter(|row| row.split == split);
        rows.flat_map(|row| row.texts.values()).flat_map(|text| [text.as_str(), "\n"]).collect()
    }

    fn join(&mut self, source: Source) {
        let index: Vec<usize> = source.names.iter().map(|name| self.index(name)).collect();
        self.rows.extend(source.rows.into_iter().enumerate().map(|(number, texts)| Row {
            texts: texts.into_iter().map(|(language, text)| (index[language], text)).collect(),
            aligned: source.aligned,
            split: match number % 10 {
                8 => Split::Valid,
                9 => Split::Test,
                _ => Split::Train,
            },
        }));
    }

    fn index(&mut self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        })
    }
}

/// One file or directory.
struct Source {
    names: Vec<String>,
    rows: Vec<BTreeMap<usize, String>>,
    aligned: bool,
}

fn open_one(spec: &str) -> Result<Source, DataError> {
    let path = Path::new(spec);
    if let Some(table) = builtin::read_languages(spec) {
        return parse_table(&table?, spec);
    }
    if !path.exists() {
        return Err(DataError::UnknownLanguages { spec: spec.to_owned() });
    }
    if path.is_dir() {
        return read_directory(path);
    }
    parse_table(&read_file(path)?, spec)
}

fn wrong(place: &str, line: u64, problem: String) -> DataError {
    DataError::Table { place: place.to_owned(), line, problem }
}

/// The lines of a text with their numbers from 1.
fn lines<'a>(bytes: &'a [u8], place: &str) -> Result<Vec<(u64, &'a str)>, DataError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        wrong(place, line, "expected UTF-8".to_owned())
    })?;
    Ok((1..).zip(text.trim_start_matches('\u{feff}').lines()).collect())
}

/// Codes of languages, each once.
fn codes<'a>(names: impl Iterator<Item = &'a str>, place: &str) -> Result<Vec<String>, DataError> {
    let codes: Vec<String> = names.map(short_code).collect();
    let mut seen = BTreeSet::new();
    match codes.iter().find(|code| code.is_empty() || !seen.insert(code.as_str())) {
        Some(code) => {
            Err(wrong(place, 1, format!("language `{code}`: expected a name, and each once")))
        }
        None => Ok(codes),
    }
}

fn parse_table(bytes: &[u8], place: &str) -> Result<Source, DataError> {
    let lines = lines(bytes, place)?;
    let source = match lines.split_first() {
        Some(((_, header), rows)) if header.split('\t').next() == Some("key") => {
            parse_columns(header, rows, place)?
        }
        _ => parse_records(&lines, place)?,
    };
    if source.rows.iter().all(BTreeMap::is_empty) {
        return Err(wrong(place, 0, "expected at least one paragraph".to_owned()));
    }
    Ok(source)
}

/// A column per language.
fn parse_columns(header: &str, rows: &[(u64, &str)], place: &str) -> Result<Source, DataError> {
    let names = codes(header.split('\t').skip(1), place)?;
    let parse = |(line, text): &(u64, &str)| {
        let fields: Vec<&str> = text.split('\t').skip(1).collect();
        if fields.len() != names.len() {
            let (found, want) = (fields.len(), names.len());
            return Err(wrong(
                place,
                *line,
                format!("{found} texts after the key, expected {want}"),
            ));
        }
        Ok(present(fields.into_iter()))
    };
    let rows: Result<_, DataError> = rows.iter().map(parse).collect();
    Ok(Source { rows: rows?, names, aligned: true })
}

/// A line per paragraph and language: language, key, text.
fn parse_records(lines: &[(u64, &str)], place: &str) -> Result<Source, DataError> {
    let mut names: Vec<String> = Vec::new();
    let (mut rows, mut known) = (Vec::new(), HashMap::new());
    for (line, text) in lines {
        let fields = text.split_once('\t').and_then(|(name, rest)| {
            let (key, text) = rest.rsplit_once('\t')?;
            Some((short_code(name), key, text.trim()))
        });
        let (name, key, text) = fields.filter(|(name, _, text)| !name.is_empty() && !text.is_empty()).ok_or_else(|| {
            let problem = "expected a language, a key and a text between tabs; or, on line 1, `key` and languages";
            wrong(place, *line, problem.to_owned())
        })?;
        let row = *known.entry(key).or_insert_with(|| {
            rows.push(BTreeMap::new());
            rows.len() - 1
        });
        let language = names.iter().position(|known| *known == name).unwrap_or_else(|| {
            names.push(name.clone());
            names.len() - 1
        });
        if rows[row].insert(language, text.to_owned()).is_some() {
            return Err(wrong(place, *line, format!("`{key}` is there twice in `{name}`")));
        }
    }
    Ok(Source { names, rows, aligned: true })
}

/// The texts that are not empty, by their place.
fn present<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeMap<usize, String> {
    let trimmed = texts.map(str::trim).enumerate().filter(|(_, text)| !text.is_empty());
    trimmed.map(|(language, text)| (language, text.to_owned())).collect()
}

fn read_directory(directory: &Path) -> Result<Source, DataError> {
    let place = directory.display().to_string();
    let files = language_files(directory)?;
    if files.is_empty() {
        return Err(wrong(&place, 0, "expected files named <language>.txt or .txt.gz".to_owned()));
    }
    let names = codes(files.keys().map(String::as_str), &place)?;
    let mut rows: Vec<BTreeMap<usize, String>> = Vec::new();
    for (language, path) in files.values().enumerate() {
        let bytes = read_file(path)?;
        let lines = lines(&bytes, &path.display().to_string())?;
        let texts = lines.iter().map(|(_, text)| text.trim()).filter(|text| !text.is_empty());
        for (number, text) in texts.enumerate() {
            if number == rows.len() {
                rows.push(BTreeMap::new());
            }
            rows[number].insert(language, text.to_owned());
        }
    }
    if rows.is_empty() {
        return Err(wrong(&place, 0, "expected at least one paragraph".to_owned()));
    }
    Ok(Source { names, rows, aligned: false })
}

/// The files of a directory by language, in order of names.
fn language_files(directory: &Path) -> Result<BTreeMap<String, PathBuf>, DataError> {
    let unreadable = |source| DataError::Read { path: directory.to_owned(), source };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if let Some(language) = name.trim_end_matches(".gz").strip_suffix(".txt") {
            files.insert(language.to_owned(), path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Source, String> {
        parse_table(text.as_bytes(), "t").map_err(|error| error.to_string())
    }

    fn texts(row: &BTreeMap<usize, String>) -> Vec<(usize, &str)> {
        row.iter().map(|(language, text)| (*language, text.as_str())).collect()
    }

    #[test]
    fn a_table_has_a_column_or_a_line_per_language() {
        let columns = parse("key\ten-US\tzh-CN\nk1\ta \"b\"\t甲\nk2\t\t乙\n").unwrap();
        assert_eq!(columns.names, ["en", "zh"]);
        assert_eq!(texts(&columns.rows[0]), [(0, "a \"b\""), (1, "甲")]);
        assert_eq!(texts(&columns.rows[1]), [(1, "乙")]);
        let records = parse("eng\t0\t0\ta\neng\t0\t1\tb\ncmn_hans\t0\t1\t乙\n").unwrap();
        assert_eq!(records.names, ["en", "zh"]);
        assert_eq!(texts(&records.rows[1]), [(0, "b"), (1, "乙")]);
        assert!(columns.aligned && records.aligned);
    }

    #[test]
    fn errors_name_the_line_and_what_was_expected() {
        let fields = "expected a language, a key and a text between tabs; or, on line 1, `key` and languages";
        for (text, want) in [
            ("key\ten\tde\nk\ta\n", "`t`, line 2: 1 texts after the key, expected 2"),
            (
                "key\ten\teng\nk\ta\tb\n",
                "`t`, line 1: language `en`: expected a name, and each once",
            ),
            ("key\ten\nk\t \n", "`t`: expected at least one paragraph"),
            ("en\ta\n", &format!("`t`, line 1: {fields}")),
            ("en\tk\ta\nen\tk\t\n", &format!("`t`, line 2: {fields}")),
            ("en\tk\ta\nen\tk\tb\n", "`t`, line 2: `k` is there twice in `en`"),
            ("", "`t`: expected at least one paragraph"),
        ] {
            assert_eq!(parse(text).err().as_deref(), Some(want), "{text:?}");
        }
        let error = parse_table(b"en\tk\ta\n\xff", "t").err().unwrap().to_string();
        assert_eq!(error, "`t`, line 2: expected UTF-8");
    }

    #[test]
    fn the_built_in_tables_join_by_language() {
        let both = Languages::open("help8+udhr16").unwrap();
        assert_eq!(both.names()[..8], ["en", "de", "fr", "es", "ru", "zh", "tr", "el"]);
        assert_eq!((both.names().len(), both.rows.len()), (16, 3060));
        let of = |split| both.rows.iter().filter(|row| row.split == split).count();
        assert_eq!(Split::ALL.map(of), [2448, 306, 306]);
        let error = Languages::open("help8+nowhere").unwrap_err().to_string();
        assert_eq!(
            error,
            "languages `nowhere`: path not found, and no built-in table has this name (built in: help8, udhr16)"
        );
    }

    #[test]
    fn a_directory_has_a_file_per_language() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("en.txt"), "a\n\nb\nc\n").unwrap();
        fs::write(place.path().join("rus.txt"), "б\n").unwrap();
        fs::write(place.path().join("README"), "no language").unwrap();
        let read = Languages::open(&place.path().display().to_string()).unwrap();
        assert_eq!(read.names(), ["en", "ru"]);
        assert_eq!(read.rows.iter().map(|row| row.texts.len()).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(read.rows.iter().all(|row| !row.aligned));
        assert_eq!(read.text(Split::Train), "a\nб\nb\nc\n");
        let empty = tempfile::tempdir().unwrap();
        let error = Languages::open(&empty.path().display().to_string()).unwrap_err().to_string();
        assert!(error.ends_with("expected files named <language>.txt or .txt.gz"), "{error}");
    }
}
