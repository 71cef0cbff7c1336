//! Attacks on text: words swapped for `AAA`, for synonyms, letters mistaken, and `AAA` put in.
//!
//! The word swap is that of the MomentumSMoE and ACMoE papers (arXiv 2410.14574, 2502.15315), whose released
//! code takes TextAttack's augmenter; the insertion of `AAA` is USMoE's. A model's vocabulary stays that of
//! the clean training text, so a word tokeniser reads `AAA` as `<unk>`; attacked words are inputs and targets.

use std::ops::Range;

use moe_core::metrics::WordSwap;
use rand_chacha::rand_core::Rng;

use super::draw::{draws, uniform};
use super::synonyms::Synonyms;
use super::words::{in_case_of, is_stop_word, words};
use crate::error::DataError;
use crate::image::below;

/// What the papers' attacks write.
const AAA: &str = "AAA";

/// What is done to a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextAttack {
    /// In every line `max(int(rate n), 1)` of its `n` words become `AAA`, at most those that are no stop
    /// words: the papers' attack, with rate 0.025.
    WordSwap,
    /// Each word that WordNet has a synonym for becomes one of them with probability `rate`, in its case.
    Synonyms,
    /// Each letter a-z or A-Z becomes another one, in its case, with probability `rate`. The number of bytes
    /// stays.
    Characters,
    /// `AAA ` is put before each word with probability `rate`.
    Insertion,
}

/// A text after an attack, and what of it is as before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttackedText {
    /// The text.
    pub text: String,
    /// Places where the attack could have done something: words, or letters.
    pub places: usize,
    /// Places where it did.
    pub changed: usize,
    kept: Vec<Kept>,
}

/// A stretch of text that the attack left as it was; an empty one is where a replacement begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Its first byte in the clean text.
    pub(super) clean: usize,
    /// Its first byte in the attacked text.
    pub(super) attacked: usize,
    /// Its length.
    pub(super) bytes: usize,
}

impl TextAttack {
    /// All attacks.
    pub const ALL: [Self; 4] = [Self::WordSwap, Self::Synonyms, Self::Characters, Self::Insertion];

    /// The name on command lines and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::WordSwap => "word-swap",
            Self::Synonyms => "synonyms",
            Self::Characters => "characters",
            Self::Insertion => "insertion",
        }
    }

    /// Attacks a text: a function of the text, the rate and the seed, and nested in the rate.
    ///
    /// # Errors
    ///
    /// [`DataError::AttackRate`] for a rate outside 0..=1.
    pub fn apply(self, text: &str, rate: f64, seed: u64) -> Result<AttackedText, DataError> {
        if !(0.0..=1.0).contains(&rate) {
            return Err(DataError::AttackRate { attack: self.name(), rate });
        }
        let mut editor = Editor::new(text);
        match self {
            Self::WordSwap => swap_words(&mut editor, rate, seed),
            Self::Synonyms => swap_synonyms(&mut editor, rate, seed),
            Self::Characters => mistake_letters(&mut editor, rate, seed),
            Self::Insertion => insert(&mut editor, rate, seed),
        }
        Ok(editor.finish())
    }
}

impl AttackedText {
    /// What the attack left as it was, in order.
    pub(super) fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Where a byte of the clean text is now; for one that was replaced, where its replacement begins.
    pub(super) fn moved(&self, clean: usize) -> usize {
        let before = self.kept.partition_point(|kept| kept.clean <= clean);
        let Some(kept) = before.checked_sub(1).map(|index| self.kept[index]) else { return 0 };
        kept.attacked + (clean - kept.clean).min(kept.bytes)
    }
}

/// A text while it is edited from front to back.
struct Editor<'a> {
    clean: &'a str,
    at: usize,
    out: AttackedText,
}

impl<'a> Editor<'a> {
    fn new(clean: &'a str) -> Self {
        let text = String::with_capacity(clean.len() + clean.len() / 8);
        Self { clean, at: 0, out: AttackedText { text, places: 0, changed: 0, kept: Vec::new() } }
    }

    fn keep_to(&mut self, end: usize) {
        if end > self.at {
            let attacked = self.out.text.len();
            self.out.kept.push(Kept { clean: self.at, attacked, bytes: end - self.at });
            self.out.text.push_str(&self.clean[self.at..end]);
            self.at = end;
        }
    }

    fn replace(&mut self, range: Range<usize>, with: &str) {
        self.keep_to(range.start);
        // Nothing is kept here, but this is where the replacement begins.
        let (clean, attacked) = (range.start, self.out.text.len());
        self.out.kept.push(Kept { clean, attacked, bytes: 0 });
        self.out.text.push_str(with);
        self.out.changed += 1;
        self.at = range.end;
    }

