//! Batches for a masked language model over several languages, as XLM makes them (Lample and Conneau 2019,
//! arXiv 1901.07291), as functions of (seed, step).
//!
//! - The language of a row is drawn with probability `p_l^alpha / sum p^alpha`, `p_l` its share of the
//!   paragraphs.
//! - A row is paragraphs one after the other, each after a separator, until it is full; positions begin again
//!   at every separator. A row of translations has a paragraph and its translation in another language, and
//!   then the next pair.
//! - A share of a row's tokens (15 %) is to be predicted: 80 % of them show the mask, 10 % a random id, 10 %
//!   themselves.
//!
//! Departures: every row has the same number of targets, so that micro batches weigh alike; XLM draws each
//! token by itself, less often the frequent ones. There are no embeddings of languages, as in XLM-R.
//!
//! Array names end in their axes: `b` batch, `t` tokens, `n` targets.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use ndarray::{Array1, Array2};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::check_shape;
use crate::error::DataError;
use crate::languages::Languages;
use crate::order::below;
use crate::spec::TokenizerSpec;
use crate::split::{BySplit, Split};
use crate::tokenizer::Tokenizer;

/// Keep these random numbers apart from any other use of the same seed. Changing them, or how they are used,
/// changes every training run.
const TRAIN: &[u8; 16] = b"moe-data/masks/1";
const EVAL: &[u8; 16] = b"moe-data/masks/e";

/// Of a hundred targets, how many show the mask, and how many that or a random id.
const MASKED: usize = 80;
const MASKED_OR_RANDOM: usize = 90;

/// How rows are drawn and masked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Masking {
    /// Exponent of a language's share of the paragraphs: 1 draws languages as often as they occur, 0 all
    /// alike.
    pub alpha: f64,
    /// Share of a row's tokens that are predicted.
    pub share: f64,
    /// Share of the training rows that hold translations side by side, where the data have them.
    pub translation: f64,
}

impl Default for Masking {
    fn default() -> Self {
        Self { alpha: 0.5, share: 0.15, translation: 0.0 }
    }
}

impl Masking {
    /// Refuses values outside their range.
    ///
    /// # Errors
    ///
    /// The key, and what is wrong with its value.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { alpha, share, translation } = *self;
        if !(0.0..=1.0).contains(&alpha) {
            return Err(("alpha", format!("{alpha} is outside 0..=1")));
        }
        if !(share > 0.0 && share < 1.0) {
            return Err(("share", format!("{share} must be above 0 and below 1")));
        }
        if !(0.0..=1.0).contains(&translation) {
            return Err(("translation", format!("{translation} is outside 0..=1")));
        }
        Ok(())
    }
}

/// Rows with masks, and what stood there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedBatch {
    /// Ids as the model sees them, `[b, t]`.
    pub x_bt: Array2<i64>,
    /// Place of each token after its separator, `[b, t]`.
    pub position_bt: Array2<i64>,
    /// Where the targets stand in the rows one after the other, `[n]`, rising.
    pub place_n: Array1<i64>,
    /// The ids that stood there, `[n]`.
    pub y_n: Array1<i64>,
}

/// Token ids of paragraphs in several languages, and batches of them.
#[derive(Clone)]
pub struct MaskedText {
    languages: Languages,
    tokenizer: Tokenizer,
    splits: BySplit<Vec<Paragraph>>,
    /// Paragraphs of the train split by language, and those that have a translation.
    train: Vec<Places>,
}

/// A paragraph by language.
#[derive(Clone, Debug)]
struct Paragraph {
    ids: BTreeMap<usize, Vec<u32>>,
    aligned: bool,
}

#[derive(Clone, Debug, Default)]
struct Places {
    all: Vec<usize>,
    translated: Vec<usize>,
}

/// A row that is being filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    ids: Vec<u32>,
    position: Vec<i64>,
}

