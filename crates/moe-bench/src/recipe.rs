//! Recipes: everything that decides a run, as TOML.
//!
//! ```toml
//! seed = 0
//! router = "x-moe"                # or a table: { name = "x-moe", preset = "paper", top_k = 2 }
//! residual = "plain"              # likewise
//! capacity = { factor = 1.25 }    # optional; else the paper's own
//! losses = { balance = 0.01 }     # optional, likewise
//!
//! [data]
//! source = "sotu"                 # a built-in name, a file, or a directory
//! tokenizer = "byte"
//!
//! [model]
//! width = 128
//!
//! [train]
//! steps = 200
//! ```
//!
//! A key that is left out has its default; a key that does not exist is an error that names it. With a
//! section `[vision]` ([`crate::vision`]) the model classifies images instead of predicting text, with
//! `[vae]` ([`crate::vae`]) it draws them again, with `[classify]` ([`crate::classify`]) it classifies texts,
//! with `[masked]` ([`crate::masked`]) it predicts hidden tokens of text in several languages.

use crate::classify::ClassifyRecipe;
use crate::error::Misuse;
use crate::masked;
use crate::method::MethodRecipe;
use crate::vae::{self, VaeRecipe};
use crate::vision::{self, VisionRecipe};
use moe_core::{CapacityPolicy, CapacityRule, DropOrder, Limit};
use moe_data::{
    Corpus, DataError, Languages, MAX_BATCH_TOKENS, MaskedText, Masking, SPECIAL_IDS, TokenStream,
    TokenizerSpec,
};
use moe_models::{LmConfig, LossWeights, Precision, Recompute, Rules};
use moe_routers::config::Part;
use moe_routers::{ResidualConfig, RouterConfig, Tie};
use moe_train::TrainConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything that decides a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Seed of weights, data order and noise.
    pub seed: u64,
    /// The router: a name, `name:preset`, or a table with `name`, `preset` and settings.
    #[schemars(schema_with = "crate::schema::router_schema")]
    pub router: MethodRecipe,
    /// How a layer's output enters the stream, written like the router.
    #[schemars(schema_with = "crate::schema::residual_schema")]
    pub residual: MethodRecipe,
    /// Room of the experts; absent leaves the router's own rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityRecipe>,
    /// Weights of losses that differ from the router's own.
    pub losses: LossWeights,
    /// The data.
    pub data: DataRecipe,
    /// The model; with `vision`, the sizes of its blocks.
    pub model: LmConfig,
    /// What an image classifier has besides; absent for a language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionRecipe>,
    /// What an SMoE-VAE has besides; absent for other models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<VaeRecipe>,
    /// The fine-tuning of a language model into a classifier of texts; absent for any other model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classify: Option<ClassifyRecipe>,
    /// What a masked language model has besides; absent for one that predicts the next token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked: Option<Masking>,
    /// The training.
    pub train: TrainConfig,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 0,
            router: MethodRecipe::named("smoe"),
            residual: MethodRecipe::named("plain"),
            capacity: None,
            losses: LossWeights::default(),
            data: DataRecipe::default(),
            model: LmConfig::default(),
            vision: None,
            vae: None,
            classify: None,
            masked: None,
            train: TrainConfig::default(),
        }
    }
}

/// Which text, cut into which tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataRecipe {
    /// A built-in name, a text file, or a directory in WikiText layout; with `vision`, a built-in set of
    /// images, or a directory in one of the layouts of [`moe_data::Images::open`]; with `classify`, the
    /// directory of the labelled texts; with `masked`, tables of several languages or directories with a file
    /// for each, joined by `+`, as in [`moe_data::Languages`].
    pub source: String,
    /// How text becomes tokens.
    pub tokenizer: TokenizerSpec,
}

impl Default for DataRecipe {
    fn default() -> Self {
        Self { source: "sotu".into(), tokenizer: TokenizerSpec::Byte }
    }
}

impl DataRecipe {
    /// Reads and tokenises the data.
    ///
    /// # Errors
    /// A source that cannot be read, or that its tokeniser cannot cut.
    pub fn open(&self) -> Result<TokenStream, Misuse> {
        let corpus = Corpus::open(&self.source).map_err(refused("data.source"))?;
        TokenStream::new(&corpus, &self.tokenizer).map_err(refused("data.tokenizer"))
    }

