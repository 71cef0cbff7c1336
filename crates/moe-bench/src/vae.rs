//! The drawing part of a recipe: `[vae]` makes the model an SMoE-VAE and `data.source` images of 28 x 28.
//!
//! ```toml
//! router = { name = "smoe-vae", preset = "supervised" }
//!
//! [data]
//! source = "quickdraw"            # a directory of <class>.npy
//!
//! [model]
//! experts = 5                     # decoders; the only key of the model
//!
//! [vae]
//! encoder = "medium"
//! decoder = "lite"
//! ```
//!
//! The router is the gate, and says what teaches it. Its `batch`, by which the paper's coefficients are
//! divided, is `train.batch` unless given; `vae.beta` is that of its preset. The loss of a validation is the
//! squared error of an image's pixels under hard routing.

use crate::error::Misuse;
use crate::recipe::Recipe;
use moe_data::Images;
use moe_models::smoe_vae::{DecoderSize, EncoderSize, SIDE};
use moe_models::{LossWeights, VaeConfig};
use moe_routers::Preset;
use moe_routers::smoe_vae::Config;
use moe_train::Background;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use toml::{Table, Value};

/// What its model is called among routers: its gate.
pub(crate) const GATE: &str = "smoe-vae";

/// What a comparison of drawing models enters unless told otherwise; the first is the reference.
pub(crate) const COMPARED: [&str; 2] = ["smoe-vae:supervised", "smoe-vae"];

/// What SMoE-VAE has beside its gate and the number of its experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VaeRecipe {
    /// Size of the encoder.
    pub encoder: EncoderSize,
    /// Size of every decoder.
    pub decoder: DecoderSize,
    /// Latent width.
    pub latent: i64,
    /// Weight of the divergence; that of the router's preset unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// How images are shown: `black` as QuickDraw's bitmaps are, `white` as the release draws strokes.
    pub background: Background,
    /// The first share of the training images of every class; other splits stay whole.
    pub fraction: f64,
}

impl Default for VaeRecipe {
    fn default() -> Self {
        Self {
            encoder: EncoderSize::Medium,
            decoder: DecoderSize::Lite,
            latent: 32,
            beta: None,
            background: Background::Black,
            fraction: 1.0,
        }
    }
}

/// Keys that other models read.
const OTHERS: [(&str, &str); 2] = [("data", "tokenizer"), ("train", "sequence")];

/// Sections that other models read.
const SECTIONS: [&str; 4] = ["vision", "residual", "capacity", "losses"];

/// Refuses keys of other models beside `[vae]`.
///
/// # Errors
/// The key.
pub(crate) fn refuse_other_keys(recipe: &Table) -> Result<(), Misuse> {
    if !recipe.contains_key("vae") {
        return Ok(());
    }
    let refuse = |path: &str| Err(Misuse::recipe(path, "has no meaning beside [vae]"));
    let table = |section: &str| recipe.get(section).and_then(Value::as_table);
    if let Some(section) = SECTIONS.into_iter().find(|section| recipe.contains_key(*section)) {
        return refuse(section);
    }
    let has = |(section, key): &(&str, &str)| table(section).is_some_and(|t| t.contains_key(*key));
    if let Some((section, key)) = OTHERS.into_iter().find(has) {
        return refuse(&format!("{section}.{key}"));
    }
    let other = |table: &Table| table.keys().find(|key| *key != "experts").cloned();
    match table("model").and_then(other) {
        Some(key) => refuse(&format!("model.{key}")),
        None => Ok(()),
    }
}

/// Takes the keys of other models out of a recipe with `[vae]`.
pub(crate) fn drop_other_keys(recipe: &mut Table) {
    SECTIONS.into_iter().for_each(|section| drop(recipe.remove(section)));
    for (section, key) in OTHERS {
        recipe.get_mut(section).and_then(Value::as_table_mut).map(|table| table.remove(key));
    }
    if let Some(model) = recipe.get_mut("model").and_then(Value::as_table_mut) {
        model.retain(|key, _| key == "experts");
    }
}

impl VaeRecipe {
    /// Weight of the divergence.
    fn beta(&self, recipe: &Recipe) -> f64 {
        let preset = recipe.router.settings.get("preset").and_then(serde_json::Value::as_str);
        self.beta.unwrap_or_else(|| Config::preset(preset.unwrap_or("paper")).beta)
    }

    /// With every value written out.
    pub(crate) fn resolved(&self, recipe: &Recipe) -> Self {
        Self { beta: Some(self.beta(recipe)), ..self.clone() }
    }

    /// The sizes of the model.
    pub fn config(&self, recipe: &Recipe) -> VaeConfig {
        let Self { encoder, decoder, latent, .. } = *self;
        let experts = recipe.model.experts;
        VaeConfig { encoder, decoder, latent, experts, beta: self.beta(recipe) }
    }

