//! Labelled texts as token ids: what a text classifier is trained and evaluated on.
//!
//! A text is encoded with a line end behind it, as a language model met it in its own training text, and
//! cut to its first tokens where it is longer than a model reads. Rows of a batch are as long as its
//! longest text; shorter ones are filled up with id 0, and `length_b` says where they end.
//!
//! Array names end in their axes: `b` batch, `t` tokens, `v` classes.

mod layout;

use std::fmt;
use std::path::Path;

use ndarray::{Array1, Array2};

use crate::batch::check_shape;
use crate::error::DataError;
use crate::order::visits;
use crate::split::{BySplit, Split};
use crate::table::LabelledTexts;
use crate::tokenizer::Tokenizer;
pub use layout::{TableFiles, TextLayout};

/// Three splits of labelled texts as token ids.
#[derive(Clone)]
pub struct TextClasses {
    name: String,
    classes: Vec<String>,
    splits: BySplit<Vec<Item>>,
    /// Texts that were cut.
    cut: usize,
}

/// A text and its class.
#[derive(Clone)]
struct Item {
    tokens: Vec<u32>,
    class: u32,
}

/// Texts and their classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextBatch {
    /// Ids, `[b, t]`; 0 behind the end of a text.
    pub x_bt: Array2<i64>,
    /// Tokens of each text, at least 1, `[b]`.
    pub length_b: Array1<i64>,
    /// Class of each text, `[b]`.
    pub label_b: Array1<i64>,
}

impl fmt::Debug for TextClasses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [train, valid, test] = Split::ALL.map(|split| self.len(split));
        let (name, classes) = (&self.name, self.classes.len());
        write!(f, "{name}: {train} + {valid} + {test} texts, {classes} classes")
    }
}

impl TextClasses {
    /// Reads the texts in `directory` and encodes them; of each the first `most` tokens are kept.
    ///
    /// # Errors
    ///
    /// Files that are missing or not in this layout, a text that the tokeniser cannot cut, or `most` of 0.
    pub fn open(
        directory: &Path,
        layout: &TextLayout,
        tokenizer: &Tokenizer,
        most: usize,
    ) -> Result<Self, DataError> {
        check_shape(1, most)?;
        let texts = layout.read(directory)?;
        let classes = texts.train.classes.clone();
        let mut cut = 0;
        let splits = BySplit::try_from_fn(|split| {
            let encoded = encode(texts.get(split), tokenizer, most)?;
            cut += encoded.1;
            Ok::<_, DataError>(encoded.0)
        })?;
        let name = directory.file_name().unwrap_or(directory.as_os_str());
        Ok(Self { name: name.to_string_lossy().into_owned(), classes, splits, cut })
    }

    /// The last component of the directory's path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the classes; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of texts of a split; at least 1.
    pub fn len(&self, split: Split) -> usize {
        self.splits.get(split).len()
    }

    /// Texts of all splits that were longer than a model reads.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Tokens of a text of the training split, on average.
    pub fn mean_tokens(&self) -> f64 {
        let items = self.splits.get(Split::Train);
        items.iter().map(|item| item.tokens.len()).sum::<usize>() as f64 / items.len() as f64
    }

    /// The training batch of a step: epochs of all texts, each in an order of its own.
    ///
    /// # Errors
    ///
    /// [`DataError::BatchShape`] for a batch without a text, or an absurdly large one.
    pub fn train_batch(
        &self,
        (seed, step): (u64, u64),
        batch: usize,
    ) -> Result<TextBatch, DataError> {
        check_shape(batch, 1)?;
        let items = self.splits.get(Split::Train);
        let places = visits(seed, step.wrapping_mul(batch as u64), batch, items.len());
        let chosen: Vec<&Item> = places.into_iter().map(|(_, place)| &items[place]).collect();
        Ok(TextBatch::of(&chosen))
    }

    /// The texts of a split in order, `batch` at a time; the last batch has what is left.
    ///
    /// # Errors
    ///
    /// As [`Self::train_batch`].
    pub fn eval_batches(
        &self,
        split: Split,
        batch: usize,
    ) -> Result<impl ExactSizeIterator<Item = TextBatch>, DataError> {
        check_shape(batch, 1)?;
        let chunks = self.splits.get(split).chunks(batch);
        Ok(chunks.map(|chunk| TextBatch::of(&chunk.iter().collect::<Vec<_>>())))
    }

    /// Cross-entropy in nats per text of a split under the label frequencies of the train split, add-one
    /// smoothed: a model that looks at the text has to be below it.
    pub fn label_nll(&self, split: Split) -> f64 {
        let mut count_v = vec![1_usize; self.classes.len()];
        let train = self.splits.get(Split::Train);
        train.iter().for_each(|item| count_v[item.class as usize] += 1);
        let total = (train.len() + self.classes.len()) as f64;
        let scored = self.splits.get(split);
        let nats = |item: &Item| (total / count_v[item.class as usize] as f64).ln();
        scored.iter().map(nats).sum::<f64>() / scored.len() as f64
    }
}