impl Row {
    /// A separator and as many of `ids` as there is room for; how many those are.
    fn push(&mut self, separator: u32, ids: &[u32], room: usize) -> usize {
        let taken = ids.len().min(room.saturating_sub(1));
        if room > 0 {
            self.ids.push(separator);
            self.ids.extend(&ids[..taken]);
            self.position.extend(0..=taken as i64);
        }
        taken
    }
}

impl fmt::Debug for MaskedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} as {:?}", self.languages, self.tokenizer)
    }
}

impl MaskedText {
    /// Builds the tokeniser (from the train split of all languages) and encodes every paragraph.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::new`] and [`Tokenizer::encode`].
    pub fn new(languages: Languages, spec: &TokenizerSpec) -> Result<Self, DataError> {
        let tokenizer = Tokenizer::new(spec, languages.text(Split::Train).as_bytes())?;
        Self::with_tokenizer(languages, tokenizer)
    }

    /// Encodes every paragraph with a tokeniser that may come from other text: what a trained model reads.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn with_tokenizer(languages: Languages, tokenizer: Tokenizer) -> Result<Self, DataError> {
        let splits = BySplit::try_from_fn(|split| encode(&languages, &tokenizer, split))?;
        let train = (0..languages.names().len()).map(|l| places(&splits.train, l)).collect();
        Ok(Self { languages, tokenizer, splits, train })
    }

    /// The paragraphs as text.
    pub fn languages(&self) -> &Languages {
        &self.languages
    }

    /// The tokeniser, without mask and separator.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Number of ids, the mask and the separator included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size() + SPECIAL_IDS
    }

    fn mask(&self) -> u32 {
        self.tokenizer.vocab_size() as u32
    }

    fn separator(&self) -> u32 {
        self.mask() + 1
    }

    /// Tokens of a split in all languages, separators not counted.
    pub fn tokens(&self, split: Split) -> usize {
        self.ids(split).count()
    }

    /// A sentence as a model reads it alone: the separator, then at most `longest - 1` of its tokens.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn sentence(&self, text: &str, longest: usize) -> Result<Vec<i64>, DataError> {
        let ids = self.tokenizer.encode(text.as_bytes())?;
        let mut row = Row::default();
        row.push(self.separator(), &ids, longest);
        Ok(row.ids.into_iter().map(i64::from).collect())
    }

    /// Cross-entropy in nats per token of a split under the unigram distribution of the train split, add-one
    /// smoothed, over all languages.
    pub fn unigram_nll(&self, split: Split) -> f64 {
        let mut fitted = vec![1_usize; self.tokenizer.vocab_size()];
        self.ids(Split::Train).for_each(|id| fitted[id as usize] += 1);
        let total: usize = fitted.iter().sum();
        let nats = self.ids(split).map(|id| (total as f64 / fitted[id as usize] as f64).ln());
        nats.sum::<f64>() / self.tokens(split) as f64
    }

    /// The given rows of a training batch: a function of the arguments and the data. Row `b` is made from
    /// draws of ChaCha8 with the key `seed`, `step` (8 bytes each, little-endian) and the ASCII bytes
    /// `moe-data/masks/1`, on stream `b`.
    ///
    /// # Errors
    ///
    /// [`DataError::BatchShape`] for a batch without a token or above 2^28; [`DataError::SplitTooShort`] if
    /// no paragraph is there to train on.
    pub fn train_rows(
        &self,
        (seed, step): (u64, u64),
        rows: Range<usize>,
        len: usize,
        masking: &Masking,
    ) -> Result<MaskedBatch, DataError> {
        check_shape(rows.len(), len)?;
        if len < 2 || self.train.iter().all(|places| places.all.is_empty()) {
            let tokens = self.tokens(Split::Train);
            return Err(DataError::SplitTooShort { split: Split::Train, tokens, len });
        }
        let rows = rows.map(|row| {
            let mut draws = generator((seed, step), TRAIN, row as u64);
            let row = self.draw_row(&mut draws, len, masking);
            (row, draws)
        });
        Ok(self.masked(rows.collect(), len, masking.share))
    }

    /// The split in rows of `len` tokens of one language each, paragraphs in order and those that a row cuts
    /// going on in the next; masks are the same every time. A language's last row is left out if it is not
    /// full.
    ///
    /// # Errors
    ///
    /// As [`Self::train_rows`], if no language fills a row.
    pub fn eval_batches(
        &self,
        split: Split,
        batch: usize,
        len: usize,
        masking: &Masking,
    ) -> Result<impl ExactSizeIterator<Item = MaskedBatch>, DataError> {
        check_shape(batch, len)?;
        let languages = 0..self.languages.names().len();
        let rows: Vec<Row> =
            languages.flat_map(|language| self.rows_of(split, language, len)).collect();
        if len < 2 || rows.is_empty() {
            let tokens = self.tokens(split);
            return Err(DataError::SplitTooShort { split, tokens, len });
        }
        let share = masking.share;
        Ok((0..rows.len().div_ceil(batch)).map(move |index| {
            let range = index * batch..rows.len().min((index + 1) * batch);
            let rows = range.map(|row| (rows[row].clone(), generator((0, 0), EVAL, row as u64)));
            self.masked(rows.collect(), len, share)
        }))
    }

    fn ids(&self, split: Split) -> impl Iterator<Item = u32> {
        let paragraphs = self.splits.get(split).iter();
        paragraphs.flat_map(|paragraph| paragraph.ids.values().flatten().copied())
    }

    /// Full rows of one language.
    fn rows_of(&self, split: Split, language: usize, len: usize) -> Vec<Row> {
        let (mut rows, mut row) = (Vec::new(), Row::default());
        for ids in self.splits.get(split).iter().filter_map(|p| p.ids.get(&language)) {
            let mut rest = ids.as_slice();
            while !rest.is_empty() {
                let taken = row.push(self.separator(), rest, len - row.ids.len());
                rest = &rest[taken..];
                if row.ids.len() == len {
                    rows.push(std::mem::take(&mut row));
                }
            }
        }
        rows
    }

    fn draw_row(&self, draws: &mut ChaCha8Rng, len: usize, masking: &Masking) -> Row {
        let translated = uniform(draws) < masking.translation;
        let has = |places: &Places| !translated || !places.translated.is_empty();
        let among: Vec<usize> =
            (0..self.train.len()).filter(|language| has(&self.train[*language])).collect();
        // Where nothing is aligned, a row of translations is one of a single language.
        let (translated, among) = match among.is_empty() {
            true => (false, (0..self.train.len()).collect()),
            false => (translated, among),
        };
        let language = self.draw_language(draws, &among, masking.alpha);
        let mut row = Row::default();
        while row.ids.len() < len {
            match translated {
                true => self.push_pair(draws, &mut row, language, (len, masking.alpha)),
                false => self.push_paragraph(draws, &mut row, language, len),
            }
        }
        row
    }

    /// XLM's balanced draw among languages with a paragraph.
    fn draw_language(&self, draws: &mut ChaCha8Rng, among: &[usize], alpha: f64) -> usize {
        let count = |language: &usize| self.train[*language].all.len() as f64;
        let weights: Vec<f64> =
            among.iter().map(|l| if count(l) > 0.0 { count(l).powf(alpha) } else { 0.0 }).collect();
        let mut left = uniform(draws) * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        let last = weights.iter().rposition(|weight| *weight > 0.0);
        among[drawn.or(last).expect("a language with a paragraph")]
    }

    /// A paragraph drawn alike among those of a language; of one too long, any part.
    fn push_paragraph(&self, draws: &mut ChaCha8Rng, row: &mut Row, language: usize, len: usize) {
        let places = &self.train[language].all;
        let place = places[below(draws.next_u64(), places.len())];
        let ids = &self.splits.train[place].ids[&language];
        let start = below(draws.next_u64(), ids.len().saturating_sub(len - 1) + 1);
        row.push(self.separator(), &ids[start..], len - row.ids.len());
    }

    /// A paragraph of `language` and its translation, each at most half of a row.
    fn push_pair(
        &self,
        draws: &mut ChaCha8Rng,
        row: &mut Row,
        language: usize,
        (len, alpha): (usize, f64),
    ) {
        let places = &self.train[language].translated;
        let paragraph = &self.splits.train[places[below(draws.next_u64(), places.len())]];
        let others: Vec<usize> = paragraph.ids.keys().copied().filter(|l| *l != language).collect();
        let other = self.draw_language(draws, &others, alpha);
        for language in [language, other] {
            let room = (len - row.ids.len()).min(len.div_ceil(2));
            row.push(self.separator(), &paragraph.ids[&language], room);
        }
    }

    /// Rows with masks from their own draws.
    fn masked(&self, rows: Vec<(Row, ChaCha8Rng)>, len: usize, share: f64) -> MaskedBatch {
        let (mut x, mut position) = (Vec::new(), Vec::new());
        let (mut place, mut y) = (Vec::new(), Vec::new());
        let count = rows.len();
        for (mut row, mut draws) in rows {
            let first = x.len() as i64;
            for target in self.targets(&row, &mut draws, share) {
                place.push(first + target as i64);
                y.push(i64::from(row.ids[target]));
                row.ids[target] = self.shown(row.ids[target], &mut draws);
            }
            x.extend(row.ids.into_iter().map(i64::from));
            position.extend(row.position);
        }
        let shaped = |values| Array2::from_shape_vec((count, len), values).expect("rows of len");
        let (x_bt, position_bt) = (shaped(x), shaped(position));
        MaskedBatch { x_bt, position_bt, place_n: place.into(), y_n: y.into() }
    }

    /// Which tokens of a row are predicted, rising: as many as the share of its length, at least one and at
    /// most all that are no separators.
    fn targets(&self, row: &Row, draws: &mut ChaCha8Rng, share: f64) -> Vec<usize> {
        let mut open: Vec<usize> =
            (0..row.ids.len()).filter(|t| row.ids[*t] != self.separator()).collect();
        let count = ((share * row.ids.len() as f64).round() as usize).clamp(1, open.len());
        for target in 0..count {
            let other = target + below(draws.next_u64(), open.len() - target);
            open.swap(target, other);
        }
        open.truncate(count);
        open.sort_unstable();
        open
    }

    /// What is seen in the place of a target.
    fn shown(&self, id: u32, draws: &mut ChaCha8Rng) -> u32 {
        match below(draws.next_u64(), 100) {
            0..MASKED => self.mask(),
            MASKED..MASKED_OR_RANDOM => below(draws.next_u64(), self.tokenizer.vocab_size()) as u32,
            _ => id,
        }
    }
}

