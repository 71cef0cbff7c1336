//! Sentences and their translations, and how far shared spelling alone goes in finding one by the other.
//!
//! Array names end in their axes: `n` sentences, `m` translations.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::Array2;

use crate::error::DataError;
use crate::languages::{Languages, short_code};
use crate::read::read_file;
use crate::split::Split;

/// Sentences in two languages: `source[i]` and `target[i]` mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairedTexts {
    /// The two languages, as `ru-en`.
    pub name: String,
    /// Sentences of the first language.
    pub source: Vec<String>,
    /// Those of the second.
    pub target: Vec<String>,
}

impl PairedTexts {
    /// Every pair of a directory in the layout of LASER's Tatoeba sets: files `NAME.xxx-yyy.xxx` and
    /// `NAME.xxx-yyy.yyy`, a sentence a line, each plain or with `.gz` appended; in order of names.
    ///
    /// # Errors
    ///
    /// Those of reading a file; [`DataError::Table`] for a directory without a pair, a file whose partner is
    /// missing or has another number of lines, or bytes that are no UTF-8.
    pub fn open_laser(directory: &Path) -> Result<Vec<Self>, DataError> {
        let sides = sides(directory)?;
        if sides.is_empty() {
            let problem = "expected files NAME.xxx-yyy.xxx and NAME.xxx-yyy.yyy".to_owned();
            return Err(wrong(directory, problem));
        }
        sides.into_iter().map(|((_, pair), files)| Self::read(directory, &pair, &files)).collect()
    }

    fn read(
        directory: &Path,
        pair: &str,
        files: &HashMap<String, PathBuf>,
    ) -> Result<Self, DataError> {
        let (first, second) = pair.split_once('-').unwrap_or((pair, ""));
        let side = |language: &str| {
            let path = files.get(language).ok_or_else(|| {
                wrong(directory, format!("{pair}: the file ending in .{language} is missing"))
            })?;
            let text = String::from_utf8(read_file(path)?)
                .map_err(|_| wrong(path, "expected UTF-8".to_owned()))?;
            Ok::<_, DataError>(text.lines().map(|line| line.trim().to_owned()).collect())
        };
        let (source, target): (Vec<String>, Vec<String>) = (side(first)?, side(second)?);
        if source.len() != target.len() || source.is_empty() {
            let (n, m) = (source.len(), target.len());
            let problem = format!("{pair}: {n} and {m} lines, expected as many, and at least 1");
            return Err(wrong(directory, problem));
        }
        let name = format!("{}-{}", short_code(first), short_code(second));
        Ok(Self { name, source, target })
    }

    /// The aligned paragraphs of a split: every language against the first, for languages that have at
    /// least two.
    pub fn of_split(languages: &Languages, split: Split) -> Vec<Self> {
        let names = languages.names();
        let pair = |language: usize| {
            let rows = languages.rows().iter().filter(|row| row.aligned && row.split == split);
            let texts =
                rows.filter_map(|row| Some((row.texts.get(&language)?, row.texts.get(&0)?)));
            let (source, target) = texts.map(|(a, b)| (a.clone(), b.clone())).unzip();
            Self { name: format!("{}-{}", names[language], names[0]), source, target }
        };
        (1..names.len()).map(pair).filter(|pair| pair.source.len() > 1).collect()
    }

    /// Cosine of the character trigrams of every sentence and every translation, `[n, m]`: counts within
    /// words with a space on either side, in lower case, weighted by `ln((1 + N) / (1 + n)) + 1` for a
    /// trigram that `n` of all `N` texts have (`TfidfVectorizer(analyzer="char_wb")` of scikit-learn). What a
    /// model has to beat: it finds names, numbers and kin words, and knows no meaning.
    pub fn trigram_cosine(&self) -> Array2<f64> {
        let mut counts: Vec<BTreeMap<String, f64>> =
            self.source.iter().chain(&self.target).map(|text| trigrams(text)).collect();
        let mut having: HashMap<String, f64> = HashMap::new();
        for trigram in counts.iter().flat_map(BTreeMap::keys) {
            *having.entry(trigram.clone()).or_default() += 1.0;
        }
        let total = counts.len() as f64;
        for vector in &mut counts {
            for (trigram, value) in vector.iter_mut() {
                *value *= ((1.0 + total) / (1.0 + having[trigram])).ln() + 1.0;
            }
            let norm = vector.values().map(|value| value * value).sum::<f64>().sqrt();
            vector.values_mut().for_each(|value| *value /= norm);
        }
        let (source, target) = counts.split_at(self.source.len());
        products(source, target)
    }
}

