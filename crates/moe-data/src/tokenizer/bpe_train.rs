//! Learning the merges of a byte-level BPE from a text (Sennrich, Haddow and Birch 2016, arXiv 1508.07909).
//!
//! The rule and the order of ids are those of the `tokenizers` crate's trainer: letters in order of their
//! characters, then the most frequent pair, of equally frequent ones the one with the smaller ids. That
//! trainer itself is not used: where two merges spell the same token (`aa a` and `a aa`), it keeps the pair
//! twice in its queue, and which entry comes first follows the random order of its hash maps. A run has to
//! find its vocabulary again bit for bit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use tokenizers::models::bpe::{Merges, Vocab};

/// Two neighbouring tokens of a word.
type Pair = (u32, u32);

/// Words in pieces, and where each pair of pieces stands.
struct Learner {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    places: HashMap<Pair, BTreeSet<usize>>,
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
}

/// Vocabulary and merges, in order of rank, of at most `vocab` tokens (fewer where the text has no pair
/// left), from `words` with their counts, spelled in `letters`.
pub(super) fn learn(
    words: BTreeMap<String, u64>,
    letters: &[char; 256],
    vocab: usize,
) -> (Vocab, Merges) {
    let mut learner = Learner::new(words, letters);
    let mut merges = Merges::new();
    while learner.tokens.len() < vocab {
        let Some((left, right)) = learner.best() else { break };
        merges.push(learner.merge((left, right)));
    }
    (learner.ids.into_iter().collect(), merges)
}

impl Learner {
    fn new(words: BTreeMap<String, u64>, letters: &[char; 256]) -> Self {
        let mut sorted = *letters;
        sorted.sort_unstable();
        let tokens: Vec<String> = sorted.iter().map(char::to_string).collect();
        let ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let spell = |word: &str| word.chars().map(|c| ids[c.to_string().as_str()]).collect();
        let words = words.iter().map(|(word, count)| (spell(word), *count)).collect();
        let (counts, places, queue) = Default::default();
        let mut learner = Self { tokens, ids, words, counts, places, queue };
        let all = 0..learner.words.len();
        let mut touched = BTreeSet::new();
        all.for_each(|word| learner.enter(word, &mut touched));
        learner.requeue(touched);
        learner
    }

    /// The most frequent pair; what the queue says of a pair may be out of date.
    fn best(&mut self) -> Option<Pair> {
        loop {
            let (count, Reverse(pair)) = self.queue.pop()?;
            if count > 0 && self.counts.get(&pair) == Some(&count) {
                return Some(pair);
            }
        }
    }

    /// Joins a pair wherever it stands; the spellings of its parts.
    fn merge(&mut self, (left, right): Pair) -> (String, String) {
        let parts = [left, right].map(|id| self.tokens[id as usize].clone());
        let id = self.id_of(parts.concat());
        let mut touched = BTreeSet::new();
        for word in self.places.remove(&(left, right)).unwrap_or_default() {
            self.leave(word, &mut touched);
            join(&mut self.words[word].0, (left, right), id);
            self.enter(word, &mut touched);
        }
        self.requeue(touched);
        let [left, right] = parts;
        (left, right)
    }

    fn id_of(&mut self, token: String) -> u32 {
        let next = self.tokens.len() as u32;
        let id = *self.ids.entry(token.clone()).or_insert(next);
        if id == next {
            self.tokens.push(token);
        }
        id
    }

    /// Counts the pairs of a word.
    fn enter(&mut self, word: usize, touched: &mut BTreeSet<Pair>) {
        let (pieces, count) = &self.words[word];
        for pair in pairs(pieces) {
            *self.counts.entry(pair).or_default() += count;
            self.places.entry(pair).or_default().insert(word);
            touched.insert(pair);
        }
    }

