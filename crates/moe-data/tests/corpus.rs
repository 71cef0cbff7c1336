//! Opening corpora: every layout, and what each kind of broken input says.

mod common;

use std::error::Error as _;
use std::fs;
use std::path::Path;

use common::gzip;
use moe_data::{Corpus, DataError, Split};
use proptest::prelude::*;
use tempfile::TempDir;

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn open(path: &Path) -> Result<Corpus, DataError> {
    Corpus::open(path.to_str().unwrap())
}

fn texts(corpus: &Corpus) -> [&[u8]; 3] {
    Split::ALL.map(|split| corpus.text(split))
}

/// The error's message with the directory written as `DIR`.
fn message(error: &DataError, directory: &TempDir) -> String {
    error.to_string().replace(directory.path().to_str().unwrap(), "DIR")
}

#[test]
fn sotu_has_the_documented_number_of_words_and_addresses() {
    let corpus = Corpus::open("sotu").unwrap();
    assert_eq!(corpus.name(), "sotu");
    let text = texts(&corpus).map(|text| std::str::from_utf8(text).unwrap());
    assert_eq!(text.map(|text| text.split_whitespace().count()), [1_489_436, 145_338, 161_604]);
    let addresses = text.map(|text| text.lines().filter(|line| line.starts_with("= ")).count());
    assert_eq!(addresses, [195, 19, 19]);
}

#[test]
fn a_name_that_is_nothing_lists_what_is_built_in() {
    let expected = "corpus `stou`: path not found, and no built-in corpus has this name \
                    (built in: sotu)";
    assert_eq!(Corpus::open("stou").unwrap_err().to_string(), expected);
}

#[test]
fn a_file_is_cut_at_line_ends() {
    let text = "123456789\n".repeat(100);
    let directory = directory(&[("a.txt", text.as_bytes()), ("b.gz", &gzip(text.as_bytes()))]);
    for name in ["a.txt", "b.gz"] {
        let corpus = open(&directory.path().join(name)).unwrap();
        assert_eq!(corpus.name(), name);
        assert_eq!(texts(&corpus).map(<[u8]>::len), [900, 50, 50]);
        assert_eq!(texts(&corpus).concat(), text.as_bytes());
    }
}

#[test]
fn enwik8_and_text8_are_cut_at_exact_bytes() {
    let text = "1234567\n".repeat(50);
    for name in ["enwik8", "text8", "enwik8.gz", "text8.gz"] {
        let packed = if name.ends_with("gz") { gzip(text.as_bytes()) } else { text.clone().into() };
        let directory = directory(&[(name, &packed)]);
        let corpus = open(&directory.path().join(name)).unwrap();
        assert_eq!(texts(&corpus).map(<[u8]>::len), [360, 20, 20]);
        assert_eq!(texts(&corpus).concat(), text.as_bytes());
    }
    // Any other name moves the cut at 380 back to the line end at 376.
    let directory = directory(&[("enwik8.txt", text.as_bytes())]);
    let corpus = open(&directory.path().join("enwik8.txt")).unwrap();
    assert_eq!(texts(&corpus).map(<[u8]>::len), [360, 16, 24]);
}

#[test]
fn both_wikitext_layouts_are_read_plain_and_compressed() {
    let (train, valid, test): (&[u8], &[u8], &[u8]) = (b"= a =\n", b"= b =\n", b"= c =\n");
    let layouts = [
        directory(&[
            ("wiki.train.tokens", train),
            ("wiki.valid.tokens", valid),
            ("wiki.test.tokens", test),
        ]),
        directory(&[("train.txt", train), ("valid.txt", valid), ("test.txt", test)]),
        directory(&[
            ("train.txt", train),
            ("valid.txt.gz", &gzip(valid)),
            ("test.txt.gz", &gzip(test)),
        ]),
        directory(&[
            ("train.txt", b"other"),
            ("wiki.train.tokens.gz", &gzip(train)),
            ("wiki.valid.tokens.gz", &gzip(valid)),
            ("wiki.test.tokens", test),
        ]),
    ];
    for directory in layouts {
        let corpus = open(directory.path()).unwrap();
        assert_eq!(texts(&corpus), [train, valid, test]);
        assert_eq!(Path::new(corpus.name()), directory.path().file_name().unwrap());
    }
}

