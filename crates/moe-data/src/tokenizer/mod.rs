//! From bytes to token ids and back: bytes, words, or byte-pair pieces.

mod bpe;
mod bpe_train;
mod bpe_vocab;
mod word;

use std::ops::Range;

use crate::error::DataError;
use crate::spec::TokenizerSpec;

pub use bpe::BpeTokenizer;
pub use word::WordTokenizer;

/// A tokeniser, ready to encode.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Tokenizer {
    /// The id of a byte is its value.
    Byte,
    /// White-space words of the train split.
    Word(WordTokenizer),
    /// Byte-level BPE.
    Bpe(BpeTokenizer),
}

impl Tokenizer {
    /// Builds the tokeniser; only a word vocabulary and a BPE that is learned look at the train split.
    ///
    /// # Errors
    ///
    /// [`DataError::InvalidUtf8`] if the train split is not UTF-8 and the vocabulary is made from it;
    /// [`DataError::Vocabulary`] if fewer ids than bytes are asked for;
    /// [`DataError::Read`], [`DataError::Vocabulary`] or [`DataError::Merges`] for BPE files.
    pub fn new(spec: &TokenizerSpec, train: &[u8]) -> Result<Self, DataError> {
        Ok(match spec {
            TokenizerSpec::Byte => Self::Byte,
            &TokenizerSpec::Word { min_count, split_punctuation } => {
                let text = utf8(train, "word")?;
                Self::Word(WordTokenizer::new(text, min_count, split_punctuation))
            }
            TokenizerSpec::Bpe => Self::Bpe(BpeTokenizer::gpt2()?),
            &TokenizerSpec::TrainBpe { vocab } => {
                Self::Bpe(BpeTokenizer::train(utf8(train, "train-bpe")?, vocab)?)
            }
            TokenizerSpec::BpeFiles { vocab, merges } => {
                Self::Bpe(BpeTokenizer::from_files(vocab, merges)?)
            }
        })
    }

    /// The short name: `byte`, `word` or `bpe`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Byte => "byte",
            Self::Word(_) => "word",
            Self::Bpe(_) => "bpe",
        }
    }

    /// One line for a report: the kind and the size of the vocabulary, with the options used.
    pub fn description(&self) -> String {
        match self {
            Self::Byte => "bytes (256 ids)".to_owned(),
            Self::Word(words) => words.description(),
            Self::Bpe(bpe) => bpe.description(),
        }
    }

    /// Number of ids; every id is below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Byte => 256,
            Self::Word(words) => words.vocab_size(),
            Self::Bpe(bpe) => bpe.vocab_size(),
        }
    }

    /// Whether `decode(encode(text))` is always the text. Words are not: they lose white space, and
    /// rare words become `<unk>`.
    pub fn is_lossless(&self) -> bool {
        !matches!(self, Self::Word(_))
    }

    /// The ids of a text.
    ///
    /// # Errors
    ///
    /// [`DataError::InvalidUtf8`] if the bytes are not UTF-8 and the tokeniser is not `byte`.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>, DataError> {
        match self {
            Self::Byte => Ok(text.iter().copied().map(u32::from).collect()),
            Self::Word(words) => Ok(words.encode(utf8(text, self.name())?)),
            Self::Bpe(bpe) => bpe.encode(utf8(text, self.name())?),
        }
    }

    /// The bytes of `text` that each of its `ids` covers. A word covers no white space; a line's end does.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode), whose result `ids` has to be.
    pub(crate) fn spans(&self, text: &[u8], ids: &[u32]) -> Result<Vec<Range<usize>>, DataError> {
        match self {
            Self::Byte => Ok((0..ids.len()).map(|byte| byte..byte + 1).collect()),
            Self::Word(words) => Ok(words.spans(utf8(text, self.name())?)),
            Self::Bpe(bpe) => Ok(bpe.spans(ids)),
        }
    }

    /// The bytes of a sequence of ids. They are not always UTF-8: a piece of BPE may be part of a
    /// character.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownId`] for an id that is not below [`vocab_size`](Self::vocab_size).
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, DataError> {
        let vocab_size = self.vocab_size();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(DataError::UnknownId { id, vocab_size });
        }
        Ok(match self {
            Self::Byte => ids.iter().map(|&id| id as u8).collect(),
            Self::Word(words) => words.decode(ids).into_bytes(),
            Self::Bpe(bpe) => bpe.decode(ids),
        })
    }
}

/// The bytes as text; `tokenizer` is who asks.
pub(crate) fn utf8<'a>(bytes: &'a [u8], tokenizer: &'static str) -> Result<&'a str, DataError> {
    std::str::from_utf8(bytes).map_err(|error| DataError::InvalidUtf8 {
        place: "the text".to_owned(),
        offset: error.valid_up_to(),
        tokenizer,
    })
}
