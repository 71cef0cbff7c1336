//! Tokenisers from their specs: known ids, round trips, and refusals.

mod common;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use common::gzip;
use moe_data::{Corpus, Split, TokenStream, Tokenizer, TokenizerSpec};
use proptest::prelude::*;

static GPT2: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::new(&TokenizerSpec::Bpe, b"").unwrap());

/// The letters `h e l o` and byte-level merges to `hello`, as files in this directory.
fn write_bpe_files(directory: &Path) -> TokenizerSpec {
    // 256 single letters in byte order, as `bytes_to_unicode` of GPT-2 assigns them.
    let spare = (0x100..).filter_map(char::from_u32);
    let mut spare = spare.peekable();
    let letters = (0..=255_u8).map(|byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte).to_string(),
        _ => spare.next().unwrap().to_string(),
    });
    let merged = ["he", "ll", "hell", "hello"].map(str::to_owned);
    let ids: serde_json::Map<String, serde_json::Value> =
        letters.chain(merged).zip((0..).map(serde_json::Value::from)).collect();
    let (vocab, merges) = (directory.join("vocab.json"), directory.join("merges.txt.gz"));
    fs::write(&vocab, serde_json::to_vec(&ids).unwrap()).unwrap();
    fs::write(&merges, gzip(b"#version: 0.2\nh e\nl l\nhe ll\nhell o\n")).unwrap();
    TokenizerSpec::BpeFiles { vocab, merges }
}

#[test]
fn names_descriptions_and_sizes() {
    let word = Tokenizer::new(&TokenizerSpec::WORD, b"a a a b").unwrap();
    let known = [
        (&Tokenizer::Byte, "byte", "bytes (256 ids)", 256, true),
        (&word, "word", "words (3 ids: at least 3 in train)", 3, false),
        (&*GPT2, "bpe", "byte-level BPE (50257 ids: GPT-2)", 50_257, true),
    ];
    for (tokenizer, name, description, vocab_size, lossless) in known {
        assert_eq!(tokenizer.name(), name);
        assert_eq!(tokenizer.description(), description);
        assert_eq!(tokenizer.vocab_size(), vocab_size);
        assert_eq!(tokenizer.is_lossless(), lossless);
    }
}

#[test]
fn gpt2_ids_of_known_texts() {
    for (text, ids) in [
        ("Hello world", &[15496, 995][..]),
        ("", &[]),
        // A run of white space leaves its last character to the word, or to itself.
        ("a\n\nb", &[64, 198, 198, 65]),
        ("a   b", &[64, 220, 220, 275]),
        ("don't 've\u{a0}x", &[9099, 470, 705, 303, 1849, 87]),
        ("①½ 😀\t\tz \n", &[158, 239, 254, 23141, 30325, 222, 197, 197, 89, 220, 198]),
    ] {
        assert_eq!(GPT2.encode(text.as_bytes()).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn gpt2_ids_of_a_real_text_are_those_of_an_independent_encoder() {
    // From OpenAI's algorithm in Python (`regex`, merges by rank) over the whole file at once.
    let corpus = Corpus::open("sotu").unwrap();
    let ids = GPT2.encode(corpus.text(Split::Test)).unwrap();
    let hash = ids.iter().fold(0_u64, |hash, &id| hash.wrapping_mul(31).wrapping_add(id.into()));
    assert_eq!((ids.len(), hash), (186_788, 6_269_649_042_568_097_491));
}

#[test]
fn bpe_files_are_read_plain_or_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::new(&write_bpe_files(directory.path()), b"").unwrap();
    assert_eq!(tokenizer.vocab_size(), 260);
    assert_eq!(tokenizer.encode(b"hello hell").unwrap(), [259, 32, 258]);
    assert_eq!(tokenizer.decode(&[259, 32, 258]).unwrap(), b"hello hell");
}

#[test]
fn missing_bpe_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let spec = write_bpe_files(directory.path());
    fs::remove_file(directory.path().join("merges.txt.gz")).unwrap();
    let error = Tokenizer::new(&spec, b"").unwrap_err().to_string();
    assert!(error.starts_with("cannot read `") && error.ends_with("merges.txt.gz`"), "{error}");
}

#[test]
fn ids_out_of_vocabulary_are_refused() {
    let error = Tokenizer::Byte.decode(&[1, 256]).unwrap_err().to_string();
    assert_eq!(error, "token id 256 is outside the vocabulary of 256 ids");
    let error = GPT2.decode(&[50_257]).unwrap_err().to_string();
    assert_eq!(error, "token id 50257 is outside the vocabulary of 50257 ids");
}

#[test]
fn text_tokenisers_refuse_invalid_utf8_and_bytes_do_not() {
    let bad = b"abc\xFFdef";
    assert_eq!(Tokenizer::Byte.encode(bad).unwrap()[3], 0xFF);
    let error = GPT2.encode(bad).unwrap_err().to_string();
    let expected = "the text: invalid UTF-8 at byte offset 3; the `bpe` tokeniser needs UTF-8 \
                    (the `byte` tokeniser accepts any bytes)";
    assert_eq!(error, expected);
}

#[test]
fn invalid_utf8_in_a_file_is_located_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("latin1.txt");
    let mut bytes = b"123456789\n".repeat(100);
    for at in [17, 977] {
        let kept = std::mem::replace(&mut bytes[at], 0xE9);
        fs::write(&path, &bytes).unwrap();
        bytes[at] = kept;
        let corpus = Corpus::open(path.to_str().unwrap()).unwrap();
        for (spec, name) in [(TokenizerSpec::WORD, "word"), (TokenizerSpec::Bpe, "bpe")] {
            let error = TokenStream::new(&corpus, &spec).unwrap_err().to_string();
            let expected = format!(
                "`{}`: invalid UTF-8 at byte offset {at}; the `{name}` tokeniser needs UTF-8 (the \
                 `byte` tokeniser accepts any bytes)",
                path.display()
            );
            assert_eq!(error, expected);
        }
        assert!(TokenStream::new(&corpus, &TokenizerSpec::Byte).is_ok());
    }
}

