//! Which tokeniser to build, as recipes and command lines write it.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// How often a word has to occur in the train split to get an id, unless the recipe says otherwise.
pub const DEFAULT_MIN_COUNT: usize = 3;

/// Which tokeniser to build.
///
/// In a recipe it is a name, or a table with `kind` and the options of that kind:
///
/// ```toml
/// tokenizer = "byte"   # or "word", or "bpe"
/// tokenizer = { kind = "word", min_count = 5, split_punctuation = true }
/// tokenizer = { kind = "train-bpe", vocab = 8000 }
/// tokenizer = { kind = "bpe-files", vocab = "vocab.json", merges = "merges.txt" }
/// ```
///
/// It is written as a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TokenizerSpec {
    /// One id per byte: 256 ids, any bytes, nothing lost.
    Byte,
    /// Words between white space, with the vocabulary of the train split.
    Word {
        /// Words rarer than this in the train split become `<unk>`; 0 and 1 keep every word.
        min_count: usize,
        /// Whether each punctuation mark is a word of its own (`nation.` is `nation` and `.`).
        /// Leave it off for text that is split already, as WikiText is.
        split_punctuation: bool,
    },
    /// The byte-level BPE of GPT-2, embedded: 50,257 ids, nothing lost.
    Bpe,
    /// A byte-level BPE with GPT-2's pre-tokeniser whose merges are learned from the train split: the same
    /// split gives the same ids.
    TrainBpe {
        /// The most ids, at least 256; a text without that many pairs gives fewer.
        vocab: usize,
    },
    /// Another byte-level BPE with GPT-2's pre-tokeniser, from files; relative paths start at the
    /// working directory.
    BpeFiles {
        /// `vocab.json`: a JSON object from token to id. May be `.gz`.
        vocab: PathBuf,
        /// `merges.txt`: one merge a line, the first merge first. May be `.gz`.
        merges: PathBuf,
    },
}

impl TokenizerSpec {
    /// Word level with the default options.
    pub const WORD: Self = Self::Word { min_count: DEFAULT_MIN_COUNT, split_punctuation: false };
}

impl FromStr for TokenizerSpec {
    type Err = DataError;

    /// The tokeniser with this name and default options: `byte`, `word` or `bpe`.
    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "byte" => Ok(Self::Byte),
            "word" => Ok(Self::WORD),
            "bpe" => Ok(Self::Bpe),
            _ => Err(DataError::UnknownTokenizer { name: name.to_owned() }),
        }
    }
}

impl<'de> Deserialize<'de> for TokenizerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

impl JsonSchema for TokenizerSpec {
    fn schema_name() -> Cow<'static, str> {
        "Tokenizer".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names = json_schema!({ "type": "string", "enum": ["byte", "word", "bpe"] });
        json_schema!({ "anyOf": [names, generator.subschema_for::<Table>()] })
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = TokenizerSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokeniser: `byte`, `word`, `bpe`, or a table with `kind`")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<TokenizerSpec, E> {
        name.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<TokenizerSpec, A::Error> {
        Table::deserialize(MapAccessDeserializer::new(table)).map(TokenizerSpec::from)
    }
}

/// The table form. Kinds without options are empty structs here, because serde lets unknown keys
/// pass beside a unit variant.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Table {
    Byte {},
    Word {
        #[serde(default = "default_min_count")]
        min_count: usize,
        #[serde(default)]
        split_punctuation: bool,
    },
    Bpe {},
    TrainBpe {
        vocab: usize,
    },
    BpeFiles {
        vocab: PathBuf,
        merges: PathBuf,
    },
}

fn default_min_count() -> usize {
    DEFAULT_MIN_COUNT
}

impl From<Table> for TokenizerSpec {
    fn from(table: Table) -> Self {
        match table {
            Table::Byte {} => Self::Byte,
            Table::Word { min_count, split_punctuation } => {
                Self::Word { min_count, split_punctuation }
            }
            Table::Bpe {} => Self::Bpe,
            Table::TrainBpe { vocab } => Self::TrainBpe { vocab },
            Table::BpeFiles { vocab, merges } => Self::BpeFiles { vocab, merges },
        }
    }
}