    /// Refuses values that do not go together, before images are read.
    ///
    /// # Errors
    /// The key and what is wrong.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Misuse> {
        let router = &recipe.router.name;
        if router != GATE {
            let reason = format!("`{router}` does not choose decoders; [vae] takes `{GATE}`");
            return Err(Misuse::recipe("router", reason));
        }
        let plain = recipe.residual.name == "plain" && recipe.losses == LossWeights::default();
        if !plain || recipe.vision.is_some() || recipe.capacity.is_some() {
            let reason = "stands beside a residual, losses, a capacity or [vision], and has none";
            return Err(Misuse::recipe("vae", reason));
        }
        if !(self.fraction > 0.0 && self.fraction <= 1.0) {
            let reason = format!("{} is not above 0 and at most 1", self.fraction);
            return Err(Misuse::recipe("vae.fraction", reason));
        }
        // The gate's losses are sums and means over this many images.
        if recipe.train.accumulate > 1 {
            let reason = "a batch of [vae] is taken whole: its gate balances over it";
            return Err(Misuse::recipe("train.accumulate", reason));
        }
        self.config(recipe).check().map_err(|e| match e.key {
            "experts" => Misuse::recipe("model", e),
            _ => Misuse::recipe("vae", e),
        })
    }

    /// Readies images for the model.
    ///
    /// # Errors
    /// Images of another size.
    pub(crate) fn images(&self, images: Images) -> Result<Arc<Images>, Misuse> {
        let size = images.size();
        if [size.channels, size.height, size.width] != [1, SIDE as usize, SIDE as usize] {
            let reason = format!("images of {size}; [vae] takes 1 x {SIDE} x {SIDE}");
            return Err(Misuse::recipe("data.source", reason));
        }
        let images = images.with_train_share(self.fraction);
        let images = images.map_err(|e| Misuse::recipe("vae.fraction", e))?;
        Ok(Arc::new(images.on_unit_interval()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWINGS: &str = "router = 'smoe-vae:debug'\n[data]\nsource = 'fashion-small'\n[vae]\n";

    fn parse(sets: &[&str]) -> Result<Recipe, Misuse> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::parse(DRAWINGS, &sets)
    }

    #[track_caller]
    fn assert_refused(set: &str, message: &str) {
        assert_eq!(parse(&[set]).unwrap_err().to_string(), message);
    }

    #[test]
    fn the_gate_follows_the_batch_and_beta_the_preset() {
        let resolved = |sets: &[&str]| parse(sets).unwrap().resolved().unwrap();
        let recipe = resolved(&["train.batch=64"]);
        assert_eq!(recipe.router.settings["batch"], 64);
        assert_eq!(recipe.vae.as_ref().unwrap().beta, Some(1.0));
        assert_eq!(resolved(&["router=smoe-vae"]).vae.unwrap().beta, Some(0.01));
        assert_eq!(resolved(&["vae.beta=0.5"]).vae.unwrap().beta, Some(0.5));
        let own = resolved(&["router={ name = 'smoe-vae', batch = 7 }"]);
        assert_eq!(own.router.settings["batch"], 7);
    }

    #[test]
    fn a_record_is_its_own_resolution_and_has_no_keys_of_others() {
        let recipe = parse(&["model.experts=5"]).unwrap().resolved().unwrap();
        let recorded = recipe.to_toml();
        for word in ["context", "width", "tokenizer", "residual", "losses"] {
            assert!(!recorded.contains(word), "{word} in {recorded}");
        }
        let again = Recipe::parse(&recorded, &[]).unwrap();
        assert_eq!(recipe.differences(&again), [""; 0]);
        assert_eq!(again.resolved().unwrap().to_toml(), recorded);
    }

    #[test]
    fn keys_of_other_models_and_bad_values_are_refused_by_name() {
        let other = "has no meaning beside [vae]";
        for key in ["model.width=8", "data.tokenizer=byte", "train.sequence=8"] {
            let path = key.split_once('=').unwrap().0;
            assert_refused(key, &format!("{path}: {other}"));
        }
        assert_refused("capacity.factor=1.0", &format!("capacity: {other}"));
        assert_refused("residual=momentum", &format!("residual: {other}"));
        assert_refused("vision.patch=7", &format!("vision: {other}"));
        assert_refused("vae.latent=0", "vae.latent: 0 is outside 1..=4096");
        assert_refused("model.experts=5000", "model.experts: 5000 is outside 1..=4096");
        assert_refused("vae.fraction=0", "vae.fraction: 0 is not above 0 and at most 1");
        let smoe = "router: `smoe` does not choose decoders; [vae] takes `smoe-vae`";
        assert_refused("router=smoe", smoe);
        let beta = "vae.beta: -1 must be finite and at least 0";
        assert_refused("vae.beta=-1", beta);
    }

    /// What a comparison puts over a recipe does not pass through its text.
    #[test]
    fn a_residual_put_over_a_recipe_is_refused() {
        let mut recipe = parse(&[]).unwrap();
        recipe.residual = crate::method::MethodRecipe::named("momentum");
        assert!(recipe.check().unwrap_err().to_string().starts_with("vae: stands beside"));
    }

    #[test]
    fn images_of_another_size_are_refused() {
        let images = Images::open("fashion-small", None).unwrap();
        let found = VaeRecipe { fraction: 0.5, ..VaeRecipe::default() }.images(images).unwrap();
        assert_eq!(found.split(moe_data::Split::Train).len(), 1800);
        assert_eq!(found.moments(), (&[0.0][..], &[1.0][..]));
    }
}
