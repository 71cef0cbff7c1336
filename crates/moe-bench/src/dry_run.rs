//! `moe train R --dry-run`: the recipe as resolved and what it will cost, without building the model.

use crate::classify::Labelled;
use crate::cli::TrainArgs;
use crate::environment::peak_memory_bytes;
use crate::error::Misuse;
use crate::estimate::{Estimate, estimate};
use crate::recipe::Recipe;
use crate::say::say;
use crate::subject::Subject;
use anyhow::Result;
use moe_data::Split;
use serde::Serialize;
use std::fmt;

/// What `--dry-run --json` prints.
#[derive(Debug, Serialize)]
struct DryRun {
    recipe: Recipe,
    data: Data,
    #[serde(flatten)]
    estimate: Estimate,
}

/// What was read to know the vocabulary.
#[derive(Debug, Serialize)]
struct Data {
    corpus: String,
    tokenizer: String,
    #[serde(flatten)]
    size: Size,
}

/// How much of it each split has.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Size {
    /// Of running text.
    Tokens { train_tokens: usize, valid_tokens: usize, test_tokens: usize },
    /// Of labelled texts.
    Texts { classes: usize, train_texts: usize, valid_texts: usize, test_texts: usize, cut: usize },
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens { train_tokens, valid_tokens, test_tokens } => {
                write!(f, "{train_tokens} + {valid_tokens} + {test_tokens} tokens")
            }
            Self::Texts { classes, train_texts, valid_texts, test_texts, cut } => write!(
                f,
                "{train_texts} + {valid_texts} + {test_texts} texts in {classes} classes, {cut} cut to train.sequence"
            ),
        }
    }
}

/// Prints what a run would be.
///
/// # Errors
/// A recipe or data that cannot be used.
pub fn dry_run(args: &TrainArgs) -> Result<()> {
    let found = look(&Recipe::read(&args.recipe, &args.sets)?)?;
    if args.json {
        return Ok(say(&(serde_json::to_string_pretty(&found)? + "\n"))?);
    }
    let Data { corpus, tokenizer, size } = &found.data;
    let ids = found.estimate.vocabulary;
    let data = format!("data         {corpus} as {tokenizer}: {ids} ids; {size}");
    Ok(say(&format!("{}\n{data}\n{}", found.recipe.to_toml(), found.estimate.render()))?)
}

/// Reads the data, whose vocabulary decides the size of the output layer, and measures the model.
fn look(recipe: &Recipe) -> Result<DryRun> {
    let recipe = recipe.resolved()?;
    recipe.check()?;
    if recipe.vision.is_some() {
        let message = "--dry-run: measures language models, and not yet recipes with [vision]";
        return Err(Misuse::new(message).into());
    }
    if let Some(classify) = &recipe.classify {
        classify.check_source(&recipe)?;
    }
    let subject = Subject::open(&recipe)?;
    let size = match &subject {
        Subject::Text(text) => {
            let [train_tokens, valid_tokens, test_tokens] =
                Split::ALL.map(|split| text.tokens(split).len());
            Size::Tokens { train_tokens, valid_tokens, test_tokens }
        }
        Subject::Labelled(Labelled { texts, .. }) => {
            let [train_texts, valid_texts, test_texts] = Split::ALL.map(|split| texts.len(split));
            let (classes, cut) = (texts.classes().len(), texts.cut());
            Size::Texts { classes, train_texts, valid_texts, test_texts, cut }
        }
        Subject::Images(..) => unreachable!("recipes with [vision] were refused"),
    };
    let ends = subject.ends().expect("a model of texts");
    let data = Data { corpus: subject.name().into(), tokenizer: subject.tokenizer(), size };
    let estimate = estimate(&recipe, ends, peak_memory_bytes())?;
    Ok(DryRun { recipe, data, estimate })
}
