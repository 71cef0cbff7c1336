//! Reading and checking the two files of a byte-level BPE.
//!
//! The `tokenizers` crate panics on some merges that do not fit their vocabulary and silently drops
//! bytes that the vocabulary lacks, so both files are checked here before it sees them.

use std::collections::HashMap;

use tokenizers::models::bpe::{Merges, Vocab};

use crate::error::DataError;

/// A vocabulary in which every byte has a token and the ids are `0..n`.
#[derive(Debug)]
pub(super) struct BpeVocab {
    /// From a token, in the 256 letters of [`byte_letters`], to its id.
    pub(super) ids: Vocab,
    /// From an id to the bytes of its token.
    pub(super) pieces: Vec<Box<[u8]>>,
}

impl BpeVocab {
    /// Parses a `vocab.json`; `place` names it in errors.
    pub(super) fn parse(json: &[u8], place: &str) -> Result<Self, DataError> {
        let wrong = |problem| DataError::Vocabulary { place: place.to_owned(), problem };
        let ids: HashMap<String, u32> = serde_json::from_slice(json)
            .map_err(|error| wrong(format!("expected a JSON object from token to id: {error}")))?;
        Self::new(ids, place)
    }

    /// A vocabulary from its tokens; `place` names it in errors.
    pub(super) fn new(ids: HashMap<String, u32>, place: &str) -> Result<Self, DataError> {
        let wrong = |problem| DataError::Vocabulary { place: place.to_owned(), problem };
        let tokens = in_order_of_id(&ids).map_err(wrong)?;
        let letters = byte_letters();
        require_every_byte(&ids, &letters).map_err(wrong)?;
        let bytes: HashMap<char, u8> = letters.into_iter().zip(0..=u8::MAX).collect();
        let pieces = tokens.into_iter().map(|token| piece(token, &bytes)).collect();
        Ok(Self { ids: ids.into_iter().collect(), pieces })
    }

    /// Parses a `merges.txt` for this vocabulary, in order of rank; `place` names it in errors.
    pub(super) fn parse_merges(&self, text: &[u8], place: &str) -> Result<Merges, DataError> {
        let wrong = |line, problem| DataError::Merges { place: place.to_owned(), line, problem };
        let text = std::str::from_utf8(text).map_err(|error| {
            let lines_before = text[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            wrong(lines_before + 1, "expected UTF-8".to_owned())
        })?;
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.starts_with("#version"));
        lines.map(|(line, merge)| self.parse_merge(merge).map_err(|e| wrong(line, e))).collect()
    }

    fn parse_merge(&self, merge: &str) -> Result<(String, String), String> {
        let (left, right) = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
            .ok_or_else(|| format!("expected two tokens with one space between them: `{merge}`"))?;
        let merged = [left, right].concat();
        match [left, right, &merged].into_iter().find(|token| !self.ids.contains_key(*token)) {
            Some(token) => Err(format!("`{token}` is not in the vocabulary")),
            None => Ok((left.to_owned(), right.to_owned())),
        }
    }
}

/// The tokens by id, if the ids are exactly `0..n`.
fn in_order_of_id(ids: &HashMap<String, u32>) -> Result<Vec<&str>, String> {
    let mut tokens: Vec<(u32, &str)> =
        ids.iter().map(|(token, &id)| (id, token.as_str())).collect();
    tokens.sort_unstable();
    match tokens.iter().zip(0..).find(|((id, _), expected)| id != expected) {
        Some(((id, token), expected)) => Err(format!(
            "expected each id from 0 to {} once, but `{token}` has {id} in place of {expected}",
            tokens.len() - 1
        )),
        None => Ok(tokens.into_iter().map(|(_, token)| token).collect()),
    }
}

fn require_every_byte(ids: &HashMap<String, u32>, letters: &[char; 256]) -> Result<(), String> {
    let mut bytes = letters.iter().zip(0_u8..=u8::MAX);
    match bytes.find(|(letter, _)| !ids.contains_key(letter.to_string().as_str())) {
        Some((letter, byte)) => Err(format!(
            "not a byte-level vocabulary: byte {byte:#04x} needs the token `{letter}`, \
             which is missing"
        )),
        None => Ok(()),
    }
}

/// The bytes of a token; one that is not in the 256 letters is a special token and is its own text.
fn piece(token: &str, bytes: &HashMap<char, u8>) -> Box<[u8]> {
    let spelled: Option<Box<[u8]>> =
        token.chars().map(|letter| bytes.get(&letter).copied()).collect();
    spelled.unwrap_or_else(|| token.as_bytes().into())
}

