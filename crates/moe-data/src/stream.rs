//! A corpus as token ids: what training and evaluation read.

use std::f64::consts::LN_2;
use std::fmt;

use crate::batch::{self, SideBySide, TokenBatch};
use crate::corpus::{Corpus, Text};
use crate::corrupt::{Alignment, Spans, TextAttack};
use crate::error::DataError;
use crate::spec::TokenizerSpec;
use crate::split::{BySplit, Split};
use crate::tokenizer::{Tokenizer, utf8};

/// The token ids of a corpus, and batches of them.
#[derive(Clone)]
pub struct TokenStream {
    corpus: String,
    tokenizer: Tokenizer,
    splits: BySplit<Encoded>,
}

/// Tokens with one split under attack.
#[derive(Clone, Debug)]
pub struct Attacked {
    /// The tokens.
    pub stream: TokenStream,
    /// Which of them are those of the clean text.
    pub alignment: Alignment,
    /// Places where the attack could have done something: words, or letters.
    pub places: usize,
    /// Places where it did.
    pub changed: usize,
}

/// One split; never without a token.
#[derive(Clone)]
struct Encoded {
    tokens: Vec<u32>,
    /// Bytes of the text that the tokens were made from.
    bytes: usize,
    /// Where the windows of an evaluation begin, if not one after the other.
    starts: Option<Vec<usize>>,
}

impl fmt::Debug for TokenStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [train, valid, test] = Split::ALL.map(|split| self.tokens(split).len());
        let Self { corpus, tokenizer, .. } = self;
        write!(f, "{corpus} as {tokenizer:?}: {train} + {valid} + {test} tokens")
    }
}

impl TokenStream {
    /// Builds the tokeniser (a word vocabulary from the train split alone) and encodes every split.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::new`] and [`Tokenizer::encode`]; an invalid byte is reported with its
    /// file and its offset there.
    pub fn new(corpus: &Corpus, spec: &TokenizerSpec) -> Result<Self, DataError> {
        let train = corpus.texts.get(Split::Train);
        let tokenizer = Tokenizer::new(spec, &train.bytes).map_err(|error| error.located(train))?;
        Self::with_tokenizer(corpus, tokenizer)
    }

    /// Encodes every split with a tokeniser that may come from another corpus: the text that a trained
    /// model reads.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`], as in [`Self::new`].
    pub fn with_tokenizer(corpus: &Corpus, tokenizer: Tokenizer) -> Result<Self, DataError> {
        let splits =
            BySplit::try_from_fn(|split| Encoded::new(&tokenizer, corpus.texts.get(split)))?;
        Ok(Self { corpus: corpus.name().to_owned(), tokenizer, splits })
    }

    /// The name of the corpus.
    pub fn corpus(&self) -> &str {
        &self.corpus
    }

    /// The tokeniser, for decoding samples and for its description.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Number of ids; every token is below it, so a model's embedding needs this many rows.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// The ids of a split, in the order of the text; never empty.
    pub fn tokens(&self, split: Split) -> &[u32] {
        &self.splits.get(split).tokens
    }

    /// Bytes of the split's source text, after decompression.
    pub fn bytes(&self, split: Split) -> usize {
        self.splits.get(split).bytes
    }

    /// Whether the tokens determine the text. Where they do not (word level), predicting them says
    /// nothing about bits per byte.
    pub fn is_lossless(&self) -> bool {
        self.tokenizer.is_lossless()
    }

    /// Bits per byte of source text that a mean loss of `nats_per_token` over the split amounts to,
    /// or `None` if the tokens are not lossless.
    pub fn bits_per_byte(&self, split: Split, nats_per_token: f64) -> Option<f64> {
        let tokens_per_byte = self.tokens(split).len() as f64 / self.bytes(split) as f64;
        self.is_lossless().then_some(nats_per_token / LN_2 * tokens_per_byte)
    }

    /// Cross-entropy in nats per token of a split under the unigram distribution of the train
    /// split, add-one smoothed: `p(v) = (n_train(v) + 1) / (N_train + vocab_size)`. A model that uses
    /// context at all has to be below it.
    pub fn unigram_nll(&self, split: Split) -> f64 {
        let fitted = self.counts(Split::Train);
        let total = (self.tokens(Split::Train).len() + self.vocab_size()) as f64;
        let scored = self.counts(split);
        let nats: f64 = fitted
            .iter()
            .zip(&scored)
            .map(|(&fitted, &scored)| scored as f64 * (total / (fitted + 1) as f64).ln())
            .sum();
        nats / self.tokens(split).len() as f64
    }

    /// How often each id occurs in a split.
    fn counts(&self, split: Split) -> Vec<usize> {
        let mut counts = vec![0; self.vocab_size()];
        for &token in self.tokens(split) {
            counts[token as usize] += 1;
        }
        counts
    }