#[test]
fn a_directory_without_a_split_names_the_file() {
    let directory = directory(&[("wiki.train.tokens", b"a"), ("valid.txt", b"b")]);
    let error = open(directory.path()).unwrap_err();
    let expected = "directory `DIR` has no valid split: expected `wiki.valid.tokens` or \
                    `wiki.valid.tokens.gz`";
    assert_eq!(message(&error, &directory), expected);
}

#[test]
fn a_directory_in_no_layout_lists_the_layouts() {
    let directory = directory(&[("readme.md", b"a")]);
    let error = open(directory.path()).unwrap_err();
    let expected = "directory `DIR` is in no known layout: expected wiki.{train,valid,test}.tokens \
                    or {train,valid,test}.txt, each optionally .gz";
    assert_eq!(message(&error, &directory), expected);
}

#[test]
fn empty_files_are_named() {
    let directory = directory(&[
        ("empty", b""),
        ("empty.gz", &gzip(b"")),
        ("train.txt", b"a"),
        ("valid.txt", b""),
        ("test.txt", b"a"),
    ]);
    for (path, named) in [("empty", "empty"), ("empty.gz", "empty.gz"), ("", "valid.txt")] {
        let error = open(&directory.path().join(path)).unwrap_err();
        let expected = format!("`DIR/{named}` is empty: expected text");
        assert_eq!(message(&error, &directory), expected);
    }
    let error = Corpus::from_bytes("mine", b"a", b"b", b"").unwrap_err();
    assert_eq!(error.to_string(), "the test split of `mine` is empty: expected text");
}

#[test]
fn a_file_too_small_to_cut_says_how_small() {
    let directory = directory(&[("small", &[b'x'; 99]), ("enough", &[b'x'; 100])]);
    let error = open(&directory.path().join("small")).unwrap_err();
    let expected = "`DIR/small` has 99 bytes; cutting a file into train, valid and test needs at \
                    least 100";
    assert_eq!(message(&error, &directory), expected);
    let corpus = open(&directory.path().join("enough")).unwrap();
    assert_eq!(texts(&corpus).map(<[u8]>::len), [90, 5, 5]);
}

#[test]
fn gzip_cut_short_names_the_file() {
    let whole = gzip("some text\n".repeat(100).as_bytes());
    let directory = directory(&[("cut.gz", &whole[..whole.len() - 9]), ("not.gz", b"some text")]);
    for name in ["cut.gz", "not.gz"] {
        let error = open(&directory.path().join(name)).unwrap_err();
        let expected = format!("cannot decompress `DIR/{name}`: expected one whole gzip file");
        assert_eq!(message(&error, &directory), expected);
        assert!(error.source().is_some());
    }
}

#[test]
fn a_file_the_system_refuses_is_named_with_the_cause() {
    let directory = directory(&[("file", b"text")]);
    let error = open(&directory.path().join("file/below")).unwrap_err();
    assert_eq!(message(&error, &directory), "cannot read `DIR/file/below`");
    assert!(error.source().is_some());
}

#[test]
fn a_split_that_is_no_regular_file_is_named() {
    let directory = directory(&[("valid.txt", b"a"), ("test.txt", b"b")]);
    fs::create_dir(directory.path().join("train.txt")).unwrap();
    let error = open(directory.path()).unwrap_err();
    assert_eq!(message(&error, &directory), "`DIR/train.txt` is not a regular file");
}

fn cut(bytes: &[u8]) -> Corpus {
    open(&directory(&[("text", bytes)]).path().join("text")).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn splits_of_a_file_put_together_are_the_file(
        bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 100..2000),
    ) {
        let corpus = cut(&bytes);
        prop_assert_eq!(texts(&corpus).concat(), bytes.clone());
        let share = |text: &[u8]| text.len() as f64 / bytes.len() as f64;
        let [train, valid, test] = texts(&corpus).map(share);
        prop_assert!(train > 0.85 && valid > 0.0 && test >= 0.04, "{} {} {}", train, valid, test);
    }

    #[test]
    fn splits_of_a_text_are_texts(text in r"\PC{100,400}") {
        for split in texts(&cut(text.as_bytes())) {
            prop_assert!(std::str::from_utf8(split).is_ok());
        }
    }
}
