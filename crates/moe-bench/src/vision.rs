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
//!
//! With `swin` the classifier is a Swin Transformer, and `[model]` has the sizes of its first stage: width and
//! hidden widths double from stage to stage, `moe_every` counts the blocks of a stage.
//!
//! ```toml
//! [vision]
//! patch = 4
//! swin = { depths = [2, 2, 6, 2], heads = [3, 6, 12, 24], window = 7, moe_stages = [3, 4], drop_path = 0.2 }
//! ```

use crate::error::Misuse;
use crate::recipe::Recipe;
use moe_data::Augment;
use moe_models::swin::Stage;
use moe_models::{
    ImageClassifier, ImageSpec, LmConfig, ModelError, Pool, Rules, Swin, SwinConfig, Vit, VitConfig,
};
use moe_routers::v_moe::Placement;
use moe_routers::{ParamStore, Tie};
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
    /// Stages and windows of a Swin Transformer; a Vision Transformer unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swin: Option<SwinConfig>,
    /// Side to which pictures of a folder are resized and cut; their own size unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<u32>,
    /// What happens to training images.
    pub augment: Augment,
}

impl Default for VisionRecipe {
    fn default() -> Self {
        let VitConfig { patch, pool, placement } = VitConfig::default();
        Self { patch, pool, placement, swin: None, side: None, augment: Augment::default() }
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

/// Keys that a Swin Transformer has no use for.
const UNSTAGED: [(&str, &str); 5] = [
    ("model", "layers"),
    ("model", "heads"),
    ("model", "moe_first"),
    ("vision", "pool"),
    ("vision", "placement"),
];

/// Keys that a recipe does not read, and why.
fn unread(recipe: &Table) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let staged =
        recipe.get("vision").and_then(Value::as_table).is_some_and(|v| v.contains_key("swin"));
    let of_text = "[vision]: an image has a token a patch";
    let of_stages = "vision.swin, which says it by stage";
    let unstaged = UNSTAGED.into_iter().filter(move |_| staged);
    let text = TEXT_ONLY.into_iter().map(move |(section, key)| (section, key, of_text));
    text.chain(unstaged.map(move |(section, key)| (section, key, of_stages)))
}

/// Refuses keys of text beside `[vision]`, and those that say otherwise than `vision.swin`.
///
/// # Errors
/// The key.
pub(crate) fn refuse_unread_keys(recipe: &Table) -> Result<(), Misuse> {
    let has = |section: &str, key: &str| {
        recipe.get(section).and_then(Value::as_table).is_some_and(|table| table.contains_key(key))
    };
    let found = unread(recipe).find(|(section, key, _)| has(section, key));
    match found.filter(|_| recipe.contains_key("vision")) {
        Some((section, key, beside)) => {
            let reason = format!("has no meaning beside {beside}");
            Err(Misuse::recipe(&format!("{section}.{key}"), reason))
        }
        None => Ok(()),
    }
}

/// Takes the keys that are not read out of a vision recipe.
pub(crate) fn drop_unread_keys(recipe: &mut Table) {
    for (section, key, _) in unread(recipe).collect::<Vec<_>>() {
        recipe.get_mut(section).and_then(Value::as_table_mut).map(|table| table.remove(key));
    }
}

impl VisionRecipe {
    /// The classifier's part.
    pub fn vit(&self) -> VitConfig {
        VitConfig { patch: self.patch, pool: self.pool, placement: self.placement }
    }

    /// The sizes of a Vision Transformer's blocks, with the placement of the sparse ones.
    ///
    /// # Errors
    /// A placement that leaves no sparse block.
    pub fn trunk(&self, blocks: &LmConfig) -> Result<LmConfig, ModelError> {
        self.vit().trunk(blocks)
    }

    /// The sizes that the other settings of a recipe are checked against: `model` with what `swin` says.
    pub(crate) fn blocks(&self, model: &LmConfig) -> LmConfig {
        self.swin.as_ref().map_or_else(|| model.clone(), |swin| swin.blocks(model))
    }

    /// The most sparse layers that follow one another: of a stage, or all.
    ///
    /// # Errors
    /// No sparse block.
    pub(crate) fn sparse_layers(&self, model: &LmConfig) -> Result<usize, ModelError> {
        let Some(swin) = &self.swin else { return Ok(self.trunk(model)?.sparse_layers()) };
        // Which blocks are sparse does not depend on the map.
        let stages = swin.stages(model, [1, 1])?;
        Ok(stages.iter().map(Stage::sparse_layers).max().unwrap_or(0))
    }

