//! The vision part of a recipe: `[vision]` makes the model an image classifier and `data.source` images.
//!
//! ```toml
//! [data]
//! source = "fashion-small"        # or a directory in a published layout
//!
//! [vision]
//! patch = 4
//! placement = { every = 2 }       # or { last = 2 }; else model.moe_every
//!
//! [vision.augment]
//! crop = 2
//! ```
//!
//! `[model]` then has the sizes of the blocks. What only text has is refused, and left out of the record of
//! a run.

use crate::error::Misuse;
use crate::recipe::Recipe;
use moe_data::Augment;
use moe_models::{LmConfig, ModelError, Pool, VitConfig};
use moe_routers::Tie;
use moe_routers::v_moe::Placement;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// What an image classifier has beside the sizes of its blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VisionRecipe {
    /// Side of a patch in pixels; divides both sides of the image.
    pub patch: i64,
    /// What the classifier reads.
    pub pool: Pool,
    /// Which blocks are sparse, by V-MoE's rules; `model.moe_every` and `model.moe_first` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Side to which pictures of a folder are resized and cut; their own size unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<u32>,
    /// What happens to training images.
    pub augment: Augment,
}

impl Default for VisionRecipe {
    fn default() -> Self {
        let VitConfig { patch, pool, placement } = VitConfig::default();
        Self { patch, pool, placement, side: None, augment: Augment::default() }
    }
}

/// Keys that only a language model reads.
const TEXT_ONLY: [(&str, &str); 6] = [
    ("data", "tokenizer"),
    ("model", "context"),
    ("model", "span"),
    ("model", "tied_embedding"),
    ("model", "softmax"),
    ("train", "sequence"),
];

/// Refuses keys of text beside `[vision]`.
///
/// # Errors
/// The key.
pub(crate) fn refuse_text_keys(recipe: &Table) -> Result<(), Misuse> {
    let has = |section: &str, key: &str| {
        recipe.get(section).and_then(Value::as_table).is_some_and(|table| table.contains_key(key))
    };
    match TEXT_ONLY.into_iter().find(|(section, key)| has(section, key)) {
        Some((section, key)) if recipe.contains_key("vision") => {
            let path = format!("{section}.{key}");
            Err(Misuse::recipe(
                &path,
                "has no meaning beside [vision]: an image has a token a patch",
            ))
        }
        _ => Ok(()),
    }
}

/// Takes the keys of text out of a vision recipe.
pub(crate) fn drop_text_keys(recipe: &mut Table) {
    for (section, key) in TEXT_ONLY {
        recipe.get_mut(section).and_then(Value::as_table_mut).map(|table| table.remove(key));
    }
}

impl VisionRecipe {
    /// The classifier's part.
    pub fn vit(&self) -> VitConfig {
        VitConfig { patch: self.patch, pool: self.pool, placement: self.placement }
    }

    /// The sizes of the blocks, with the placement of the sparse ones.
    ///
    /// # Errors
    /// A placement that leaves no sparse block.
    pub fn trunk(&self, blocks: &LmConfig) -> Result<LmConfig, ModelError> {
        self.vit().trunk(blocks)
    }

    /// Refuses values that do not go together, before images are read.
    ///
    /// # Errors
    /// The key and what is wrong.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Misuse> {
        self.trunk(&recipe.model).map_err(|e| Misuse::recipe("vision", e))?;
        if self.patch < 1 {
            return Err(Misuse::recipe(
                "vision.patch",
                format!("{} must be at least 1", self.patch),
            ));
        }
        if self.side == Some(0) {
            return Err(Misuse::recipe("vision.side", "0 must be at least 1"));
        }
        let augment = self.augment.check();
        augment
            .map_err(|(key, reason)| Misuse::recipe(&format!("vision.augment.{key}"), reason))?;
        let reads_ids = |(_, tie): &(&str, Tie)| *tie == Tie::Vocab;
        if recipe.router.router()?.ties().iter().any(reads_ids) {
            let reason =
                format!("`{}` reads the ids of words, which images have not", recipe.router.name);
            return Err(Misuse::recipe("router", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VISION: &str =
        "router = 'v-moe'\n[data]\nsource = 'fashion-small'\n[vision]\npatch = 7\n";

    fn parse(sets: &[&str]) -> Result<Recipe, Misuse> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::parse(VISION, &sets)
    }

    #[track_caller]
    fn assert_refused(set: &str, message: &str) {
        assert_eq!(parse(&[set]).unwrap_err().to_string(), message);
    }

    #[test]
    fn keys_of_text_are_refused_and_not_recorded() {
        let meaning = "has no meaning beside [vision]: an image has a token a patch";
        assert_refused("model.context=64", &format!("model.context: {meaning}"));
        assert_refused("data.tokenizer=byte", &format!("data.tokenizer: {meaning}"));
        let recorded = parse(&[]).unwrap().resolved().unwrap().to_toml();
        assert!(!recorded.contains("context") && !recorded.contains("tokenizer"), "{recorded}");
        let again = Recipe::parse(&recorded, &[]).unwrap();
        assert_eq!(again.resolved().unwrap().to_toml(), recorded);
        assert_eq!(again.vision.unwrap().patch, 7);
    }

    #[test]
    fn bad_values_name_their_key() {
        assert_refused("vision.patch=0", "vision.patch: 0 must be at least 1");
        assert_refused("vision.placement.last=0", "vision.placement: 0 must be at least 1");
        assert_refused("vision.augment.mixup=-1", "vision.augment.mixup: -1 is outside 0..=1000");
        let ids = "router: `hash` reads the ids of words, which images have not";
        assert_refused("router=hash", ids);
        let unknown = parse(&["vision.augment.crops=1"]).unwrap_err().to_string();
        assert!(unknown.starts_with("vision.augment.crops: unknown field"), "{unknown}");
        let group = "model.routing_group.sequences: 0 must be at least 1";
        assert_refused("model.routing_group.sequences=0", group);
    }
}