    /// The training batch of a step: `batch` windows of `len` tokens, drawn independently and
    /// uniformly from all `n = tokens - len` starts in the train split.
    ///
    /// The batch is a function of the arguments and the train tokens, so that resuming at a step
    /// needs no generator state. The draws are the same on every platform: row `b` starts at
    /// `floor(r_b * n / 2^64)`, where `r_0, r_1, …` are the first 64-bit outputs (low word first)
    /// of ChaCha8 with the 32-byte key `seed` (8 bytes, little-endian) followed by the ASCII bytes
    /// `moe-data/train-windows/1`, with `step` as the 64-bit stream and block counter 0.
    ///
    /// # Errors
    ///
    /// [`DataError::BatchShape`] if `batch` or `len` is 0 or their product above 2^28;
    /// [`DataError::SplitTooShort`] if the train split has fewer than `len + 1` tokens.
    pub fn train_batch(
        &self,
        seed: u64,
        step: u64,
        batch: usize,
        len: usize,
    ) -> Result<TokenBatch, DataError> {
        let tokens = self.tokens_for(Split::Train, batch, len)?;
        Ok(batch::train_batch(tokens, (seed, step), batch, len))
    }

    /// The split in windows of `len` tokens that follow each other without overlap, `batch` windows
    /// a batch (the last batch has the rows that are left). A cap is the caller's `.take(n)`.
    ///
    /// Window `w` has the inputs `w * len ..` and the targets `w * len + 1 ..`, so each token after
    /// the first is a target once, except a remainder of `(tokens - 1) % len` tokens at the end of
    /// the split, which fills no window.
    ///
    /// # Errors
    ///
    /// [`DataError::BatchShape`] if `batch` or `len` is 0 or their product above 2^28;
    /// [`DataError::SplitTooShort`] if the split has fewer than `len + 1` tokens.
    pub fn eval_batches(
        &self,
        split: Split,
        batch: usize,
        len: usize,
    ) -> Result<impl ExactSizeIterator<Item = TokenBatch>, DataError> {
        let tokens = self.tokens_for(split, batch, len)?;
        let starts = match &self.splits.get(split).starts {
            Some(starts) => {
                starts.iter().copied().filter(|start| start + len < tokens.len()).collect()
            }
            None => batch::eval_starts(tokens.len(), len),
        };
        Ok(batch::eval_batches(tokens, starts, batch, len))
    }

    /// The same with a split's text under attack, in evaluation windows of `len` tokens that begin where the
    /// clean ones begin; and which tokens are the same. The vocabulary stays. `clean` is the split's text.
    ///
    /// # Errors
    ///
    /// [`DataError::InvalidUtf8`] if the clean text is not UTF-8; [`DataError::AttackRate`];
    /// [`DataError::BatchShape`] and [`DataError::SplitTooShort`] as in [`Self::eval_batches`].
    pub fn attacked(
        &self,
        (split, clean): (Split, &[u8]),
        (attack, rate, seed): (TextAttack, f64, u64),
        len: usize,
    ) -> Result<Attacked, DataError> {
        let ids = self.tokens_for(split, 1, len)?;
        let text = attack.apply(utf8(clean, "attack")?, rate, seed)?;
        let tokens = self.tokenizer.encode(text.text.as_bytes())?;
        let spans = |text: &[u8], ids: &[u32]| self.tokenizer.spans(text, ids);
        let before = Spans { ids, bytes_t: spans(clean, ids)? };
        let after = Spans { ids: &tokens, bytes_t: spans(text.text.as_bytes(), &tokens)? };
        let alignment = Alignment::new(&before, &after, &text, len);
        let starts = Some(alignment.starts().to_vec());
        let mut stream = self.clone();
        *stream.splits.get_mut(split) = Encoded { tokens, bytes: text.text.len(), starts };
        Ok(Attacked { stream, alignment, places: text.places, changed: text.changed })
    }

    /// The split as `batch` texts of equal length, read side by side in stretches of `len` tokens. The
    /// tokens that fill no stretch of all texts are left out: at most `batch * (len + 1)`.
    ///
    /// # Errors
    ///
    /// As [`Self::eval_batches`], for `batch * len + 1` tokens.
    pub fn side_by_side(
        &self,
        split: Split,
        batch: usize,
        len: usize,
    ) -> Result<SideBySide<'_>, DataError> {
        batch::check_shape(batch, len)?;
        let tokens = self.tokens_for(split, 1, batch * len)?;
        Ok(SideBySide::new(tokens, batch, len))
    }

    /// The tokens of a split, if windows of this shape can be cut from them.
    fn tokens_for(&self, split: Split, batch: usize, len: usize) -> Result<&[u32], DataError> {
        batch::check_shape(batch, len)?;
        let tokens = self.tokens(split);
        if tokens.len() <= len {
            return Err(DataError::SplitTooShort { split, tokens: tokens.len(), len });
        }
        Ok(tokens)
    }
}

impl Encoded {
    fn new(tokenizer: &Tokenizer, text: &Text) -> Result<Self, DataError> {
        let tokens = tokenizer.encode(&text.bytes).map_err(|error| error.located(text))?;
        Ok(Self { tokens, bytes: text.bytes.len(), starts: None })
    }
}
