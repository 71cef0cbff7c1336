//! `moe train R --dry-run`: the recipe as resolved and what it will cost, without building the model.

use crate::cli::TrainArgs;
use crate::environment::peak_memory_bytes;
use crate::error::Misuse;
use crate::estimate::{Estimate, estimate};
use crate::recipe::Recipe;
use crate::say::{say, say_json};
use crate::subject::Subject;
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

/// What was read to know the sizes of the model's ends.
#[derive(Debug, Serialize)]
struct Data {
    corpus: String,
    tokenizer: String,
    /// `tokens`, `images` or `texts`.
    unit: &'static str,
    train: usize,
    valid: usize,
    test: usize,
    /// Texts that `train.sequence` cuts short.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<usize>,
}

impl Data {
    fn new(subject: &Subject) -> Self {
        let [train, valid, test] = Split::ALL.map(|split| match subject {
            Subject::Text(text) => text.tokens(split).len(),
            Subject::Masked(text, _) => text.tokens(split),
            Subject::Images(images, _) | Subject::Drawings(images, _) => images.split(split).len(),
            Subject::Labelled(labelled) => labelled.texts.len(split),
        });
        let cut = match subject {
            Subject::Labelled(labelled) => Some(labelled.texts.cut()),
            _ => None,
        };
        let (corpus, tokenizer) = (subject.name().to_owned(), subject.tokenizer());
        Self { corpus, tokenizer, unit: subject.unit(), train, valid, test, cut }
    }
}

/// Prints what a run would be.
///
/// # Errors
/// A recipe or data that cannot be used.
pub fn dry_run(args: &TrainArgs) -> Result<()> {
    let recipe = Recipe::read(&args.recipe, &args.sets)?;
    if recipe.vae.is_some() {
        return crate::vae_cost::dry_run(&recipe, args.json);
    }
    let found = look(&recipe)?;
    if args.json {
        return say_json(&found);
    }
    let Data { corpus, tokenizer, unit, train, valid, test, cut } = &found.data;
    let (choices, of) = match found.estimate.classes {
        Some(classes) => (classes, "classes"),
        None => (found.estimate.vocabulary, "ids"),
    };
    let cut = cut.map_or(String::new(), |cut| format!(", {cut} cut to train.sequence"));
    let data = format!(
        "data         {corpus} as {tokenizer}: {choices} {of}; {train} + {valid} + {test} {unit}{cut}"
    );
    Ok(say(&format!("{}\n{data}\n{}", found.recipe.to_toml(), found.estimate.render()))?)
}

/// Reads the data, which decide the size of the output layer, and measures the model.
fn look(recipe: &Recipe) -> Result<DryRun> {
    let recipe = recipe.resolved()?;
    recipe.check()?;
    if let Some(classify) = &recipe.classify {
        classify.check_source(&recipe)?;
    }
    let subject = Subject::open(&recipe, None)?;
    let data = Data::new(&subject);
    let ends =
        subject.ends().ok_or_else(|| Misuse::new("--dry-run: no estimate for these data"))?;
    let estimate = estimate(&recipe, ends, peak_memory_bytes())?;
    Ok(DryRun { recipe, data, estimate })
}
