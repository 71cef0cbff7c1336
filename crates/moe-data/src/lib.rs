//! Text, tokens and batches for language models; images and batches for vision models.
//!
//! A [`Corpus`] is three texts: built in, or opened from a path. A [`TokenizerSpec`] says how they
//! become ids. A [`TokenStream`] holds the ids of all three, and hands out training batches, which
//! are a function of `(seed, step)`, and evaluation windows, which cover a split once, in order.
//!
//! ```
//! use moe_data::{Corpus, Split, TokenStream, TokenizerSpec};
//!
//! let corpus = Corpus::open("sotu")?;
//! let stream = TokenStream::new(&corpus, &TokenizerSpec::WORD)?;
//!
//! let batch = stream.train_batch(7, 0, 4, 64)?;
//! assert_eq!(batch.x_bt.dim(), (4, 64));
//! assert_eq!(batch.x_bt[[2, 1]], batch.y_bt[[2, 0]]);
//!
//! for window in stream.eval_batches(Split::Valid, 8, 64)?.take(10) {
//!     assert_eq!(window.y_bt.dim(), (8, 64));
//! }
//!
//! // What a model without context reaches: the floor to beat.
//! let perplexity = stream.unigram_nll(Split::Test).exp();
//! assert!((828.0..829.0).contains(&perplexity));
//! # Ok::<(), moe_data::DataError>(())
//! ```
//!
//! [`Images`] are three splits of labelled pictures, built in or in a published layout, with the same two
//! kinds of batches; what happens to a training image is a function of `(seed, epoch, index)`.
//!
//! [`Languages`] are paragraphs in several languages; [`MaskedText`] makes batches with masks of them, and
//! [`PairedTexts`] sentences with their translations, for retrieval.
//!
//! | tokeniser | ids on `sotu` | reads | lossless |
//! |---|---|---|---|
//! | `byte` | 256 | any bytes | yes |
//! | `word` | 21,778 (15,794 with `split_punctuation`) | UTF-8 | no |
//! | `bpe` | 50,257 | UTF-8 | yes |
//! | `train-bpe` | as many as asked for | UTF-8 | yes |
//!
//! Array names end in their axes: `b` batch, `t` tokens.

mod batch;
mod builtin;
mod corpus;
pub mod corrupt;
mod error;
mod image;
mod labelled;
mod languages;
mod layout;
mod masked;
mod order;
mod paired;
mod read;
mod spec;
mod split;
mod stream;
mod table;
mod tokenizer;

pub use batch::{MAX_BATCH_TOKENS, SideBySide, TokenBatch};
pub use builtin::{BUILTIN_CORPORA, BUILTIN_IMAGES, BUILTIN_LANGUAGES};
pub use corpus::Corpus;
pub use error::DataError;
pub use image::{Augment, ImageBatch, ImageSet, ImageSize, Images, RandAugment};
pub use labelled::{TableFiles, TextBatch, TextClasses, TextLayout};
pub use languages::Languages;
pub use masked::{MaskedBatch, MaskedText, Masking, SPECIAL_IDS};
pub use paired::PairedTexts;
pub use spec::{DEFAULT_MIN_COUNT, TokenizerSpec};
pub use split::Split;
pub use stream::{Attacked, TokenStream};
pub use table::{LabelledTexts, TableSpec};
pub use tokenizer::{BpeTokenizer, Tokenizer, WordTokenizer};
