//! `moe train R --dry-run`: the recipe as resolved and what it will cost, without building the model.

use crate::cli::TrainArgs;
use crate::environment::peak_memory_bytes;
use crate::error::Misuse;
use crate::estimate::{Estimate, estimate};
use crate::recipe::Recipe;
use crate::say::say;
use anyhow::Result;
use moe_data::Split;
use serde::Serialize;

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
    train_tokens: usize,
    valid_tokens: usize,
    test_tokens: usize,
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
    let Data { corpus, tokenizer, train_tokens, valid_tokens, test_tokens } = &found.data;
    let ids = found.estimate.vocabulary;
    let data = format!(
        "data         {corpus} as {tokenizer}: {ids} ids; {train_tokens} + {valid_tokens} + {test_tokens} tokens"
    );
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
    let (data, vocabulary) = read(&recipe)?;
    let estimate = estimate(&recipe, vocabulary, peak_memory_bytes())?;
    Ok(DryRun { recipe, data, estimate })
}

/// The data, and the number of ids.
fn read(recipe: &Recipe) -> Result<(Data, usize)> {
    if recipe.masked.is_some() {
        let text = recipe.data.open_languages()?;
        let data = Data {
            corpus: text.languages().name().into(),
            tokenizer: text.tokenizer().name().into(),
            train_tokens: text.tokens(Split::Train),
            valid_tokens: text.tokens(Split::Valid),
            test_tokens: text.tokens(Split::Test),
        };
        return Ok((data, text.vocab_size()));
    }
    let stream = recipe.data.open()?;
    let data = Data {
        corpus: stream.corpus().into(),
        tokenizer: stream.tokenizer().name().into(),
        train_tokens: stream.tokens(Split::Train).len(),
        valid_tokens: stream.tokens(Split::Valid).len(),
        test_tokens: stream.tokens(Split::Test).len(),
    };
    Ok((data, stream.vocab_size()))
}