    /// The same for a model that was trained on `trained`: where the tokeniser is learned, it is the one
    /// learned there, since ids mean nothing else to that model.
    ///
    /// # Errors
    /// As [`Self::open`]; another kind of tokeniser than the model was trained with.
    pub fn open_for(&self, trained: &Self) -> Result<TokenStream, Misuse> {
        if !self.foreign_to(trained)? {
            return self.open();
        }
        let corpus = Corpus::open(&self.source).map_err(refused("data.source"))?;
        TokenStream::with_tokenizer(&corpus, trained.open()?.tokenizer().clone())
            .map_err(refused("data.source"))
    }

    /// Reads and tokenises text in several languages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_languages(&self) -> Result<MaskedText, Misuse> {
        let languages = Languages::open(&self.source).map_err(refused("data.source"))?;
        MaskedText::new(languages, &self.tokenizer).map_err(refused("data.tokenizer"))
    }

    /// The same for a model that was trained on `trained`.
    ///
    /// # Errors
    /// As [`Self::open_for`].
    pub fn open_languages_for(&self, trained: &Self) -> Result<MaskedText, Misuse> {
        if !self.foreign_to(trained)? {
            return self.open_languages();
        }
        let languages = Languages::open(&self.source).map_err(refused("data.source"))?;
        let tokenizer = trained.open_languages()?.tokenizer().clone();
        MaskedText::with_tokenizer(languages, tokenizer).map_err(refused("data.source"))
    }

    /// Whether these are other data than a model was trained on.
    fn foreign_to(&self, trained: &Self) -> Result<bool, Misuse> {
        if self.tokenizer != trained.tokenizer {
            let reason = "a trained model reads the ids of its own tokeniser alone";
            return Err(Misuse::recipe("data.tokenizer", reason));
        }
        Ok(self.source != trained.source)
    }
}

/// An error of the data at `key` of a recipe.
fn refused(key: &'static str) -> impl Fn(DataError) -> Misuse {
    move |error| Misuse::recipe(key, format!("{:#}", anyhow::Error::from(error)))
}

impl DataRecipe {
    /// Number of token ids, where it does not depend on the text.
    fn vocabulary(&self) -> Option<usize> {
        match self.tokenizer {
            TokenizerSpec::Byte => Some(256),
            TokenizerSpec::Bpe => Some(50_257),
            // At most.
            TokenizerSpec::TrainBpe { vocab } => Some(vocab),
            TokenizerSpec::Word { .. } | TokenizerSpec::BpeFiles { .. } => None,
        }
    }
}

/// Room of the experts in a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CapacityRecipe {
    /// Capacity factor; together with `rule` it gives the rows of an expert in a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Rows of an expert in a group, whatever its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// How a factor becomes rows; `ceil(T k / E * factor)` unless given.
    #[serde(default = "megatron")]
    pub rule: CapacityRule,
    /// Least capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<usize>,
    /// Who goes without when an expert is full.
    #[serde(default)]
    pub order: DropOrder,
}

fn megatron() -> CapacityRule {
    CapacityRule::Megatron
}

impl CapacityRecipe {
    /// The policy.
    ///
    /// # Errors
    /// Both or neither of `factor` and `rows`, or a value outside its range.
    pub fn policy(&self) -> Result<CapacityPolicy, Misuse> {
        let limit = match (self.factor, self.rows) {
            (Some(factor), None) if factor.is_finite() && factor > 0.0 => {
                Limit::Factor { factor, rule: self.rule, min: self.min }
            }
            (Some(factor), None) => {
                return Err(Misuse::recipe(
                    "capacity.factor",
                    format!("{factor} must be finite and above 0"),
                ));
            }
            (None, Some(0)) => return Err(Misuse::recipe("capacity.rows", "0 must be at least 1")),
            (None, Some(rows)) => Limit::Fixed(rows),
            _ => return Err(Misuse::recipe("capacity", "needs one of `factor` and `rows`")),
        };
        Ok(CapacityPolicy { limit, order: self.order })
    }
}

