//! Byte-level BPE as in GPT-2 (Radford et al. 2019): a regular expression cuts the text into words,
//! the bytes of each word are written as 256 printable letters, and neighbouring pieces are merged
//! in order of rank. The `tokenizers` crate provides the expression engine and the merging.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::utils::SysRegex;

use super::bpe_train::learn;
use super::bpe_vocab::{BpeVocab, byte_letters};
use crate::builtin::{GPT2_MERGES_GZ, GPT2_VOCAB_GZ};
use crate::error::DataError;
use crate::read::{gunzip, read_file};

/// What GPT-2 takes for a word (`encoder.py` of `openai/gpt-2`); every character is in one.
const WORD: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Text is encoded in parts of about this many bytes: small enough to keep every core busy on a
/// few megabytes, large enough that most words of a part have been seen before in it.
const PART_BYTES: usize = 1 << 18;

/// The most ids that are learned: four times the largest published vocabulary.
const MOST_IDS: usize = 1 << 20;

/// A byte-level BPE: any UTF-8 text has ids, and the ids give the text back.
#[derive(Clone)]
pub struct BpeTokenizer {
    name: String,
    /// Expression and merges are large, so clones share them.
    word: Arc<SysRegex>,
    model: Arc<BPE>,
    /// The bytes that each id stands for.
    pieces: Vec<Box<[u8]>>,
}

impl fmt::Debug for BpeTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description())
    }
}

impl BpeTokenizer {
    /// The embedded GPT-2 vocabulary.
    pub(super) fn gpt2() -> Result<Self, DataError> {
        let (vocab, merges) = ("gpt2-encoder.json.gz", "gpt2-vocab.bpe.gz");
        let vocab = BpeVocab::parse(&gunzip(GPT2_VOCAB_GZ, vocab)?, vocab)?;
        Self::new("GPT-2", vocab, &gunzip(GPT2_MERGES_GZ, merges)?, merges)
    }

    /// A vocabulary of the user's.
    pub(super) fn from_files(vocab: &Path, merges: &Path) -> Result<Self, DataError> {
        let name = vocab.display().to_string();
        let parsed = BpeVocab::parse(&read_file(vocab)?, &name)?;
        Self::new(&name, parsed, &read_file(merges)?, &merges.display().to_string())
    }

    fn new(
        name: &str,
        vocab: BpeVocab,
        merges: &[u8],
        merges_place: &str,
    ) -> Result<Self, DataError> {
        let merges = vocab.parse_merges(merges, merges_place)?;
        Self::build(name, vocab, merges)
    }

    /// At most `vocab` ids, learned from a text. The same text gives the same ids.
    pub(super) fn train(text: &str, vocab: usize) -> Result<Self, DataError> {
        let letters = byte_letters();
        if !(letters.len()..=MOST_IDS).contains(&vocab) {
            let problem = format!("{vocab} ids are asked for, expected 256 to {MOST_IDS}");
            return Err(DataError::Vocabulary { place: "train-bpe".to_owned(), problem });
        }
        let expression = SysRegex::new(WORD).map_err(DataError::Bpe)?;
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for word in words(&expression, text) {
            *counts.entry(spelled(word, &letters)).or_default() += 1;
        }
        let (ids, merges) = learn(counts, &letters, vocab);
        Self::build(
            "learned from train",
            BpeVocab::new(ids.into_iter().collect(), "train-bpe")?,
            merges,
        )
    }

    fn build(name: &str, vocab: BpeVocab, merges: Merges) -> Result<Self, DataError> {
        let BpeVocab { ids, pieces } = vocab;
        // Without the model's own cache, which outlives it on every thread: parts remember words.
        let model = BPE::builder().cache_capacity(0).vocab_and_merges(ids, merges).build();
        Ok(Self {
            name: name.to_owned(),
            word: Arc::new(SysRegex::new(WORD).map_err(DataError::Bpe)?),
            model: Arc::new(model.map_err(DataError::Bpe)?),
            pieces,
        })
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn description(&self) -> String {
        format!("byte-level BPE ({} ids: {})", self.vocab_size(), self.name)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_in_parts(text, PART_BYTES)
    }

    /// The bytes of each id of a text.
    pub(super) fn spans(&self, ids: &[u32]) -> Vec<Range<usize>> {
        let span = |end: &mut usize, &id: &u32| {
            let start = *end;
            *end += self.pieces[id as usize].len();
            Some(start..*end)
        };
        ids.iter().scan(0, span).collect()
    }

    fn encode_in_parts(&self, text: &str, part_bytes: usize) -> Result<Vec<u32>, DataError> {
        let parts: Vec<&str> = parts(text, part_bytes).collect();
        let ids: Vec<Vec<u32>> =
            parts.par_iter().map(|part| self.encode_part(part)).collect::<Result<_, _>>()?;
        Ok(ids.concat())
    }

    fn encode_part(&self, part: &str) -> Result<Vec<u32>, DataError> {
        let letters = byte_letters();
        let mut known: HashMap<&str, Vec<u32>> = HashMap::new();
        let mut ids = Vec::with_capacity(part.len() / 4);
        for word in words(&self.word, part) {
            match known.get(word) {
                Some(pieces) => ids.extend(pieces),
                None => {
                    let pieces = self.encode_word(word, &letters)?;
                    ids.extend(&pieces);
                    known.insert(word, pieces);
                }
            }
        }
        Ok(ids)
    }

    fn encode_word(&self, word: &str, letters: &[char; 256]) -> Result<Vec<u32>, DataError> {
        let tokens = self.model.tokenize(&spelled(word, letters)).map_err(DataError::Bpe)?;
        Ok(tokens.iter().map(|token| token.id).collect())
    }

    /// The bytes of ids that are in the vocabulary.
    pub(super) fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| &self.pieces[id as usize]).copied().collect()
    }
}