#[test]
fn the_word_vocabulary_is_of_the_train_split_alone() {
    let corpus = Corpus::from_bytes("mine", b"a a a\n", b"b b b b\n", b"a b\n").unwrap();
    let stream = TokenStream::new(&corpus, &TokenizerSpec::WORD).unwrap();
    assert_eq!(stream.vocab_size(), 3);
    assert_eq!(stream.tokens(Split::Valid), [0, 0, 0, 0, 1]);
    assert_eq!(stream.tokens(Split::Test), [2, 0, 1]);
}

proptest! {
    #[test]
    fn bytes_round_trip(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let ids = Tokenizer::Byte.encode(&text).unwrap();
        prop_assert_eq!(Tokenizer::Byte.decode(&ids).unwrap(), text);
    }

    #[test]
    fn bpe_round_trips(text in any::<String>()) {
        let ids = GPT2.encode(text.as_bytes()).unwrap();
        prop_assert!(ids.iter().all(|&id| (id as usize) < GPT2.vocab_size()));
        prop_assert_eq!(GPT2.decode(&ids).unwrap(), text.as_bytes());
    }

    #[test]
    fn words_round_trip_up_to_white_space(text in "[a-c]{1,3}([ \n][a-c]{1,3}){0,20}\n") {
        let spec = TokenizerSpec::Word { min_count: 1, split_punctuation: false };
        let tokenizer = Tokenizer::new(&spec, text.as_bytes()).unwrap();
        let ids = tokenizer.encode(text.as_bytes()).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
    }
}

#[test]
fn a_learned_vocabulary_is_the_same_every_time_and_loses_nothing() {
    let corpus = Corpus::open("sotu").unwrap();
    // Runs of one character, where two merges spell the same token.
    let runs = "aaaa aaaaaaa ======== 000000 aaaaa ==== ".repeat(50);
    let train = [&corpus.text(Split::Valid)[..40_000], runs.as_bytes()].concat();
    let learn = |vocab| Tokenizer::new(&TokenizerSpec::TrainBpe { vocab }, &train);
    let first = learn(700).unwrap();
    assert_eq!(first.description(), "byte-level BPE (700 ids: learned from train)");
    let text = "The aaaaaa ===== of Ελλάδα, 自由。\n".as_bytes();
    let ids = first.encode(text).unwrap();
    assert_eq!(first.decode(&ids).unwrap(), text);
    let known = first.encode(&train).unwrap();
    assert!(known.len() * 2 < train.len(), "{} ids for {} bytes", known.len(), train.len());
    for _ in 0..3 {
        assert_eq!(learn(700).unwrap().encode(&train).unwrap(), known);
    }
}

#[test]
fn a_vocabulary_that_cannot_be_learned_is_refused() {
    let error = |vocab, text: &[u8]| {
        Tokenizer::new(&TokenizerSpec::TrainBpe { vocab }, text).unwrap_err().to_string()
    };
    let few = "BPE vocabulary `train-bpe`: 255 ids are asked for, expected 256 to 1048576";
    assert_eq!(error(255, b"a"), few);
    assert!(error(usize::MAX, b"a").contains("expected 256 to 1048576"));
    assert!(error(300, b"a\xff").contains("invalid UTF-8 at byte offset 1"));
    // A text without a pair leaves the bytes.
    let bytes = Tokenizer::new(&TokenizerSpec::TrainBpe { vocab: 300 }, b"a b").unwrap();
    assert_eq!(bytes.vocab_size(), 257);
}