/// The methods of a recipe: what [`Rules`] borrow.
#[derive(Debug)]
pub struct Methods {
    router: Box<dyn RouterConfig>,
    residual: Box<dyn ResidualConfig>,
    capacity: Option<CapacityPolicy>,
    losses: LossWeights,
}

impl Methods {
    /// The rules of a model.
    pub fn rules(&self) -> Rules<'_> {
        Rules {
            router: self.router.as_ref(),
            residual: self.residual.as_ref(),
            capacity: self.capacity,
            losses: self.losses,
        }
    }
}

impl Recipe {
    /// Reads a recipe file and puts `key=value` settings in it.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key, or a value outside its type or range.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self, Misuse> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Misuse::new(format!("{}: {e}", path.display())))?;
        Self::parse(&text, sets).map_err(|e| Misuse::new(format!("{}: {e}", path.display())))
    }

    /// Parses the text of a recipe and puts `key=value` settings in it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, sets: &[String]) -> Result<Self, Misuse> {
        let mut table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| Misuse::new(e.to_string().trim_end().to_owned()))?;
        for set in sets {
            crate::overlay::set(&mut table, set)?;
        }
        vision::refuse_unread_keys(&table)?;
        vae::refuse_other_keys(&table)?;
        let mut recipe: Self = serde_path_to_error::deserialize(table)
            .map_err(|e| Misuse::recipe(&e.path().to_string(), message_of(e.inner())))?;
        if let Some(vision) = &recipe.vision {
            recipe.model = vision.blocks(&recipe.model);
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// Refuses values that do not go together, before anything is allocated.
    ///
    /// # Errors
    /// The key and what is wrong.
    pub fn check(&self) -> Result<(), Misuse> {
        self.check_stages()?;
        self.model.check().map_err(|e| Misuse::recipe("model", e))?;
        self.train
            .check()
            .map_err(|(key, reason)| Misuse::recipe(&format!("train.{key}"), reason))?;
        let (sequence, context) = (self.train.sequence as i64, self.model.context);
        if sequence > context && self.is_text() {
            let reason = format!("{sequence} exceeds model.context = {context}");
            return Err(Misuse::recipe("train.sequence", reason));
        }
        if self.train.accumulate > 1 && self.model.span.is_some() {
            let reason = "a model with a memory (model.span) takes its batch whole";
            return Err(Misuse::recipe("train.accumulate", reason));
        }
        if self.train.precision != Precision::Fp32 && !self.is_text() {
            let reason = "models of images are trained in fp32";
            return Err(Misuse::recipe("train.precision", reason));
        }
        if self.train.recompute != Recompute::None && !self.is_language_model() {
            let reason = "only a model that predicts the next token computes activations again";
            return Err(Misuse::recipe("train.recompute", reason));
        }
        let tokens = self.train.batch.checked_mul(self.train.sequence);
        if tokens.is_none_or(|tokens| tokens > MAX_BATCH_TOKENS) {
            let reason = format!(
                "{} times train.sequence = {sequence} is above {MAX_BATCH_TOKENS} tokens",
                self.train.batch
            );
            return Err(Misuse::recipe("train.batch", reason));
        }
        let experts = self.model.experts as usize;
        let (router, heads) = (self.tied_router()?.router()?, self.model.heads as usize);
        let fits = router.check(experts).and_then(|()| router.check_block(heads));
        fits.map_err(|e| Misuse::recipe("router", e))?;
        if let Some(reason) = router.refuses(Part::Capacity).filter(|_| self.capacity.is_some()) {
            let reason = format!("has no meaning beside `{}`: {reason}", self.router.name);
            return Err(Misuse::recipe("capacity", reason));
        }
        self.losses
            .check(router.as_ref())
            .map_err(|(key, reason)| Misuse::recipe(&format!("losses.{key}"), reason))?;
        let sparse = self.sparse_layers()?;
        self.residual.residual()?.check(sparse).map_err(|e| Misuse::recipe("residual", e))?;
        self.capacity()?;
        masked::check(self)?;
        self.vae.as_ref().map_or(Ok(()), |vae| vae.check(self))?;
        self.classify.as_ref().map_or(Ok(()), |classify| classify.check(self))?;
        self.vision.as_ref().map_or(Ok(()), |vision| vision.check(self))
    }

    /// Whether the model is a language model.
    pub fn is_text(&self) -> bool {
        self.vision.is_none() && self.vae.is_none()
    }

    /// Refuses stages that do not go together, in their own words rather than in those of the sizes that
    /// are made of them.
    fn check_stages(&self) -> Result<(), Misuse> {
        let Some(swin) = self.vision.as_ref().and_then(|vision| vision.swin.as_ref()) else {
            return Ok(());
        };
        swin.check(self.model.width).map_err(|e| Misuse::recipe("vision", e))
    }

    /// The most sparse layers that follow one another.
    ///
    /// # Errors
    /// A placement that leaves no sparse block.
    fn sparse_layers(&self) -> Result<usize, Misuse> {
        let Some(vision) = &self.vision else { return Ok(self.model.sparse_layers()) };
        vision.sparse_layers(&self.model).map_err(|e| Misuse::recipe("vision", e))
    }

    /// What the recipe's methods are, ready to be lent to a model.
    ///
    /// # Errors
    /// As [`MethodRecipe::router`], [`MethodRecipe::residual`] and [`CapacityRecipe::policy`].
    pub fn methods(&self) -> Result<Methods, Misuse> {
        Ok(Methods {
            router: self.router.router()?,
            residual: self.residual.residual()?,
            capacity: self.capacity()?,
            losses: self.losses,
        })
    }

    /// The capacity policy, if the recipe has one.
    ///
    /// # Errors
    /// As [`CapacityRecipe::policy`].
    pub fn capacity(&self) -> Result<Option<CapacityPolicy>, Misuse> {
        self.capacity.as_ref().map(CapacityRecipe::policy).transpose()
    }

    /// The value of a setting that follows the run; `None` where it is not known before the data is.
    fn follow(&self, tie: Tie) -> Option<u64> {
        match tie {
            Tie::Vocab => {
                let more = if self.masked.is_some() { SPECIAL_IDS } else { 0 };
                self.data.vocabulary().map(|ids| (ids + more) as u64)
            }
            Tie::ShareOfSteps(share) => {
                Some(((self.train.steps as f64 * share).round() as u64).max(1))
            }
        }
    }

    /// The router, with the settings that follow the run where the recipe does not give them.
    fn tied_router(&self) -> Result<MethodRecipe, Misuse> {
        let mut router = self.router.clone();
        if self.vae.is_some() && router.name == vae::GATE {
            router.settings.entry("batch").or_insert(self.train.batch.into());
        }
        for (key, tie) in self.router.router()?.ties() {
            if let Some(value) = self.follow(*tie) {
                router.settings.entry(*key).or_insert(value.into());
            }
        }
        Ok(router)
    }

    /// The recipe with every setting of its methods written out, and the width of its experts.
    ///
    /// # Errors
    /// As [`MethodRecipe::router`] and [`MethodRecipe::residual`].
    pub fn resolved(&self) -> Result<Self, Misuse> {
        let mut recipe = Self { router: self.tied_router()?, ..self.clone() };
        let (router, residual) = (recipe.router.router()?, recipe.residual.residual()?);
        recipe.vae = self.vae.as_ref().map(|vae| vae.resolved(self));
        let hidden = || self.model.hidden_of_expert(router.as_ref());
        recipe.model.expert_hidden = self.vae.is_none().then(hidden);
        recipe.router.write_out(router.settings());
        recipe.residual.write_out(residual.settings());
        Ok(recipe)
    }

    /// Keys, each with both values, in which this recipe decides another run than `other`: all but those
    /// that say when to stop, log and save.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (new, old) = (self.deciding(), other.deciding());
        let mut found = Vec::new();
        crate::overlay::differences("", Some(&new), Some(&old), &mut found);
        found
    }

    /// What decides a run: all but the keys that say when to stop, log and save.
    pub fn deciding(&self) -> toml::Value {
        let when = TrainConfig {
            stop_after: None,
            log_every: 1,
            checkpoint_every: 0,
            keep_last: 0,
            keep_best: false,
            ..self.train.clone()
        };
        let recipe = Self { train: when, ..self.clone() };
        toml::Value::try_from(recipe).expect("a recipe is plain data")
    }

    /// Whether the model predicts the next token of a text: its loss has a perplexity, and a router that sees
    /// later tokens has an advantage.
    pub fn is_language_model(&self) -> bool {
        self.is_text() && self.classify.is_none() && self.masked.is_none()
    }

    /// As TOML.
    pub fn to_toml(&self) -> String {
        if self.is_text() {
            return toml::to_string_pretty(self).expect("a recipe is plain data");
        }
        let mut table = toml::Table::try_from(self).expect("a recipe is plain data");
        if self.vae.is_some() {
            vae::drop_other_keys(&mut table);
        } else {
            vision::drop_unread_keys(&mut table);
        }
        toml::to_string_pretty(&table).expect("a recipe is plain data")
    }
}

