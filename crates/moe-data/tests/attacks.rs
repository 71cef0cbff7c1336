//! Attacked texts as tokens: windows that begin together, and tokens that are the same.

use moe_data::corrupt::TextAttack;
use moe_data::{Corpus, Split, TokenStream, TokenizerSpec};

const TEST: &str = "war and peace, war or peace\nthe people and a nation of laws\n";

fn stream(spec: &TokenizerSpec) -> TokenStream {
    let train = "war and peace , the people or a nation of laws AAA\n".repeat(3);
    let corpus = Corpus::from_bytes("c", train.as_bytes(), b"war", TEST.as_bytes()).unwrap();
    TokenStream::new(&corpus, spec).unwrap()
}

fn windows(stream: &TokenStream, len: usize) -> Vec<Vec<i64>> {
    let batches = stream.eval_batches(Split::Test, 2, len).unwrap();
    batches.flat_map(|b| b.x_bt.outer_iter().map(|row| row.to_vec()).collect::<Vec<_>>()).collect()
}

fn attack(stream: &TokenStream, attack: TextAttack, rate: f64, len: usize) -> moe_data::Attacked {
    stream.attacked((Split::Test, TEST.as_bytes()), (attack, rate, 5), len).unwrap()
}

const WORDS: TokenizerSpec = TokenizerSpec::Word { min_count: 1, split_punctuation: true };
const SPECS: [TokenizerSpec; 3] = [TokenizerSpec::Byte, WORDS, TokenizerSpec::Bpe];

#[test]
fn the_same_tokens_are_the_same() {
    for spec in SPECS {
        let clean = stream(&spec);
        for kind in TextAttack::ALL {
            for (rate, len) in [(0.3, 4), (1.0, 7)] {
                let done = attack(&clean, kind, rate, len);
                let (before, after) = (windows(&clean, len), windows(&done.stream, len));
                assert_eq!(done.alignment.windows(), after.len(), "{spec:?} {kind:?}");
                let mut pairs = 0;
                for window in 0..after.len().min(before.len()) {
                    for (i, j) in done.alignment.pairs(window) {
                        assert_eq!(before[window][i], after[window][j], "{spec:?} {kind:?} {rate}");
                        pairs += 1;
                    }
                }
                assert!(pairs > 0, "{spec:?} {kind:?} {rate}");
            }
        }
    }
}

#[test]
fn without_changes_every_token_is_its_own() {
    for spec in SPECS {
        let clean = stream(&spec);
        let done = attack(&clean, TextAttack::Insertion, 0.0, 4);
        assert!(done.alignment.is_in_place());
        assert_eq!(windows(&clean, 4), windows(&done.stream, 4));
        let whole: Vec<_> = (0..4).map(|place| (place, place)).collect();
        assert_eq!(done.alignment.pairs(1).collect::<Vec<_>>(), whole);
    }
}

/// Words stay words under a swap, and bytes stay bytes under letters mistaken; not the other way round.
#[test]
fn what_keeps_the_number_of_tokens_keeps_their_places() {
    let in_place = |spec, kind| attack(&stream(&spec), kind, 0.5, 4).alignment.is_in_place();
    assert!(in_place(WORDS, TextAttack::WordSwap));
    assert!(in_place(WORDS, TextAttack::Characters));
    assert!(in_place(TokenizerSpec::Byte, TextAttack::Characters));
    assert!(!in_place(TokenizerSpec::Byte, TextAttack::WordSwap));
    assert!(!in_place(WORDS, TextAttack::Insertion));
}

/// At rate 1 on words: "AAA war AAA and AAA peace , AAA war ...". The second clean window of 4 tokens begins
/// at `war`, of which the insertion stands before; the window begins at the word itself.
#[test]
fn windows_begin_where_the_clean_ones_begin() {
    let clean = stream(&WORDS);
    let done = attack(&clean, TextAttack::Insertion, 1.0, 4);
    let (before, after) = (windows(&clean, 4), windows(&done.stream, 4));
    for (clean, attacked) in before.iter().zip(&after) {
        assert_eq!(clean[0], attacked[0]);
    }
    // war and peace , and war AAA and AAA: places 0 and 2.
    assert_eq!(done.alignment.pairs(0).collect::<Vec<_>>(), [(0, 0), (1, 2)]);
}

#[test]
fn an_attack_reads_utf8() {
    let corpus = Corpus::from_bytes("c", b"abc", b"abc", b"a\xffc").unwrap();
    let stream = TokenStream::new(&corpus, &TokenizerSpec::Byte).unwrap();
    let what = (TextAttack::WordSwap, 0.5, 0);
    let error = stream.attacked((Split::Test, b"a\xffc"), what, 1).unwrap_err().to_string();
    assert!(error.contains("invalid UTF-8 at byte offset 1; the `attack` tokeniser"), "{error}");
}