    /// Tokens of an image of `h` x `w` pixels at the first block.
    pub fn tokens(&self, h: i64, w: i64) -> i64 {
        match self.swin {
            Some(_) => (h / self.patch) * (w / self.patch),
            None => self.vit().tokens(h, w),
        }
    }

    /// A fresh classifier with blocks of the sizes in `model`.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn classifier(
        &self,
        store: &ParamStore,
        model: &LmConfig,
        rules: &Rules<'_>,
        spec: ImageSpec,
    ) -> Result<Box<dyn ImageClassifier>, Misuse> {
        let of_vision = |e: ModelError| Misuse::recipe("vision", e);
        if let Some(swin) = &self.swin {
            let swin = Swin::new(store, (swin, self.patch), model, rules, spec);
            return Ok(Box::new(swin.map_err(of_vision)?));
        }
        let config = self.vit();
        config.check(spec.chw).map_err(of_vision)?;
        let vit = Vit::new(store, &config, model, rules, spec);
        Ok(Box::new(vit.map_err(|e| Misuse::recipe("model", e))?))
    }

    /// Refuses values that do not go together, before images are read.
    ///
    /// # Errors
    /// The key and what is wrong.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Misuse> {
        self.sparse_layers(&recipe.model).map_err(|e| Misuse::recipe("vision", e))?;
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
        if self.swin.is_some() && recipe.router.router()?.reads_attention() {
            let name = &recipe.router.name;
            let reason = format!(
                "`{name}` reads attention over the whole image; windows (vision.swin) have none"
            );
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

    const SWIN: &str = "vision.swin={ depths = [2, 2], heads = [2, 4], window = 4 }";

    #[track_caller]
    fn assert_swin_refused(more: &[&str], message: &str) {
        let sets = [&[SWIN, "vision.swin.moe_stages=[2]"], more].concat();
        assert_eq!(parse(&sets).unwrap_err().to_string(), message);
    }

    #[test]
    fn stages_say_what_blocks_say_elsewhere() {
        let recipe = parse(&[SWIN, "vision.swin.moe_stages=[1, 2]", "model.width=6"]).unwrap();
        assert_eq!((recipe.model.layers, recipe.model.heads), (4, 2));
        let recorded = recipe.resolved().unwrap().to_toml();
        for key in ["layers =", "heads = 2", "moe_first", "pool", "placement"] {
            assert!(!recorded.contains(key), "{key} in {recorded}");
        }
        let again = Recipe::parse(&recorded, &[]).unwrap().resolved().unwrap();
        assert_eq!(again.to_toml(), recorded);
        let beside = "has no meaning beside vision.swin, which says it by stage";
        assert_swin_refused(&["model.layers=4"], &format!("model.layers: {beside}"));
        assert_swin_refused(&["model.heads=2"], &format!("model.heads: {beside}"));
        assert_swin_refused(&["vision.pool=mean"], &format!("vision.pool: {beside}"));
        let placement = format!("vision.placement: {beside}");
        assert_swin_refused(&["vision.placement.last=1"], &placement);
    }

    #[test]
    fn bad_stages_name_their_key() {
        assert_swin_refused(
            &["vision.swin.heads=[3, 4]"],
            "vision.swin.heads: 3 does not divide width 128",
        );
        assert_swin_refused(
            &["vision.swin.heads=[2, 3]"],
            "vision.swin.heads: 3 does not divide width 256",
        );
        assert_swin_refused(
            &["vision.swin.depths=[2, 0]"],
            "vision.swin.depths: 0 is outside 1..=4096",
        );
        assert_swin_refused(
            &["vision.swin.moe_stages=[3]"],
            "vision.swin.moe_stages: 3 is no stage among 2",
        );
        assert_swin_refused(
            &["model.moe_every=3"],
            "vision.swin.moe_stages: no block is sparse with moe_every = 3",
        );
        let unknown = parse(&[SWIN, "vision.swin.windows=7"]).unwrap_err().to_string();
        assert!(unknown.starts_with("vision.swin.windows: unknown field"), "{unknown}");
        assert_swin_refused(
            &["router={ name = 'token-graph', graph = 'attention' }"],
            "router: `token-graph` reads attention over the whole image; windows (vision.swin) have none",
        );
        let alone = parse(&[SWIN, "vision.swin.moe_stages=[1, 2]", "residual=momentum"]);
        let alone = alone.unwrap_err().to_string();
        assert!(alone.starts_with("residual.rule: nothing would be carried"), "{alone}");
    }
}
