//! Words of one meaning: WordNet's, from a table in the crate (`assets/README.md` has source and licence).

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;

/// A line a word: the word, a tab, and what stands for it in some meaning, with spaces between.
const TABLE_GZ: &[u8] = include_bytes!("../../assets/wordnet-swaps.tsv.gz");

/// The table, read.
pub(super) struct Synonyms(HashMap<String, Vec<String>>);

fn entry(line: &str) -> Option<(String, Vec<String>)> {
    let (word, others) = line.split_once('\t')?;
    Some((word.to_owned(), others.split_whitespace().map(str::to_owned).collect()))
}

impl Synonyms {
    pub(super) fn read() -> Self {
        let mut text = String::new();
        GzDecoder::new(TABLE_GZ).read_to_string(&mut text).expect("the crate's own table");
        Self(text.lines().filter_map(entry).collect())
    }

    /// What may stand for a word, whatever its case; empty for a word that is not in the table.
    pub(super) fn of(&self, word: &str) -> &[String] {
        self.0.get(&word.to_lowercase()).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let table = Synonyms::read();
        assert_eq!(table.0.len(), 11_307);
        assert!(table.0.values().all(|others| !others.is_empty()));
        assert_eq!(table.of("Abate"), ["slack", "slake"]);
        assert!(table.of("zzz").is_empty());
    }
}
