//! The fine-tuning part of a recipe: `[classify]` makes the model a classifier of texts that starts from a
//! language model trained before.
//!
//! ```toml
//! [data]
//! source = "/path/to/sst"         # the texts' directory
//! tokenizer = "byte"              # the language model's
//!
//! [classify]
//! from = "runs/pretrained"        # a run, or one of its checkpoints
//! layout = "sst2"                 # or sst5, trec, banking77, { table = { train = "a.csv", ... } }
//! pool = "last-token"             # or "mean"
//! freeze = ["router", "experts"]  # nothing unless given
//! ```
//!
//! `router`, `residual`, `model` and `data.tokenizer` are the language model's, compared with its recipe;
//! of a router only the settings may differ, as in VQMoE's discrete fine-tuning. `train.sequence` is the
//! number of tokens of a text that are read. A vocabulary of words is that of the language model's own
//! training text, which must still be where its recipe says.

use crate::error::Misuse;
use crate::overlay::differences;
use crate::recipe::Recipe;
use crate::run::RunDir;
use anyhow::Result;
use moe_data::{Corpus, DataError, Split, TextClasses, TextLayout, Tokenizer, TokenizerSpec};
use moe_models::classifier::CLASSIFIER;
use moe_models::{LmConfig, Precision, TextPool};
use moe_train::{Frozen, Trainer, checkpoint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Value;

/// What fine-tuning has beside a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifyRecipe {
    /// Directory of the language model's run, whose newest checkpoint is taken, or of one checkpoint.
    pub from: PathBuf,
    /// How the texts lie in `data.source`.
    pub layout: TextLayout,
    /// What the classifier reads.
    #[serde(default)]
    pub pool: TextPool,
    /// Parts of the model that stay as they are.
    #[serde(default)]
    pub freeze: Vec<Frozen>,
}

/// Labelled texts in a vocabulary, and what is made of them.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// The texts.
    pub texts: Arc<TextClasses>,
    /// Number of ids of the vocabulary.
    pub vocabulary: usize,
    /// Name of the tokeniser.
    pub tokenizer: &'static str,
    /// The recipe's part.
    pub recipe: ClassifyRecipe,
}

/// The language model that fine-tuning starts from.
struct Source {
    recipe: Recipe,
    checkpoint: PathBuf,
}

/// Not [`Misuse::recipe`], which takes a path before a colon for a key.
fn refused(reason: impl Display) -> Misuse {
    Misuse::new(format!("classify.from: {reason}"))
}

impl Source {
    fn read(from: &Path) -> Result<Self, Misuse> {
        let (dir, checkpoint) = Self::place(from)?;
        let recipe = Recipe::read(&dir.recipe(), &[]).map_err(|e| refused(e.to_string()))?;
        if !recipe.is_language_model() {
            return Err(refused(format!("{}: is no run of a language model", dir.0.display())));
        }
        Ok(Self { recipe, checkpoint })
    }

    /// The run, and its checkpoint.
    fn place(from: &Path) -> Result<(RunDir, PathBuf), Misuse> {
        let run = RunDir(from.to_owned());
        if run.recipe().exists() {
            let newest = checkpoint::latest(&run.checkpoints());
            let newest = newest.map_err(|e| refused(e.to_string()))?;
            let none = || refused(format!("{}: no checkpoint yet", run.checkpoints().display()));
            return newest.ok_or_else(none).map(|newest| (run, newest));
        }
        let above = from.parent().and_then(Path::parent).map(|run| RunDir(run.to_owned()));
        match above.filter(|run| from.join("state.json").exists() && run.recipe().exists()) {
            Some(run) => Ok((run, from.to_owned())),
            None => Err(refused(format!(
                "{}: neither a run (no recipe.toml) nor a checkpoint of one",
                from.display()
            ))),
        }
    }

    /// Refuses a recipe of another model, or of other tokens.
    fn check(&self, recipe: &Recipe) -> Result<(), Misuse> {
        // What is set anew without another tensor or another meaning of one.
        let free = |model: &LmConfig| LmConfig { dropout: 0.0, ..model.clone() };
        let mut found = Vec::new();
        let mut compare = |key: &str, ours: Value, theirs: Value| {
            differences(key, Some(&ours), Some(&theirs), &mut found);
        };
        let value = |model: &LmConfig| Value::try_from(free(model)).expect("plain data");
        compare("model", value(&recipe.model), value(&self.recipe.model));
        let name = |recipe: &Recipe| Value::from(recipe.router.name.clone());
        compare("router.name", name(recipe), name(&self.recipe));
        let name = |recipe: &Recipe| Value::from(recipe.residual.name.clone());
        compare("residual.name", name(recipe), name(&self.recipe));
        let cut = |recipe: &Recipe| Value::try_from(&recipe.data.tokenizer).expect("plain data");
        compare("data.tokenizer", cut(recipe), cut(&self.recipe));
        match found.is_empty() {
            true => Ok(()),
            false => Err(refused(format!("is another model: {}", found.join("; ")))),
        }
    }
}

/// Whether a tensor is a language model's output layer, which no classifier has.
fn is_output_layer(name: &str) -> bool {
    name == "head" || name.starts_with("head.")
}