/// The words of a text. The engine gives up on a million characters of white space in a row;
/// what it has not read is then one word, so that nothing is lost.
fn words<'a>(word: &'a SysRegex, text: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = 0;
    let mut matches = word.find_iter(text);
    std::iter::from_fn(move || {
        let end = matches.next().map_or(text.len(), |(_, end)| end);
        let word = &text[rest..end];
        rest = end;
        (!word.is_empty()).then_some(word)
    })
}

/// The bytes of a word as letters.
fn spelled(word: &str, letters: &[char; 256]) -> String {
    word.bytes().map(|byte| letters[usize::from(byte)]).collect()
}

/// Cuts a text into parts of at least `part_bytes` (the last may be shorter) whose ids, one after
/// the other, are the ids of the whole text; needs `part_bytes > 0`.
fn parts(text: &str, part_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (part, tail) = rest.split_at(safe_cut(rest, part_bytes));
        rest = tail;
        (!part.is_empty()).then_some(part)
    })
}

/// The first place at or after `from` where cutting changes no id: before a space or line end that
/// a visible character follows; the end of the text if there is none.
///
/// [`WORD`] cuts the text there anyway: no alternative crosses from visible into white space, and
/// in a longer run of white space `\s+(?!\S)` leaves the last character to what follows. It never
/// looks behind, so the right part is cut alike; and the left part's last white space meets the end
/// of the text where it met white space before, which `(?!\S)` does not tell apart.
fn safe_cut(text: &str, from: usize) -> usize {
    let is_safe = |&(at, byte): &(usize, &u8)| {
        matches!(byte, b' ' | b'\n')
            && text[at + 1..].starts_with(|next: char| !next.is_whitespace())
    };
    let bytes = text.as_bytes().iter().enumerate();
    bytes.skip(from).find(is_safe).map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;
    use crate::corpus::Corpus;
    use crate::split::Split;

    static GPT2: LazyLock<BpeTokenizer> = LazyLock::new(|| BpeTokenizer::gpt2().unwrap());

    /// The ids by the `tokenizers` crate's own steps, the whole text at once.
    fn reference(text: &str) -> Vec<u32> {
        let mut words = PreTokenizedString::from(text);
        ByteLevel::new(false, false, true).pre_tokenize(&mut words).unwrap();
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let tokens = words.into_iter().flat_map(|(word, ..)| GPT2.model.tokenize(word).unwrap());
        tokens.map(|token| token.id).collect()
    }

    #[test]
    fn hello_world_has_its_published_ids() {
        assert_eq!(GPT2.encode("Hello world").unwrap(), [15496, 995]);
        assert_eq!(GPT2.vocab_size(), 50_257);
    }

    #[test]
    fn the_end_of_text_marker_in_a_text_is_ordinary_text() {
        let ids = GPT2.encode("<|endoftext|>").unwrap();
        assert!(!ids.contains(&50_256));
        assert_eq!(GPT2.decode(&ids), b"<|endoftext|>");
        assert_eq!(GPT2.decode(&[50_256]), b"<|endoftext|>");
    }

    #[test]
    fn parts_are_cut_before_white_space_that_starts_a_word() {
        let text = "one two\n\n three's \n";
        assert_eq!(parts(text, 1).collect::<Vec<_>>(), ["one", " two\n\n", " three's \n"]);
        assert_eq!(parts(text, 4).collect::<Vec<_>>(), ["one two\n\n", " three's \n"]);
        assert_eq!(parts("", 1).count(), 0);
    }

    #[test]
    fn parts_of_a_real_text_give_the_ids_of_the_whole() {
        let corpus = Corpus::open("sotu").unwrap();
        let sample = std::str::from_utf8(&corpus.text(Split::Valid)[..100_000]).unwrap();
        let whole = reference(sample);
        assert_eq!(GPT2.encode_in_parts(sample, 1).unwrap(), whole);
        assert_eq!(GPT2.encode_in_parts(sample, 1000).unwrap(), whole);
    }

    #[test]
    fn white_space_beyond_the_expression_engine_is_not_lost() {
        let text = "a".to_owned() + &"\n".repeat(1_100_000) + "b c";
        assert_eq!(GPT2.decode(&GPT2.encode(&text).unwrap()), text.as_bytes());
    }

    proptest! {
        #[test]
        fn parts_give_the_ids_of_the_whole(
            text in r"([a-z0-9'.,é\u{a0}\u{2003}]|\s| |'s| \n){0,60}",
        ) {
            let whole = reference(&text);
            for part_bytes in [1, 3, 10] {
                prop_assert_eq!(&GPT2.encode_in_parts(&text, part_bytes).unwrap(), &whole);
            }
        }

        #[test]
        fn parts_put_together_are_the_text(text in ".{0,200}", part_bytes in 1_usize..50) {
            prop_assert_eq!(parts(&text, part_bytes).collect::<String>(), text);
        }
    }
}