    fn finish(mut self) -> AttackedText {
        self.keep_to(self.clean.len());
        self.out
    }
}

/// Lines and their words are numbered through the whole text, so that a word's draw does not depend on others.
fn swap_words(editor: &mut Editor<'_>, rate: f64, seed: u64) {
    let (mut number, mut line_start) = (0, 0);
    for line in editor.clean.split_inclusive('\n') {
        let word_n: Vec<Range<usize>> = words(line).collect();
        let protected_n: Vec<bool> =
            word_n.iter().map(|w| is_stop_word(&line[w.clone()])).collect();
        let draw_n: Vec<f64> = (number..)
            .take(word_n.len())
            .map(|n| uniform(&mut draws(seed, "word-swap/1", n)))
            .collect();
        let index_n: Vec<usize> = (0..word_n.len()).collect();
        // Which words become the replacement is all that is wanted of it.
        let swap = WordSwap::of(&index_n, 0, rate, Some(&protected_n), Some(&draw_n))
            .expect("as many draws as words");
        for (word, _) in word_n.iter().zip(&swap.swapped_n).filter(|(_, swapped)| **swapped) {
            editor.replace(line_start + word.start..line_start + word.end, AAA);
        }
        editor.out.places += word_n.len();
        (number, line_start) = (number + word_n.len() as u64, line_start + line.len());
    }
}

fn swap_synonyms(editor: &mut Editor<'_>, rate: f64, seed: u64) {
    let table = Synonyms::read();
    for (number, word) in (0..).zip(words(editor.clean)) {
        let old = &editor.clean[word.clone()];
        let choices = table.of(old);
        if choices.is_empty() {
            continue;
        }
        editor.out.places += 1;
        let mut generator = draws(seed, "synonyms/1", number);
        if uniform(&mut generator) < rate {
            let new = &choices[below(generator.next_u64(), choices.len())];
            editor.replace(word, &in_case_of(old, new));
        }
    }
}

fn mistake_letters(editor: &mut Editor<'_>, rate: f64, seed: u64) {
    for (place, letter) in editor.clean.bytes().enumerate() {
        if !letter.is_ascii_alphabetic() {
            continue;
        }
        editor.out.places += 1;
        let mut generator = draws(seed, "characters/1", place as u64);
        if uniform(&mut generator) < rate {
            let first = if letter.is_ascii_lowercase() { b'a' } else { b'A' };
            // One of the 25 other letters.
            let shift = 1 + below(generator.next_u64(), 25) as u8;
            let new = char::from(first + (letter - first + shift) % 26);
            editor.replace(place..place + 1, new.encode_utf8(&mut [0; 4]));
        }
    }
}