/// GPT-2's letter for each byte: printable Latin-1 stands for itself, the other 68 bytes take the
/// characters from U+0100 on, in order (`bytes_to_unicode` in `encoder.py` of `openai/gpt-2`).
pub(super) fn byte_letters() -> [char; 256] {
    let mut spare = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(printable),
        _ => spare.next().unwrap_or(char::REPLACEMENT_CHARACTER),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 256 letters with ids in order of bytes, then `extra`.
    fn vocab_json(extra: &[&str]) -> String {
        let letters = byte_letters().map(String::from);
        let tokens = letters.iter().map(String::as_str).chain(extra.iter().copied());
        let ids: HashMap<&str, u32> = tokens.zip(0..).collect();
        serde_json::to_string(&ids).unwrap()
    }

    fn vocab_error(json: &str) -> String {
        BpeVocab::parse(json.as_bytes(), "v.json").unwrap_err().to_string()
    }

    fn merges_error(merges: &[u8]) -> String {
        let vocab = BpeVocab::parse(vocab_json(&["ab"]).as_bytes(), "v.json").unwrap();
        vocab.parse_merges(merges, "m.txt").unwrap_err().to_string()
    }

    #[test]
    fn letters_are_those_of_gpt2() {
        let letters = byte_letters();
        assert_eq!(
            [b' ', b'\n', 0, 0xAD].map(|byte| letters[usize::from(byte)]),
            ['\u{120}', '\u{10a}', '\u{100}', '\u{143}']
        );
        assert_eq!([b'A', 0xE9].map(|byte| letters[usize::from(byte)]), ['A', '\u{e9}']);
    }

    #[test]
    fn pieces_are_bytes_and_special_tokens_their_text() {
        let json = vocab_json(&["\u{120}a", "<a b>"]);
        let vocab = BpeVocab::parse(json.as_bytes(), "v.json").unwrap();
        assert_eq!(*vocab.pieces[256], *b" a");
        assert_eq!(*vocab.pieces[257], *b"<a b>");
        assert_eq!(*vocab.pieces[0xFF], [0xFF]);
    }

    #[test]
    fn a_vocabulary_that_is_no_table_of_ids_is_refused() {
        let problem = "BPE vocabulary `v.json`: expected a JSON object from token to id: ";
        for json in ["", "[1]", r#"{"a": "b"}"#, r#"{"a": -1}"#, r#"{"a": 4294967296}"#] {
            let error = vocab_error(json);
            assert!(error.starts_with(problem), "{json}: {error}");
        }
    }

    #[test]
    fn ids_with_a_gap_are_refused() {
        let expected = "BPE vocabulary `v.json`: expected each id from 0 to 1 once, \
                        but `b` has 2 in place of 1";
        assert_eq!(vocab_error(r#"{"a": 0, "b": 2}"#), expected);
    }

    #[test]
    fn a_vocabulary_without_all_bytes_is_refused() {
        let expected = "BPE vocabulary `v.json`: not a byte-level vocabulary: \
                        byte 0x00 needs the token `\u{100}`, which is missing";
        assert_eq!(vocab_error(r#"{"a": 0, "b": 1}"#), expected);
        assert_eq!(vocab_error("{}"), expected);
    }

    #[test]
    fn merges_keep_their_order_and_skip_the_header() {
        let vocab = BpeVocab::parse(vocab_json(&["ab", "abc"]).as_bytes(), "v.json").unwrap();
        let merges = vocab.parse_merges(b"#version: 0.2\nab c\r\na b\n", "m.txt").unwrap();
        assert_eq!(merges, [("ab".into(), "c".into()), ("a".into(), "b".into())]);
    }

    #[test]
    fn merges_that_are_no_pair_are_refused() {
        for line in ["a", "a b c", " a", "a ", ""] {
            let expected = format!(
                "BPE merges `m.txt`, line 2: expected two tokens with one space between them: \
                 `{line}`"
            );
            assert_eq!(merges_error(format!("a b\n{line}\n").as_bytes()), expected);
        }
    }

    #[test]
    fn merges_out_of_vocabulary_are_refused() {
        let expected = "BPE merges `m.txt`, line 2: `ba` is not in the vocabulary";
        assert_eq!(merges_error(b"a b\nb a"), expected);
        let expected = "BPE merges `m.txt`, line 1: `abb` is not in the vocabulary";
        assert_eq!(merges_error(b"abb a"), expected);
    }

    #[test]
    fn merges_that_are_not_utf8_are_refused() {
        let expected = "BPE merges `m.txt`, line 2: expected UTF-8";
        assert_eq!(merges_error(b"a b\na \xFF\n"), expected);
    }
}
