//! Blocks of one size: all of a model, or a stage of a hierarchy.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `h` height, `w` width of an image.

use super::ends::{Ends, Rows};
use crate::error::Misuse;
use crate::recipe::Recipe;
use crate::vision::VisionRecipe;
use moe_models::{LmConfig, swin};
use std::borrow::Cow;
use std::ops::Range;

/// Blocks of one size, and what passes through them in a step.
pub(super) struct Stage<'a> {
    /// Their sizes; `layers` are the stage's.
    pub(super) model: Cow<'a, LmConfig>,
    /// Which blocks of the model.
    pub(super) blocks: Range<usize>,
    /// How many of them are sparse.
    pub(super) sparse: usize,
    /// Tokens.
    pub(super) tokens: f64,
    /// Rows in attention: tokens, and the padding of windows.
    pub(super) attending: f64,
    /// Tokens that attend to each other.
    pub(super) sequence: f64,
    /// Whether attention is in windows, whose weights are written down.
    pub(super) windows: bool,
}

impl<'a> Stage<'a> {
    /// The stages of a recipe's model.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub(super) fn all(recipe: &'a Recipe, ends: Ends, rows: &Rows) -> Result<Vec<Self>, Misuse> {
        match (&recipe.vision, ends) {
            (Some(vision), Ends::Images(spec)) if vision.swin.is_some() => {
                let [_, h, w] = spec.chw;
                Self::of_swin(recipe, vision, [h, w])
            }
            (Some(vision), _) => {
                let trunk = vision.trunk(&recipe.model).map_err(|e| Misuse::recipe("vision", e))?;
                let model = LmConfig { span: None, tied_embedding: false, ..trunk };
                Ok(vec![Self::only(Cow::Owned(model), rows)])
            }
            (None, _) => Ok(vec![Self::only(Cow::Borrowed(&recipe.model), rows)]),
        }
    }

    fn only(model: Cow<'a, LmConfig>, &Rows { tokens, sequence, .. }: &Rows) -> Self {
        let (blocks, sparse) = (0..model.layers as usize, model.sparse_layers());
        Self { model, blocks, sparse, tokens, attending: tokens, sequence, windows: false }
    }

    fn of_swin(recipe: &Recipe, vision: &VisionRecipe, hw: [i64; 2]) -> Result<Vec<Self>, Misuse> {
        let refused = |e| Misuse::recipe("vision", e);
        let config = vision.swin.clone().unwrap_or_default();
        let stages = config.stages(&recipe.model, hw.map(|length| length / vision.patch));
        let batch = recipe.train.batch as f64;
        let of = |stage: swin::Stage| {
            // Shifted windows are as many as those that are not.
            let windows = stage.windows(0);
            let sequence = windows.tokens() as f64;
            Self {
                blocks: stage.range(),
                sparse: stage.sparse_layers(),
                tokens: batch * stage.tokens() as f64,
                attending: batch * windows.count() as f64 * sequence,
                sequence,
                windows: true,
                model: Cow::Owned(LmConfig { tied_embedding: false, ..stage.blocks }),
            }
        };
        Ok(stages.map_err(refused)?.into_iter().map(of).collect())
    }

    /// Rows that pass through a matrix of one of the blocks, by its name.
    pub(super) fn through(&self, matrix: &str) -> f64 {
        if matrix.contains(".attention.") { self.attending } else { self.tokens }
    }

    /// FLOPs of a row in one layer's attention, its matrices aside.
    pub(super) fn attention_flops(&self) -> f64 {
        let (width, span) = (self.model.width as f64, self.model.span.unwrap_or(0) as f64);
        let again = 4.0 * width * width * span / self.sequence;
        (6.0 * span + 4.0 * self.sequence) * width + again
    }

    /// What attention over a span, or in windows, keeps besides.
    pub(super) fn more_kept(&self) -> f64 {
        let LmConfig { width, heads, span, .. } = *self.model;
        let (span, sequence, heads) = (span.unwrap_or(0) as f64, self.sequence, heads as f64);
        if self.windows {
            return self.attending * 3.0 * sequence * heads;
        }
        let remembered = 3.0 * width as f64 * span / sequence;
        let written = (2.0 * span + sequence) * heads;
        if span > 0.0 { self.tokens * (written + remembered) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::estimate;
    use moe_models::{ImageSpec, Rules};
    use moe_routers::ParamStore;
    use tch::{Device, Kind};

    /// On maps of 7 x 4 and 4 x 2 tokens, both padded: counts are the built model's, and the work is three times
    /// its exact FLOPs with a row of an expert for every choice of every token.
    #[test]
    fn a_hierarchy_is_counted_as_it_is_built() {
        let spec = ImageSpec { chw: [3, 28, 16], classes: 10 };
        let text = "[data]\nsource = 'fashion-small'\n[vision]\npatch = 4\n\
            swin = { depths = [2, 4], heads = [2, 4], window = 3, moe_stages = [1, 2] }\n\
            [model]\nwidth = 16\nexperts = 4\nactive_hidden = 24\n[train]\nbatch = 3";
        for router in ["smoe", "switch", "x-moe"] {
            let recipe = Recipe::parse(&format!("router = '{router}'\n{text}"), &[]).unwrap();
            let recipe = recipe.resolved().unwrap();
            let found = estimate(&recipe, Ends::Images(spec), 0).unwrap();
            let config = recipe.router.router().unwrap();
            let store = ParamStore::new(0, Device::Cpu, Kind::Float);
            let vision = recipe.vision.as_ref().unwrap();
            let model =
                vision.classifier(&store, &recipe.model, &Rules::new(config.as_ref()), spec);
            let model = model.unwrap();
            let counts = (found.params_total, found.params_active);
            let built = (store.trainable_count() as u64, model.active_params(&store) as u64);
            assert_eq!(counts, built, "{router}");
            let rows = [28.0, 8.0, 8.0].map(|tokens| tokens * config.active_experts(4));
            let exact = 3.0 * 3.0 * model.flops(&rows);
            assert!((found.flops_per_step / exact - 1.0).abs() < 1e-12, "{router}: {exact}");
            assert_eq!(found.tokens_per_step, 3 * 28);
        }
    }
}