    /// Takes the pairs of a word out of the counts. It stays in their places, where finding nothing to join
    /// does no harm.
    fn leave(&mut self, word: usize, touched: &mut BTreeSet<Pair>) {
        let (pieces, count) = &self.words[word];
        for pair in pairs(pieces) {
            *self.counts.entry(pair).or_default() -= count;
            touched.insert(pair);
        }
    }

    fn requeue(&mut self, touched: BTreeSet<Pair>) {
        self.queue.extend(touched.into_iter().map(|pair| (self.counts[&pair], Reverse(pair))));
    }
}

fn pairs(pieces: &[u32]) -> impl Iterator<Item = Pair> {
    pieces.windows(2).map(|pair| (pair[0], pair[1]))
}

/// Puts `id` in the place of every `pair`, from the left.
fn join(pieces: &mut Vec<u32>, (left, right): Pair, id: u32) {
    let mut joined = Vec::with_capacity(pieces.len());
    let mut rest = pieces.as_slice();
    while let [first, tail @ ..] = rest {
        let here = *first == left && tail.first() == Some(&right);
        joined.push(if here { id } else { *first });
        rest = if here { &tail[1..] } else { tail };
    }
    *pieces = joined;
}

#[cfg(test)]
mod tests {
    use tokenizers::Trainer;
    use tokenizers::models::bpe::{BPE, BpeTrainer};

    use super::*;
    use crate::corpus::Corpus;
    use crate::split::Split;
    use crate::tokenizer::bpe_vocab::byte_letters;

    fn words(text: &str) -> BTreeMap<String, u64> {
        let mut words = BTreeMap::new();
        for word in text.split_whitespace() {
            *words.entry(word.to_owned()).or_default() += 1;
        }
        words
    }

    fn merged(text: &str, more: usize) -> Vec<String> {
        let (_, merges) = learn(words(text), &byte_letters(), 256 + more);
        merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect()
    }

    /// `l o` and `o w` stand 5 times each, and `l` comes before `o`; `e r` stands 3 times as `low e` does, and letters
    /// have smaller ids than what was joined.
    #[test]
    fn merges_by_hand() {
        let text = "low low lower lower lower";
        assert_eq!(merged(text, 4), ["l o", "lo w", "e r", "low er"]);
        // Nothing is left to join.
        assert_eq!(merged(text, 99).len(), 4);
    }

    /// In `aaaa` the pair `a a` stands three times and is joined twice.
    #[test]
    fn runs_are_joined_from_the_left() {
        let mut pieces = vec![1, 1, 1, 1, 1];
        join(&mut pieces, (1, 1), 7);
        assert_eq!(pieces, [7, 7, 1]);
        assert_eq!(merged("aaaa aaa", 2), ["a a", "aa a"]);
    }

    #[test]
    fn the_vocabulary_is_that_of_the_tokenizers_crate() {
        let corpus = Corpus::open("sotu").unwrap();
        let text = &corpus.text(Split::Valid)[..60_000];
        // Letters alone: every byte is its own letter, and no run of one character spells a token twice.
        let text: String = text.iter().map(|b| char::from(*b)).collect();
        let text: String = text.replace(|c: char| !c.is_ascii_alphabetic(), " ");
        let mut trainer = BpeTrainer::builder()
            .vocab_size(900)
            .show_progress(false)
            .initial_alphabet(byte_letters().into_iter().collect())
            .build();
        let split = |part: &str| Ok(part.split_whitespace().map(str::to_owned).collect());
        trainer.feed(std::iter::once(&text), split).unwrap();
        let mut theirs = BPE::default();
        trainer.train(&mut theirs).unwrap();
        let (mine, _) = learn(words(&text), &byte_letters(), 900);
        let sorted = |mut all: Vec<(u32, String)>| {
            all.sort();
            all
        };
        let mine = sorted(mine.into_iter().map(|(token, id)| (id, token)).collect());
        let theirs = sorted(theirs.get_vocab().into_iter().map(|(t, id)| (id, t)).collect());
        assert_eq!(mine, theirs);
    }
}
