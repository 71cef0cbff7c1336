//! What an attack takes for a word, and which words it leaves alone.

use std::ops::Range;

/// The English stop words of NLTK, which TextAttack protects (179; written down from memory of the list, not
/// compared with the file).
const STOP_WORDS: &str = "i me my myself we our ours ourselves you you're you've you'll you'd your yours \
    yourself yourselves he him his himself she she's her hers herself it it's its itself they them their \
    theirs themselves what which who whom this that that'll these those am is are was were be been being have \
    has had having do does did doing a an the and but if or because as until while of at by for with about \
    against between into through during before after above below to from up down in out on off over under \
    again further then once here there when where why how all any both each few more most other some such no \
    nor not only own same so than too very s t can will just don don't should should've now d ll m o re ve y \
    ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't \
    ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won \
    won't wouldn wouldn't";

/// Whether the attack of the papers leaves a word alone, whatever its case.
pub(super) fn is_stop_word(word: &str) -> bool {
    let word = word.to_lowercase();
    STOP_WORDS.split_ascii_whitespace().any(|stop| stop == word)
}

/// Places of the words of a text: letters and digits, and after the first one also `'`, `-`, `_`, `*` and
/// `@`, as in TextAttack (rule from memory of its code). Punctuation around a word stays when it is changed.
pub(super) fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(char::is_alphanumeric)?;
        let inside = |c: char| c.is_alphanumeric() || "'-_*@".contains(c);
        let end = text[start..].find(|c| !inside(c)).map_or(text.len(), |length| start + length);
        rest = end;
        Some(start..end)
    })
}

/// `word` in the case of `like`: all capitals, a capital first, or as it is.
pub(super) fn in_case_of(like: &str, word: &str) -> String {
    let upper = |c: char| c.is_uppercase();
    let letters = || like.chars().filter(|c| c.is_alphabetic());
    if letters().count() > 1 && letters().all(upper) {
        return word.to_uppercase();
    }
    let mut rest = word.chars();
    match rest.next() {
        Some(first) if like.starts_with(upper) => first.to_uppercase().chain(rest).collect(),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_by_hand() {
        let found = |text: &'static str| -> Vec<&str> { words(text).map(|w| &text[w]).collect() };
        assert_eq!(
            found("It's (well-known), 3rd \u{e9}t\u{e9}."),
            ["It's", "well-known", "3rd", "\u{e9}t\u{e9}"]
        );
        assert_eq!(found("@-@ <unk> 'tis a-\n"), ["unk", "tis", "a-"]);
        assert!(found(" ... ").is_empty());
    }

    #[test]
    fn stop_words_in_any_case() {
        assert_eq!(STOP_WORDS.split_ascii_whitespace().count(), 179);
        assert!(is_stop_word("The") && is_stop_word("wouldn't") && !is_stop_word("nation"));
    }

    #[test]
    fn case_is_kept() {
        let cases = ["Big", "BIG", "big", "I"].map(|like| in_case_of(like, "large"));
        assert_eq!(cases, ["Large", "LARGE", "large", "Large"]);
    }
}