impl ClassifyRecipe {
    /// Refuses values that do not go together, before texts are read.
    ///
    /// # Errors
    /// The key and what is wrong.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Misuse> {
        if recipe.vision.is_some() {
            return Err(Misuse::recipe("classify", "has no meaning beside [vision]"));
        }
        if recipe.train.precision != Precision::Fp32 {
            let reason = "classifiers of texts are trained in fp32";
            return Err(Misuse::recipe("train.precision", reason));
        }
        Ok(())
    }

    /// Reads the texts in the language model's tokens.
    ///
    /// # Errors
    /// Files that are missing or not in their layout, or a language model's text that is needed for its
    /// words and not there.
    pub fn open(&self, recipe: &Recipe) -> Result<Labelled, Misuse> {
        let tokenizer = self.tokenizer(&recipe.data.tokenizer)?;
        let directory = Path::new(&recipe.data.source);
        let texts = TextClasses::open(directory, &self.layout, &tokenizer, recipe.train.sequence);
        let texts = texts.map_err(|e| said("data.source", e))?;
        Ok(Labelled {
            texts: Arc::new(texts),
            vocabulary: tokenizer.vocab_size(),
            tokenizer: tokenizer.name(),
            recipe: self.clone(),
        })
    }

    fn tokenizer(&self, spec: &TokenizerSpec) -> Result<Tokenizer, Misuse> {
        if matches!(spec, TokenizerSpec::Byte | TokenizerSpec::Bpe | TokenizerSpec::BpeFiles { .. })
        {
            return Tokenizer::new(spec, &[]).map_err(|e| said("data.tokenizer", e));
        }
        let source = Source::read(&self.from)?.recipe.data.source;
        let corpus = Corpus::open(&source).map_err(|e| said("classify.from: data.source", e))?;
        Tokenizer::new(spec, corpus.text(Split::Train)).map_err(|e| said("data.tokenizer", e))
    }

    /// Refuses a language model that this recipe does not go on with.
    ///
    /// # Errors
    /// No run there, or one of another model or other tokens, with every difference.
    pub fn check_source(&self, recipe: &Recipe) -> Result<(), Misuse> {
        Source::read(&self.from)?.check(recipe)
    }

    /// Puts the language model's weights into `trainer`, and says what was taken.
    ///
    /// # Errors
    /// As [`Self::check_source`], and a checkpoint that is damaged or has other tensors.
    pub fn start(&self, recipe: &Recipe, trainer: &mut Trainer) -> Result<String> {
        let source = Source::read(&self.from)?;
        source.check(recipe)?;
        let state = trainer.start_from(&source.checkpoint, CLASSIFIER, &is_output_layer)?;
        let step = state.progress.step;
        Ok(format!("starts from {}, step {step}", source.checkpoint.display()))
    }
}

fn said(key: &str, error: DataError) -> Misuse {
    Misuse::recipe(key, format!("{:#}", anyhow::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNE: &str = "router = 'x-moe'\n[classify]\nfrom = 'nowhere'\nlayout = 'sst2'\n";

    fn parse(text: &str, sets: &[&str]) -> Result<Recipe, Misuse> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::parse(text, &sets)
    }

    #[test]
    fn a_recipe_comes_back_from_its_record() {
        let table =
            "classify.layout={ table = { train = 'a', test = 'b', text = 'c', label = 'd' } }";
        for sets in [&[][..], &[table, "classify.freeze=['router', 'experts']"][..]] {
            let recipe = parse(TUNE, sets).unwrap().resolved().unwrap();
            let again = parse(&recipe.to_toml(), &[]).unwrap();
            assert_eq!(again, recipe);
        }
    }

    #[test]
    fn bad_values_name_their_key() {
        let refused = |sets: &[&str]| parse(TUNE, sets).unwrap_err().to_string();
        assert!(refused(&["classify.layout=sst3"]).starts_with("classify.layout: unknown variant"));
        assert!(refused(&["classify.freeze=['head']"]).starts_with("classify.freeze"));
        let precision = "train.precision: classifiers of texts are trained in fp32";
        assert_eq!(refused(&["train.precision=bf16"]), precision);
        let missing = parse("[classify]\nlayout = 'trec'", &[]).unwrap_err().to_string();
        assert!(missing.contains("from"), "{missing}");
    }

    #[test]
    fn another_model_is_refused_with_every_difference() {
        let theirs = parse("router = 'x-moe'", &["model.width=64", "data.tokenizer=bpe"]).unwrap();
        let source = Source { recipe: theirs, checkpoint: PathBuf::new() };
        let ours = parse(TUNE, &["model.dropout=0.1"]).unwrap();
        let said = source.check(&ours).unwrap_err().to_string();
        assert!(said.contains("model.width = 128, was 64"), "{said}");
        assert!(said.contains("data.tokenizer"), "{said}");
        assert!(!said.contains("dropout") && !said.contains("router"), "{said}");
        let switch = parse(TUNE, &["router=switch", "model.width=64", "data.tokenizer=bpe"]);
        let said = source.check(&switch.unwrap()).unwrap_err().to_string();
        assert!(said.contains("router.name"), "{said}");
    }

    #[test]
    fn no_run_is_no_start() {
        let recipe = parse(TUNE, &[]).unwrap();
        let said = recipe.classify.as_ref().unwrap().check_source(&recipe).unwrap_err().to_string();
        assert_eq!(
            said,
            "classify.from: nowhere: neither a run (no recipe.toml) nor a checkpoint of one"
        );
    }
}
