//! What a model reads and what it predicts: where language models and image classifiers differ in cost.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `c` channels, `h` height, `w` width of an image.

use crate::error::Misuse;
use crate::recipe::Recipe;
use moe_models::{DecoderLm, ImageSpec, MaskedLm, Rules, TextClassifier, TextPool, head};
use moe_routers::ParamStore;

/// What is known of the data before the model is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Text of so many token ids.
    Text(usize),
    /// Labelled texts, with `[classify]` in the recipe.
    Texts {
        /// Number of token ids.
        vocabulary: usize,
        /// Number of classes.
        classes: usize,
    },
    /// Text with so many ids, of which `[masked]` hides a share.
    Masked(usize),
    /// Images, with `[vision]` in the recipe.
    Images(ImageSpec),
}

/// How many rows pass through a model's parts in a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rows {
    /// Through every block.
    pub(super) tokens: f64,
    /// Tokens that attend to each other.
    pub(super) sequence: f64,
    /// Through the output layer.
    pub(super) outputs: f64,
    /// Through the output layer at once.
    pub(super) chunk: f64,
    /// Through the map of patches to tokens.
    pub(super) patches: f64,
    /// Values of the images, of which the map of patches keeps a copy by patches.
    pub(super) pixels: f64,
}

impl Ends {
    /// Number of token ids; 0 of images.
    pub(super) fn vocabulary(self) -> usize {
        match self {
            Self::Text(ids) | Self::Masked(ids) | Self::Texts { vocabulary: ids, .. } => ids,
            Self::Images(_) => 0,
        }
    }

    /// Number of classes of a classifier.
    pub(super) fn classes(self) -> Option<usize> {
        match self {
            Self::Text(_) | Self::Masked(_) => None,
            Self::Texts { classes, .. } => Some(classes),
            Self::Images(spec) => Some(spec.classes as usize),
        }
    }

    /// Ids or classes to choose from.
    pub(super) fn choices(self) -> usize {
        self.classes().unwrap_or(self.vocabulary())
    }

    /// Builds the model on `store`; returns the parameters that one token uses.
    pub(super) fn active_params(
        self,
        recipe: &Recipe,
        rules: &Rules<'_>,
        store: &ParamStore,
    ) -> Result<usize, Misuse> {
        let refused = |e| Misuse::recipe("model", e);
        match (self, &recipe.vision) {
            (Self::Images(spec), Some(vision)) => {
                let model = vision.classifier(store, &recipe.model, rules, spec)?;
                Ok(model.active_params(store))
            }
            (Self::Texts { vocabulary, classes }, _) => {
                let ends = (vocabulary as i64, classes as i64);
                let model = TextClassifier::new(store, &recipe.model, rules, ends, TextPool::Mean);
                let model = model.map_err(|e| Misuse::recipe(e.key, e.reason))?;
                Ok(model.trunk().active_params(store))
            }
            (Self::Masked(vocabulary), _) => {
                let model = MaskedLm::new(store, &recipe.model, rules, vocabulary as i64);
                Ok(model.map_err(refused)?.active_params(store))
            }
            _ => {
                let model = DecoderLm::new(store, &recipe.model, rules, self.choices() as i64);
                Ok(model.map_err(refused)?.active_params(store))
            }
        }
    }

    /// Rows of a step.
    pub(super) fn rows(self, recipe: &Recipe) -> Rows {
        let batch = recipe.train.batch as f64;
        match (self, &recipe.vision) {
            (Self::Images(spec), Some(vision)) => {
                let [c, h, w] = spec.chw;
                let pixels = batch * (c * h * w) as f64;
                let sequence = vision.tokens(h, w) as f64;
                let patches = pixels / (c * vision.patch * vision.patch) as f64;
                let (tokens, outputs, chunk) = (batch * sequence, batch, batch);
                Rows { tokens, sequence, outputs, chunk, patches, pixels }
            }
            _ => {
                let sequence = recipe.train.sequence as f64;
                let tokens = batch * sequence;
                let outputs = match (self, &recipe.masked) {
                    (Self::Texts { .. }, _) => batch,
                    (_, Some(masking)) => tokens * masking.share,
                    _ => tokens,
                };
                let chunk = outputs.min(head::CHUNK as f64);
                Rows { tokens, sequence, outputs, chunk, patches: 0.0, pixels: 0.0 }
            }
        }
    }
}

impl Rows {
    /// Rows that pass through a matrix, by its name.
    pub(super) fn through(&self, matrix: &str) -> f64 {
        match matrix {
            "patch.weight" => self.patches,
            "head" | "head.weight" | "classifier.weight" | "transform.weight" => self.outputs,
            _ => self.tokens,
        }
    }
}
