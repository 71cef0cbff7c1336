//! How recipes and command lines name a tokeniser.

use moe_data::TokenizerSpec;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    tokenizer: TokenizerSpec,
}

fn parse(value: &str) -> Result<TokenizerSpec, String> {
    let recipe: Result<Recipe, _> = toml::from_str(&format!("tokenizer = {value}"));
    recipe.map(|recipe| recipe.tokenizer).map_err(|error| error.message().to_owned())
}

fn bpe_files() -> TokenizerSpec {
    TokenizerSpec::BpeFiles { vocab: "v.json".into(), merges: "m.txt".into() }
}

#[test]
fn names_and_tables() {
    let known = [
        (r#""byte""#, TokenizerSpec::Byte),
        (r#""word""#, TokenizerSpec::WORD),
        (r#""bpe""#, TokenizerSpec::Bpe),
        (r#"{ kind = "byte" }"#, TokenizerSpec::Byte),
        (r#"{ kind = "word" }"#, TokenizerSpec::WORD),
        (
            r#"{ kind = "word", min_count = 1, split_punctuation = true }"#,
            TokenizerSpec::Word { min_count: 1, split_punctuation: true },
        ),
        (r#"{ kind = "train-bpe", vocab = 300 }"#, TokenizerSpec::TrainBpe { vocab: 300 }),
        (r#"{ kind = "bpe-files", vocab = "v.json", merges = "m.txt" }"#, bpe_files()),
    ];
    for (value, spec) in known {
        assert_eq!(parse(value).unwrap(), spec, "{value}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for tokenizer in [
        TokenizerSpec::Byte,
        TokenizerSpec::WORD,
        TokenizerSpec::Bpe,
        TokenizerSpec::TrainBpe { vocab: 9 },
        bpe_files(),
    ] {
        let recipe = Recipe { tokenizer };
        let written = toml::to_string(&recipe).unwrap();
        assert_eq!(toml::from_str::<Recipe>(&written).unwrap(), recipe, "{written}");
    }
}

#[test]
fn unknown_names_and_keys_are_refused() {
    let refused = [
        (
            r#""bytes""#,
            "unknown tokeniser `bytes`: expected `byte`, `word` or `bpe`, or a table with `kind`",
        ),
        ("3", "expected a tokeniser: `byte`, `word`, `bpe`, or a table with `kind`"),
        (r#"{ kind = "word", min-count = 3 }"#, "unknown field `min-count`"),
        (r#"{ kind = "byte", min_count = 3 }"#, "unknown field `min_count`"),
        (r#"{ kind = "bpe", vocab = "v.json" }"#, "unknown field `vocab`"),
        (r#"{ kind = "bpe-files", vocab = "v.json" }"#, "missing field `merges`"),
        (r#"{ min_count = 3 }"#, "missing field `kind`"),
        (r#"{ kind = "bytes" }"#, "unknown variant `bytes`"),
    ];
    for (value, expected) in refused {
        let error = parse(value).unwrap_err();
        assert!(error.contains(expected), "{value}: {error}");
    }
}