/// Files by corpus and pair, then by language.
type Sides = BTreeMap<(String, String), HashMap<String, PathBuf>>;

fn sides(directory: &Path) -> Result<Sides, DataError> {
    let unreadable = |source| DataError::Read { path: directory.to_owned(), source };
    let mut sides = Sides::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let parts: Vec<&str> = name.trim_end_matches(".gz").split('.').collect();
        if let [corpus, pair, language] = parts[..]
            && pair.split('-').any(|side| side == language)
        {
            let key = (corpus.to_owned(), pair.to_owned());
            sides.entry(key).or_default().insert(language.to_owned(), path);
        }
    }
    Ok(sides)
}

fn wrong(place: &Path, problem: String) -> DataError {
    DataError::Table { place: place.display().to_string(), line: 0, problem }
}

fn trigrams(text: &str) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for word in text.to_lowercase().split_whitespace() {
        let letters: Vec<char> = format!(" {word} ").chars().collect();
        for trigram in letters.windows(3) {
            *counts.entry(trigram.iter().collect()).or_default() += 1.0;
        }
    }
    counts
}

/// Inner products of sparse vectors, `[n, m]`.
fn products(source: &[BTreeMap<String, f64>], target: &[BTreeMap<String, f64>]) -> Array2<f64> {
    let mut places: HashMap<&str, Vec<(usize, f64)>> = HashMap::new();
    for (column, vector) in target.iter().enumerate() {
        for (trigram, value) in vector {
            places.entry(trigram).or_default().push((column, *value));
        }
    }
    let mut product_nm = Array2::zeros((source.len(), target.len()));
    for (row, vector) in source.iter().enumerate() {
        for (trigram, value) in vector {
            for (column, other) in places.get(trigram.as_str()).into_iter().flatten() {
                product_nm[[row, *column]] += value * other;
            }
        }
    }
    product_nm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(source: &[&str], target: &[&str]) -> PairedTexts {
        let [source, target] =
            [source, target].map(|t| t.iter().map(|s| (*s).to_owned()).collect());
        PairedTexts { name: "a-b".into(), source, target }
    }

    /// `ab` has the trigrams ` ab` and `ab `, `abc` has ` ab`, `abc`, `bc `. Of two texts, both have ` ab`:
    /// weight 1; the others are in one: weight `1 + ln 1.5 = w`. Cosine `1 / (sqrt(1 + w^2) sqrt(1 + 2 w^2))`.
    #[test]
    fn trigram_cosine_by_hand() {
        let w = 1.0 + 1.5_f64.ln();
        let want = 1.0 / ((1.0 + w * w).sqrt() * (1.0 + 2.0 * w * w).sqrt());
        let got = pair(&["AB"], &["abc"]).trigram_cosine();
        assert!((got[[0, 0]] - want).abs() < 1e-15, "{got} is not {want}");
        let got = pair(&["one", ""], &["one", "two"]).trigram_cosine();
        assert!((got[[0, 0]] - 1.0).abs() < 1e-15);
        assert_eq!([got[[0, 1]], got[[1, 0]], got[[1, 1]]], [0.0; 3]);
    }

    #[test]
    fn pairs_of_a_directory() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
        let open = || PairedTexts::open_laser(place.path()).map_err(|error| error.to_string());
        assert!(
            open().unwrap_err().ends_with("expected files NAME.xxx-yyy.xxx and NAME.xxx-yyy.yyy")
        );
        write("t.rus-eng.rus", "а\nб\n");
        assert!(open().unwrap_err().ends_with("rus-eng: the file ending in .eng is missing"));
        write("t.rus-eng.eng", "a\n");
        assert!(open().unwrap_err().ends_with("2 and 1 lines, expected as many, and at least 1"));
        write("t.rus-eng.eng", "a\nb\n");
        write("t.deu-eng.md", "no side");
        let read = open().unwrap();
        assert_eq!(read, [PairedTexts { name: "ru-en".into(), ..pair(&["а", "б"], &["a", "b"]) }]);
    }

    #[test]
    fn a_split_pairs_every_language_with_the_first() {
        let pairs = PairedTexts::of_split(&Languages::open("help8").unwrap(), Split::Test);
        let names: Vec<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
        assert_eq!(names, ["de-en", "fr-en", "es-en", "ru-en", "zh-en", "tr-en", "el-en"]);
        assert!(pairs.iter().all(|pair| pair.source.len() == 300 && pair.target.len() == 300));
    }
}