impl TextBatch {
    fn of(items: &[&Item]) -> Self {
        let longest = items.iter().map(|item| item.tokens.len()).max().unwrap_or(0);
        let id = |(b, t): (usize, usize)| items[b].tokens.get(t).map_or(0, |&id| i64::from(id));
        Self {
            x_bt: Array2::from_shape_fn((items.len(), longest), id),
            length_b: items.iter().map(|item| item.tokens.len() as i64).collect(),
            label_b: items.iter().map(|item| i64::from(item.class)).collect(),
        }
    }
}

/// The texts as ids, and how many of them were cut.
fn encode(
    texts: &LabelledTexts,
    tokenizer: &Tokenizer,
    most: usize,
) -> Result<(Vec<Item>, usize), DataError> {
    let mut cut = 0;
    let items = texts.texts.iter().zip(&texts.class).map(|(text, &class)| {
        let mut tokens = tokenizer.encode(format!("{text}\n").as_bytes())?;
        cut += usize::from(tokens.len() > most);
        tokens.truncate(most);
        Ok(Item { tokens, class })
    });
    let items = items.collect::<Result<Vec<_>, DataError>>()?;
    Ok((items, cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn place(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn trec(train: &str, most: usize) -> Result<TextClasses, DataError> {
        let dir = place(&[("TREC.train.all", train), ("TREC.test.all", "1 ab\n")]);
        TextClasses::open(dir.path(), &TextLayout::Trec, &Tokenizer::Byte, most)
    }

    /// Ten texts of two classes, of which one is held out.
    fn ten() -> String {
        (0..10).map(|n| format!("{} {}\n", n % 2, "x".repeat(n + 1))).collect()
    }

    #[test]
    fn rows_are_filled_up_and_end_in_a_line_end() {
        let texts = trec(&ten(), 4).unwrap();
        assert_eq!([9, 1, 1], Split::ALL.map(|split| texts.len(split)));
        let batch = texts.eval_batches(Split::Train, 2).unwrap().next().unwrap();
        // "x" and "xx" with a line end each.
        assert_eq!(batch.x_bt, ndarray::array![[120, 10, 0], [120, 120, 10]]);
        assert_eq!((batch.length_b.to_vec(), batch.label_b.to_vec()), (vec![2, 3], vec![0, 1]));
        // Seven of ten are longer than four bytes with their line end.
        assert_eq!(texts.cut(), 7);
        let last = texts.eval_batches(Split::Train, 9).unwrap().next().unwrap();
        assert_eq!(last.x_bt.ncols(), 4);
        assert!(trec(&ten(), 0).is_err());
    }

    #[test]
    fn an_epoch_meets_every_text_once_whatever_the_batch() {
        let texts = trec(&ten(), 20).unwrap();
        let lengths = |step, batch| texts.train_batch((3, step), batch).unwrap().length_b.to_vec();
        let whole = lengths(0, 9);
        assert_eq!([lengths(0, 3), lengths(1, 3), lengths(2, 3)].concat(), whole);
        let mut sorted = whole;
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 9);
        assert!(texts.train_batch((0, 0), 0).is_err());
    }

    #[test]
    fn the_floor_by_hand() {
        // Training has four texts of one class and five of the other, the held-out one is the tenth by
        // label: class 1, with (5 - 1 + 1) + 1 = 5 of 9 + 2. The test text is of class 1 too.
        let texts = trec(&ten(), 20).unwrap();
        let want = (11.0_f64 / 5.0).ln();
        assert!((texts.label_nll(Split::Test) - want).abs() < 1e-12);
        assert!((texts.mean_tokens() - (55.0 - 10.0 + 9.0) / 9.0).abs() < 1e-12);
    }

    #[test]
    fn tables_have_columns_and_may_have_a_validation_split() {
        let files = TableFiles {
            train: "a.tsv".into(),
            valid: Some("b.tsv".into()),
            test: "c.csv".into(),
            text: "words".into(),
            label: "kind".into(),
            header: true,
        };
        let dir = place(&[
            ("a.tsv", "kind\twords\nq\thow, why\nr\tno\n"),
            ("b.tsv", "kind\twords\nr\tyes\n"),
            ("c.csv", "words,kind\nmaybe,q\n"),
        ]);
        let layout = TextLayout::Table(files.clone());
        let open = |layout| TextClasses::open(dir.path(), layout, &Tokenizer::Byte, 99);
        let texts = open(&layout).unwrap();
        assert_eq!(format!("{texts:?}").split(": ").nth(1).unwrap(), "2 + 1 + 1 texts, 2 classes");
        let without = TextLayout::Table(TableFiles { valid: None, ..files.clone() });
        let error = open(&without).unwrap_err().to_string();
        assert!(error.contains("2 training texts; holding out"), "{error}");
        let missing = TextLayout::Table(TableFiles { test: "d.csv".into(), ..files });
        let error = open(&missing).unwrap_err().to_string();
        assert!(error.ends_with("has no test split: expected `d.csv` or `d.csv.gz`"), "{error}");
    }
}
