//! Laws of token streams: training batches, evaluation windows, and the unigram floor.

use std::sync::LazyLock;

use moe_data::{Corpus, DataError, Split, TokenBatch, TokenStream, TokenizerSpec};
use proptest::prelude::*;

static SOTU: LazyLock<Corpus> = LazyLock::new(|| Corpus::open("sotu").unwrap());

/// Byte tokens: `0, 1, 2, …` so that a token tells its position; all three splits differ.
fn counting(train: u8, valid: u8, test: u8) -> TokenStream {
    let upto = |n: u8| (0..n).collect::<Vec<u8>>();
    let corpus = Corpus::from_bytes("counting", &upto(train), &upto(valid), &upto(test)).unwrap();
    TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap()
}

fn words(split_punctuation: bool) -> TokenStream {
    let spec = TokenizerSpec::Word { min_count: 3, split_punctuation };
    TokenStream::new(&SOTU, &spec).unwrap()
}

fn assert_close(value: f64, expected: f64) {
    assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
}

/// The targets of all windows, row after row.
fn targets(batches: impl Iterator<Item = TokenBatch>) -> Vec<i64> {
    batches.flat_map(|batch| batch.y_bt.into_raw_vec_and_offset().0).collect()
}

#[test]
fn word_perplexities_are_those_of_an_independent_count() {
    // From a word count in Python over the same three files, summed exactly.
    let stream = words(false);
    assert_eq!(stream.vocab_size(), 21_778);
    assert_eq!(Split::ALL.map(|split| stream.tokens(split).len()), [1_490_021, 145_395, 161_661]);
    assert_close(stream.unigram_nll(Split::Train), 6.786_228_428_020_214);
    assert_close(stream.unigram_nll(Split::Valid), 6.685_980_386_495_34);
    assert_close(stream.unigram_nll(Split::Test), 6.719_306_926_669_556);
}

#[test]
fn test_perplexity_with_punctuation_split_off_is_the_published_floor() {
    let stream = words(true);
    assert_eq!(stream.vocab_size(), 15_794);
    let perplexity = stream.unigram_nll(Split::Test).exp();
    assert!((639.0..640.0).contains(&perplexity), "{perplexity}");
}

#[test]
fn unigram_nll_of_a_small_count_by_hand() {
    let corpus = Corpus::from_bytes("aab", b"aab", b"a", b"c").unwrap();
    let stream = TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap();
    assert_close(stream.unigram_nll(Split::Valid), (259.0_f64 / 3.0).ln());
    assert_close(stream.unigram_nll(Split::Test), 259.0_f64.ln());
    let train = (2.0 * (259.0_f64 / 3.0).ln() + (259.0_f64 / 2.0).ln()) / 3.0;
    assert_close(stream.unigram_nll(Split::Train), train);
}

#[test]
fn splits_keep_their_text() {
    let stream = counting(9, 7, 5);
    assert_eq!(Split::ALL.map(|split| stream.tokens(split).len()), [9, 7, 5]);
    assert_eq!(Split::ALL.map(|split| stream.bytes(split)), [9, 7, 5]);
    assert_eq!(stream.corpus(), "counting");
    assert_eq!(format!("{stream:?}"), "counting as Byte: 9 + 7 + 5 tokens");
}

#[test]
fn ids_of_every_tokeniser_are_below_the_vocabulary_size() {
    for spec in [TokenizerSpec::Byte, TokenizerSpec::WORD, TokenizerSpec::Bpe] {
        let text = SOTU.text(Split::Test);
        let corpus = Corpus::from_bytes("part", &text[..50_000], &text[50_000..90_000], b"\n");
        let stream = TokenStream::new(&corpus.unwrap(), &spec).unwrap();
        let below = |&token: &u32| (token as usize) < stream.vocab_size();
        assert!(Split::ALL.iter().all(|&split| stream.tokens(split).iter().all(below)), "{spec:?}");
    }
}

#[test]
fn bits_per_byte_count_source_bytes_and_only_where_nothing_is_lost() {
    let corpus = Corpus::from_bytes("two", b"Hello world", b"Hello world", b"x").unwrap();
    let bits = |spec: &TokenizerSpec| {
        let stream = TokenStream::new(&corpus, spec).unwrap();
        stream.bits_per_byte(Split::Valid, std::f64::consts::LN_2)
    };
    assert_close(bits(&TokenizerSpec::Byte).unwrap(), 1.0);
    assert_close(bits(&TokenizerSpec::Bpe).unwrap(), 2.0 / 11.0);
    assert_eq!(bits(&TokenizerSpec::WORD), None);
}