/// serde's message on one line.
fn message_of(error: &toml::de::Error) -> String {
    error.message().trim_end().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::routers;
    use serde_json::Value;

    fn resolved(router: &str, sets: &[&str]) -> Result<Recipe, Misuse> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::parse(&format!("router = {router}"), &sets)?.resolved()
    }

    #[track_caller]
    fn assert_setting(router: &str, sets: &[&str], key: &str, want: u64) {
        let found = resolved(router, sets).unwrap().router.settings[key].clone();
        assert_eq!(found, Value::from(want), "{router} {sets:?} {key}");
    }

    #[test]
    fn settings_follow_the_run() {
        let steps = ["train.steps=360"];
        assert_setting("'smoe-dropout'", &steps, "steps_total", 360);
        assert_setting("'smoe-dropout:compete_smoe'", &steps, "steps_total", 360);
        assert_setting("'stable-moe'", &steps, "stage1_steps", 36);
        assert_setting("'stable-moe'", &["train.steps=4"], "stage1_steps", 1);
        assert_setting("'stable-moe'", &steps, "vocab", 256);
        assert_setting("'hash'", &["data.tokenizer=bpe"], "vocab", 50_257);
    }

    #[test]
    fn what_decides_a_run_makes_it_another() {
        let recipe = |sets: &[&str]| resolved("'smoe'", sets).unwrap();
        let same = ["train.stop_after=3", "train.log_every=5", "train.keep_last=2"];
        assert_eq!(recipe(&same).differences(&recipe(&[])), [""; 0]);
        let other = recipe(&["train.lr=0.5", "router.top_k=1", "capacity.rows=4"]);
        let found = other.differences(&recipe(&[])).join("; ");
        for part in
            ["train.lr = 0.5, was 0.003", "router.top_k = 1, was 2", "capacity = ", "was not given"]
        {
            assert!(found.contains(part), "no {part} in: {found}");
        }
    }

    #[test]
    fn a_setting_that_the_recipe_gives_wins() {
        let table = "{ name = 'stable-moe', stage1_steps = 7, vocab = 300 }";
        assert_setting(table, &["train.steps=360"], "stage1_steps", 7);
        assert_setting(table, &["train.steps=360"], "vocab", 300);
        let more = ["train.steps=360", "router.steps_total=9"];
        assert_setting("'smoe-dropout'", &more, "steps_total", 9);
    }

    #[test]
    fn a_resolved_recipe_is_its_own_resolution() {
        for paper in routers() {
            let once = resolved(&format!("'{}'", paper.id), &["train.steps=360"]).unwrap();
            let longer = Recipe { train: TrainConfig { steps: 720, ..once.train.clone() }, ..once };
            assert_eq!(longer.resolved().unwrap().router, longer.router, "{}", paper.id);
        }
    }

    #[test]
    fn a_run_too_short_for_what_follows_it_is_refused() {
        let exponential = "{ name = 'smoe-dropout', schedule = 'exp_increase' }";
        let error = resolved(exponential, &["train.steps=299"]).unwrap_err().to_string();
        assert_eq!(error, "router.steps_total: 299 must be at least 300");
        assert!(resolved(exponential, &["train.steps=300"]).is_ok());
    }
}