/// Ids of a masked language model beside the tokeniser's: the mask, and the separator.
pub const SPECIAL_IDS: usize = 2;

fn generator((seed, step): (u64, u64), domain: &[u8; 16], row: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&step.to_le_bytes());
    key[16..].copy_from_slice(domain);
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(row);
    generator
}

/// A number in [0, 1) with the 53 bits that a double holds.
fn uniform(draws: &mut ChaCha8Rng) -> f64 {
    (draws.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn encode(
    languages: &Languages,
    tokenizer: &Tokenizer,
    split: Split,
) -> Result<Vec<Paragraph>, DataError> {
    let rows = languages.rows().iter().filter(|row| row.split == split);
    rows.map(|row| {
        let texts = row.texts.iter();
        let ids = texts.map(|(l, text)| Ok((*l, tokenizer.encode(text.as_bytes())?)));
        Ok(Paragraph { ids: ids.collect::<Result<_, DataError>>()?, aligned: row.aligned })
    })
    .collect()
}

/// Where a language has paragraphs.
fn places(train: &[Paragraph], language: usize) -> Places {
    let with = |keep: &dyn Fn(&Paragraph) -> bool| {
        let rows = train.iter().enumerate();
        rows.filter(|(_, p)| p.ids.contains_key(&language) && keep(p)).map(|(i, _)| i).collect()
    };
    Places { all: with(&|_| true), translated: with(&|p| p.aligned && p.ids.len() > 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty paragraphs of ten letters in `en`, every other one also in `de` as capitals.
    fn text() -> MaskedText {
        let place = tempfile::NamedTempFile::new().unwrap();
        let line = |i: usize| {
            let letters: String =
                (0..10).map(|j| char::from(b'a' + ((i + j) % 26) as u8)).collect();
            let german = if i.is_multiple_of(2) { letters.to_uppercase() } else { String::new() };
            format!("{i}\t{letters}\t{german}\n")
        };
        let lines: String = (0..20).map(line).collect();
        std::fs::write(place.path(), "key\ten\tde\n".to_owned() + &lines).unwrap();
        let languages = Languages::open(&place.path().display().to_string()).unwrap();
        MaskedText::new(languages, &TokenizerSpec::Byte).unwrap()
    }

    /// The rows before they were masked.
    fn unmasked(batch: &MaskedBatch) -> Vec<Vec<i64>> {
        let mut x: Vec<i64> = batch.x_bt.iter().copied().collect();
        for (place, y) in batch.place_n.iter().zip(&batch.y_n) {
            x[*place as usize] = *y;
        }
        x.chunks(batch.x_bt.ncols()).map(<[i64]>::to_vec).collect()
    }

    fn train(step: u64, rows: Range<usize>, masking: Masking) -> MaskedBatch {
        text().train_rows((7, step), rows, 22, &masking).unwrap()
    }

    #[test]
    fn rows_are_a_function_of_seed_step_and_place() {
        let masking = Masking { translation: 0.5, ..Masking::default() };
        let whole = train(3, 0..8, masking);
        let [first, second] = [train(3, 0..4, masking), train(3, 4..8, masking)];
        assert_eq!(unmasked(&whole), [unmasked(&first), unmasked(&second)].concat());
        assert_eq!(whole.y_n.to_vec(), [first.y_n.to_vec(), second.y_n.to_vec()].concat());
        assert_ne!(whole, train(4, 0..8, masking));
        let other_seed = text().train_rows((8, 3), 0..8, 22, &masking).unwrap();
        assert_ne!(whole, other_seed);
    }

    /// Of 22 tokens 3.3 are 15 %: three.
    #[test]
    fn every_row_has_its_share_of_targets_and_no_separator_among_them() {
        let batch = train(0, 0..50, Masking::default());
        assert_eq!(batch.y_n.len(), 150);
        assert!(batch.y_n.iter().all(|id| *id < 256));
        for (row, ids) in unmasked(&batch).into_iter().enumerate() {
            let here = batch.place_n.iter().filter(|place| **place as usize / 22 == row);
            assert_eq!(here.count(), 3);
            for (t, id) in ids.iter().enumerate() {
                assert_eq!(*id == 257, batch.position_bt[[row, t]] == 0, "{ids:?}");
            }
        }
    }

    #[test]
    fn of_ten_targets_eight_show_the_mask_one_a_random_id_and_one_itself() {
        let batch = train(0, 0..4000, Masking::default());
        let x: Vec<i64> = batch.x_bt.iter().copied().collect();
        let shown = batch.place_n.iter().map(|place| x[*place as usize]);
        let pairs: Vec<(i64, i64)> = shown.zip(batch.y_n.iter().copied()).collect();
        let share = |keep: &dyn Fn(&(i64, i64)) -> bool| {
            pairs.iter().filter(|pair| keep(pair)).count() as f64 / pairs.len() as f64
        };
        // 12,000 targets: four standard deviations are 0.015 and 0.011.
        assert!((share(&|(x, _)| *x == 256) - 0.8).abs() < 0.015);
        assert!((share(&|(x, y)| x == y) - 0.1004).abs() < 0.011);
    }

    /// 16 training paragraphs in English and 8 in German: shares 2/3 and 1/3, at alpha = 1/2
    /// `sqrt 2 / (1 + sqrt 2) = 0.586`, at alpha = 0 one half.
    #[test]
    fn languages_are_balanced() {
        for (alpha, want) in [(1.0, 2.0 / 3.0), (0.5, 0.586), (0.0, 0.5)] {
            let batch = train(0, 0..4000, Masking { alpha, ..Masking::default() });
            let rows = unmasked(&batch);
            let english = rows.iter().filter(|row| row[1] >= i64::from(b'a')).count();
            let found = english as f64 / rows.len() as f64;
            assert!((found - want).abs() < 0.031, "alpha {alpha}: {found} is not {want}");
        }
    }

    #[test]
    fn a_row_of_translations_holds_a_paragraph_twice() {
        let batch = train(0, 0..50, Masking { translation: 1.0, ..Masking::default() });
        let mut first_languages = [0, 0];
        for row in unmasked(&batch) {
            let (first, second) = (&row[1..11], &row[12..22]);
            let upper =
                |ids: &[i64]| ids.iter().map(|id| (*id as u8).to_ascii_uppercase()).collect();
            let (a, b): (Vec<u8>, Vec<u8>) = (upper(first), upper(second));
            assert_eq!(a, b);
            assert_ne!(first, second);
            first_languages[usize::from(first[0] >= i64::from(b'a'))] += 1;
        }
        assert!(first_languages.iter().all(|n| *n > 10), "{first_languages:?}");
    }

    /// Validation is paragraphs 8 and 18, both in both languages: 22 tokens a language with separators, two
    /// rows of 10 each, of which a row cuts the second paragraph after 8 letters... and the next goes on.
    #[test]
    fn evaluation_reads_every_paragraph_in_order_with_fixed_masks() {
        let text = text();
        let masking = Masking::default();
        let batches = || text.eval_batches(Split::Valid, 3, 10, &masking).unwrap();
        let all: Vec<MaskedBatch> = batches().collect();
        assert_eq!(all, batches().collect::<Vec<_>>());
        assert_eq!(all.iter().map(|batch| batch.x_bt.nrows()).collect::<Vec<_>>(), [3, 1]);
        let rows: Vec<Vec<i64>> = all.iter().flat_map(unmasked).collect();
        let show = |row: &[i64]| -> String {
            row.iter().map(|id| if *id == 257 { '|' } else { char::from(*id as u8) }).collect()
        };
        let shown: Vec<String> = rows.iter().map(|row| show(row)).collect();
        assert_eq!(shown, ["|ijklmnopq", "|r|stuvwxy", "|IJKLMNOPQ", "|R|STUVWXY"]);
        assert_eq!(all[0].position_bt.row(1).to_vec(), [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn bad_settings_and_short_splits_are_refused() {
        let base = Masking::default();
        for (masking, key) in [
            (Masking { alpha: -0.1, ..base }, "alpha"),
            (Masking { share: 0.0, ..base }, "share"),
            (Masking { share: f64::NAN, ..base }, "share"),
            (Masking { translation: 1.5, ..base }, "translation"),
        ] {
            assert_eq!(masking.check().unwrap_err().0, key);
        }
        let long = text().eval_batches(Split::Valid, 1, 30, &base).err().unwrap().to_string();
        assert!(long.starts_with("the valid split has 40 tokens"), "{long}");
        assert!(text().train_rows((0, 0), 0..0, 30, &base).is_err());
        assert!(text().train_rows((0, 0), 0..2, 1, &base).is_err());
    }

    #[test]
    fn a_sentence_begins_with_the_separator_and_is_cut() {
        assert_eq!(text().sentence("abc", 9).unwrap(), [257, 97, 98, 99]);
        assert_eq!(text().sentence("abc", 3).unwrap(), [257, 97, 98]);
        assert_eq!(text().vocab_size(), 258);
    }
}