fn insert(editor: &mut Editor<'_>, rate: f64, seed: u64) {
    for (number, word) in (0..).zip(words(editor.clean)) {
        editor.out.places += 1;
        if uniform(&mut draws(seed, "insertion/1", number)) < rate {
            editor.replace(word.start..word.start, "AAA ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "The nation, and its LAWS; prosper in Peace.\n\nI am.\n";

    fn attacked(attack: TextAttack, text: &str, rate: f64) -> AttackedText {
        attack.apply(text, rate, 3).unwrap()
    }

    /// At rate 1 every open word is swapped: of line 1 nation, LAWS, prosper and Peace; the empty line has no
    /// word, and the last one only stop words.
    #[test]
    fn word_swap_by_hand() {
        let swap = attacked(TextAttack::WordSwap, LINE, 1.0);
        assert_eq!(swap.text, "The AAA, and its AAA; AAA in AAA.\n\nI am.\n");
        assert_eq!((swap.places, swap.changed), (10, 4));
        // int(0.3 * 8) = 2 of the first line, and at rate 0 still one.
        assert_eq!(attacked(TextAttack::WordSwap, LINE, 0.3).changed, 2);
        assert_eq!(attacked(TextAttack::WordSwap, LINE, 0.0).changed, 1);
    }

    #[test]
    fn synonyms_by_hand() {
        // WordNet has two words for `abate`, and one for `belong`.
        let swap = attacked(TextAttack::Synonyms, "Abate, zzz BELONG", 1.0);
        assert!(["Slack, zzz GO", "Slake, zzz GO"].contains(&swap.text.as_str()), "{}", swap.text);
        assert_eq!((swap.places, swap.changed), (2, 2));
        assert_eq!(attacked(TextAttack::Synonyms, LINE, 0.0).text, LINE);
    }

    #[test]
    fn letters_become_other_letters_in_their_case() {
        // Long enough that a letter that may stay would.
        let text = LINE.repeat(50);
        let noise = attacked(TextAttack::Characters, &text, 1.0);
        assert_eq!(noise.text.len(), text.len());
        for (new, old) in noise.text.chars().zip(text.chars()) {
            assert_eq!(new != old, old.is_ascii_alphabetic(), "{old} {new}");
            assert_eq!(
                (new.is_uppercase(), new.is_lowercase()),
                (old.is_uppercase(), old.is_lowercase())
            );
        }
        assert_eq!(attacked(TextAttack::Characters, "\u{e9}t\u{e9} 12", 1.0).changed, 1);
    }

    #[test]
    fn insertion_by_hand() {
        let more = attacked(TextAttack::Insertion, "We, the\npeople", 1.0);
        assert_eq!(more.text, "AAA We, AAA the\nAAA people");
        assert_eq!((more.places, more.changed), (3, 3));
    }

    /// Of 20,000 places at rate r, the changed ones have the deviation sqrt(20,000 r (1 - r)).
    #[test]
    fn rates_hold_on_many_places() {
        let text = "peace ".repeat(20_000);
        for rate in [0.01, 0.1, 0.5] {
            for attack in [TextAttack::Synonyms, TextAttack::Insertion, TextAttack::Characters] {
                let done = attacked(attack, &text, rate);
                let n = done.places as f64;
                let off = done.changed as f64 - n * rate;
                assert!(
                    off.abs() < 5.0 * (n * rate * (1.0 - rate)).sqrt(),
                    "{attack:?} {rate}: {off}"
                );
            }
            // The share of a line is exact.
            assert_eq!(attacked(TextAttack::WordSwap, &text, rate).changed, (2e4 * rate) as usize);
        }
    }

    #[test]
    fn a_lower_rate_changes_a_part_of_the_same_places() {
        let text = "peace and prosperity for the nation ".repeat(200);
        let place = |attack: TextAttack, rate| {
            let done = attacked(attack, &text, rate);
            done.kept.iter().map(|kept| kept.clean..kept.clean + kept.bytes).collect::<Vec<_>>()
        };
        for attack in TextAttack::ALL {
            let (few, many) = (place(attack, 0.05), place(attack, 0.3));
            let within = |part: &Range<usize>| {
                few.iter().any(|whole| whole.start <= part.start && part.end <= whole.end)
            };
            assert!(many.iter().all(within) && few.len() < many.len(), "{attack:?}");
        }
    }

    #[test]
    fn seeds_change_the_text_and_nothing_else_does() {
        let text = "peace and prosperity ".repeat(100);
        for attack in TextAttack::ALL {
            let of = |seed| attack.apply(&text, 0.2, seed).unwrap();
            assert_eq!(of(1), of(1));
            assert_ne!(of(1).text, of(2).text, "{attack:?}");
            // A text that goes on is attacked as before.
            if attack != TextAttack::WordSwap {
                let longer = attack.apply(&text.repeat(2), 0.2, 1).unwrap();
                assert!(longer.text.starts_with(&of(1).text), "{attack:?}");
            }
        }
    }

    #[test]
    fn bytes_are_found_again() {
        let swap = attacked(TextAttack::Insertion, "We the", 1.0);
        // "AAA We AAA the": `W` from 0 to 4, `t` from 3 to 11; the space before it from 2 to 6.
        assert_eq!([0, 2, 3, 5].map(|clean| swap.moved(clean)), [4, 6, 11, 13]);
        let swap = attacked(TextAttack::WordSwap, "nation", 1.0);
        assert_eq!((swap.moved(0), swap.moved(4)), (0, 0));
        for kept in attacked(TextAttack::WordSwap, LINE, 1.0).kept() {
            let clean = &LINE[kept.clean..kept.clean + kept.bytes];
            let text = attacked(TextAttack::WordSwap, LINE, 1.0).text;
            assert_eq!(&text[kept.attacked..kept.attacked + kept.bytes], clean);
        }
    }

    #[test]
    fn rates_beyond_all_are_refused() {
        let error = TextAttack::WordSwap.apply(LINE, 1.5, 0).unwrap_err().to_string();
        assert_eq!(error, "attack word-swap: rate 1.5 is outside 0..=1");
        assert!(TextAttack::Insertion.apply(LINE, f64::NAN, 0).is_err());
    }
}