#[test]
fn split_too_short_says_what_is_needed() {
    let stream = counting(9, 8, 7);
    let error = stream.train_batch(0, 0, 1, 9).unwrap_err().to_string();
    assert_eq!(error, "the train split has 9 tokens; windows of 9 tokens need at least 10");
    for (split, tokens) in [(Split::Valid, 8), (Split::Test, 7)] {
        let error = stream.eval_batches(split, 1, 8).err().unwrap().to_string();
        let expected =
            format!("the {split} split has {tokens} tokens; windows of 8 tokens need at least 9");
        assert_eq!(error, expected);
    }
    assert!(stream.train_batch(0, 0, 1, 8).is_ok());
    assert_eq!(stream.eval_batches(Split::Test, 1, 6).unwrap().len(), 1);
}

#[test]
fn a_batch_without_elements_is_refused() {
    let stream = counting(9, 9, 9);
    for (batch, len) in [(0, 2), (2, 0), (usize::MAX, usize::MAX)] {
        let train = stream.train_batch(0, 0, batch, len).unwrap_err();
        let eval = stream.eval_batches(Split::Test, batch, len).err().unwrap();
        for error in [train, eval] {
            assert!(matches!(error, DataError::BatchShape { .. }), "{error}");
        }
    }
}

#[test]
fn every_window_of_the_train_split_is_drawn() {
    let stream = counting(9, 30, 20);
    let batch = stream.train_batch(3, 0, 500, 5).unwrap();
    let mut starts: Vec<i64> = batch.x_bt.column(0).to_vec();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts, [0, 1, 2, 3]);
}

#[test]
fn evaluation_reads_the_split_it_is_asked_for() {
    let stream = counting(200, 30, 20);
    for (split, tokens) in [(Split::Train, 200), (Split::Valid, 30), (Split::Test, 20)] {
        let seen = targets(stream.eval_batches(split, 4, 1).unwrap());
        assert_eq!(seen, (1..tokens).collect::<Vec<i64>>());
    }
}

proptest! {
    #[test]
    fn train_batches_do_not_depend_on_the_order_of_calls(
        seed: u64,
        steps in prop::collection::vec(any::<u64>(), 1..5),
    ) {
        let stream = counting(200, 9, 9);
        let draw = |step: &u64| stream.train_batch(seed, *step, 4, 8).unwrap();
        let forward: Vec<TokenBatch> = steps.iter().map(draw).collect();
        let mut backward: Vec<TokenBatch> = steps.iter().rev().map(draw).collect();
        backward.reverse();
        prop_assert_eq!(forward, backward);
    }

    #[test]
    fn seed_and_step_both_matter(seed: u64, step: u64, bit in 0_u32..64) {
        let stream = counting(255, 9, 9);
        let draw = |seed, step| stream.train_batch(seed, step, 32, 2).unwrap();
        let other = 1_u64 << bit;
        prop_assert_ne!(draw(seed, step), draw(seed ^ other, step));
        prop_assert_ne!(draw(seed, step), draw(seed, step ^ other));
    }

    #[test]
    fn train_windows_are_runs_of_the_text_and_targets_follow(
        seed: u64, step: u64, batch in 1_usize..6, len in 1_usize..40,
    ) {
        let stream = counting(41, 9, 9);
        let TokenBatch { x_bt, y_bt } = stream.train_batch(seed, step, batch, len).unwrap();
        prop_assert_eq!(x_bt.dim(), (batch, len));
        prop_assert_eq!(&y_bt, &(&x_bt + 1));
        for row in x_bt.rows() {
            prop_assert!(row.iter().zip(row[0]..).all(|(&token, expected)| token == expected));
        }
        prop_assert!(y_bt.iter().all(|&token| token < 41));
    }

    #[test]
    fn evaluation_covers_each_target_once(
        tokens in 2_u8..200, batch in 1_usize..9, len in 1_usize..20,
    ) {
        let stream = counting(9, tokens, 9);
        let targets_there = usize::from(tokens) - 1;
        prop_assume!(len <= targets_there);
        let windows = targets_there / len;
        let batches = stream.eval_batches(Split::Valid, batch, len).unwrap();
        prop_assert_eq!(batches.len(), windows.div_ceil(batch));
        let mut rows = 0;
        let seen = targets(batches.inspect(|one| {
            rows += one.x_bt.nrows();
            assert_eq!(one.y_bt, &one.x_bt + 1);
        }));
        prop_assert_eq!(rows, windows);
        prop_assert_eq!(seen, (1..=(windows * len) as i64).collect::<Vec<i64>>());
    }
}
