//! Word-level tokens with the conventions of WikiText (Merity et al. 2016, "Pointer Sentinel
//! Mixture Models"): a vocabulary of the training text alone, `<unk>` for what is not in it, and
//! `<eos>` at the end of every line, empty lines included.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

/// The id of every word outside the vocabulary.
const UNK: u32 = 0;
/// The id of a line's end.
const EOS: u32 = 1;
/// The spellings of the two; a text that contains them means these ids (WikiText has `<unk>`).
const SPECIAL: [&str; 2] = ["<unk>", "<eos>"];

/// A word vocabulary: id 0 is `<unk>`, id 1 is `<eos>`, then words from the most to the least
/// frequent, equally frequent ones in order of their bytes.
#[derive(Clone)]
pub struct WordTokenizer {
    words: Vec<String>,
    ids: HashMap<String, u32>,
    min_count: usize,
    split_punctuation: bool,
}

impl fmt::Debug for WordTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description())
    }
}

impl WordTokenizer {
    /// The vocabulary of the words that occur at least `min_count` times in the text.
    pub(super) fn new(train: &str, min_count: usize, split_punctuation: bool) -> Self {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for word in words(train, split_punctuation) {
            *counts.entry(word).or_default() += 1;
        }
        counts.retain(|word, count| *count >= min_count && !SPECIAL.contains(word));
        let mut ranked: Vec<(&str, usize)> = counts.into_iter().collect();
        ranked.sort_unstable_by_key(|&(word, count)| (Reverse(count), word));
        let ranked = ranked.into_iter().map(|(word, _)| word);
        let words: Vec<String> = SPECIAL.into_iter().chain(ranked).map(str::to_owned).collect();
        let ids = words.iter().cloned().zip(0..).collect();
        Self { words, ids, min_count, split_punctuation }
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.words.len()
    }

    pub(super) fn description(&self) -> String {
        let Self { words, min_count, split_punctuation, .. } = self;
        let punctuation = if *split_punctuation { ", punctuation split off" } else { "" };
        format!("words ({} ids: at least {min_count} in train{punctuation})", words.len())
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        text.lines()
            .flat_map(|line| words(line, self.split_punctuation).map(|w| self.id(w)).chain([EOS]))
            .collect()
    }

    /// The bytes of each id of a text.
    pub(super) fn spans(&self, text: &str) -> Vec<Range<usize>> {
        let place = |part: &str| part.as_ptr() as usize - text.as_ptr() as usize;
        let line = |line| {
            let words = words(line, self.split_punctuation);
            let end = place(line) + line.len();
            let spans = words.map(|word| place(word)..place(word) + word.len());
            spans.chain(std::iter::once(end..(end + 1).min(text.len())))
        };
        text.lines().flat_map(line).collect()
    }

    fn id(&self, word: &str) -> u32 {
        self.ids.get(word).copied().unwrap_or(UNK)
    }

    /// Words with a space between them, lines with a line end after them.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let lines = ids.split_inclusive(|&id| id == EOS);
        lines.map(|line| self.decode_line(line)).collect()
    }

    fn decode_line(&self, ids: &[u32]) -> String {
        let (ids, end) = match ids {
            [words @ .., EOS] => (words, "\n"),
            words => (words, ""),
        };
        let words: Vec<&str> = ids.iter().map(|&id| self.words[id as usize].as_str()).collect();
        words.join(" ") + end
    }
}

/// The words of a text: what stands between white space, or with `split_punctuation` each run of
/// letters, digits and `_` and each other character.
fn words(text: &str, split_punctuation: bool) -> impl Iterator<Item = &str> {
    let mut rest = text.trim_start();
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = if split_punctuation && is_punctuation(first) {
            first.len_utf8()
        } else {
            let ends = |c: char| c.is_whitespace() || split_punctuation && is_punctuation(c);
            rest.find(ends).unwrap_or(rest.len())
        };
        let (word, tail) = rest.split_at(end);
        rest = tail.trim_start();
        Some(word)
    })
}

/// Neither part of a word nor white space.
fn is_punctuation(c: char) -> bool {
    !(c.is_alphanumeric() || c == '_' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_between_white_space() {
        let text = " a  b,c\t\nd. ";
        assert_eq!(words(text, false).collect::<Vec<_>>(), ["a", "b,c", "d."]);
        assert_eq!(words(text, true).collect::<Vec<_>>(), ["a", "b", ",", "c", "d", "."]);
        assert_eq!(
            words("x_1 n't \u{e9}t\u{e9}\u{2014}.", true).collect::<Vec<_>>(),
            ["x_1", "n", "'", "t", "\u{e9}t\u{e9}", "\u{2014}", "."]
        );
    }

    #[test]
    fn ids_go_from_frequent_to_rare_and_then_by_bytes() {
        let tokenizer = WordTokenizer::new("c b b a a\nd d d <unk> e <eos>", 2, false);
        assert_eq!(tokenizer.words, ["<unk>", "<eos>", "d", "a", "b"]);
    }

    #[test]
    fn every_line_ends_in_eos_even_an_empty_one() {
        let tokenizer = WordTokenizer::new("a b", 1, false);
        assert_eq!(tokenizer.encode("a b\n\nb"), [2, 3, EOS, EOS, 3, EOS]);
        assert_eq!(tokenizer.encode("a\n"), [2, EOS]);
    }

    #[test]
    fn spans_by_hand() {
        let text = "a b,\r\n\n b";
        let tokenizer = WordTokenizer::new(text, 1, true);
        let spans = tokenizer.spans(text);
        assert_eq!(spans, [0..1, 2..3, 3..4, 4..5, 6..7, 8..9, 9..9]);
        assert_eq!(spans.len(), tokenizer.encode(text).len());
    }

    #[test]
    fn words_out_of_vocabulary_are_unk_as_is_the_word_unk_itself() {
        let tokenizer = WordTokenizer::new("a a <unk> <unk> <unk> b", 2, false);
        assert_eq!(tokenizer.vocab_size(), 3);
        assert_eq!(tokenizer.encode("a b <unk> c"), [2, UNK, UNK, UNK, EOS]);
    }

    #[test]
    fn a_minimum_of_zero_or_one_keeps_every_word() {
        for min_count in [0, 1] {
            assert_eq!(WordTokenizer::new("a b b", min_count, false).vocab_size(), 4);
        }
    }

    #[test]
    fn decoding_joins_words_by_spaces_and_lines_by_line_ends() {
        let tokenizer = WordTokenizer::new("a b c", 1, false);
        assert_eq!(tokenizer.decode(&tokenizer.encode("a  b\n\n c")), "a b\n\nc\n");
        assert_eq!(tokenizer.decode(&[2, UNK]), "a <unk>");
        assert_eq!(tokenizer.decode(&[]), "");
    }
}
