//! What a recipe is about: its data, and the task that is made of data and model.

use crate::classify::Labelled;
use crate::error::Misuse;
use crate::estimate::Ends;
use crate::recipe::{DataRecipe, Recipe};
use crate::vae::VaeRecipe;
use crate::vision::VisionRecipe;
use anyhow::Result;
use moe_data::{Images, MaskedText, Masking, Split, TokenStream};
use moe_models::{DecoderLm, ImageSpec, MaskedLm, Recompute, Rules, SmoeVae, TextClassifier};
use moe_routers::ParamStore;
use moe_train::{ImageTask, LmTask, MaskedTask, Task, TextTask, VaeTask};
use std::sync::Arc;
use tch::Device;

/// The data of a run.
#[derive(Debug, Clone)]
pub enum Subject {
    /// Text as tokens, for a language model.
    Text(Arc<TokenStream>),
    /// Images, for a classifier.
    Images(Arc<Images>, VisionRecipe),
    /// Images, to be drawn again.
    Drawings(Arc<Images>, VaeRecipe),
    /// Labelled texts, for a classifier that a language model becomes.
    Labelled(Labelled),
    /// Text in several languages, for a masked language model.
    Masked(Arc<MaskedText>, Masking),
}

impl Subject {
    /// Reads the data of a recipe; text for a model that was trained on `trained`, its own data if left out.
    ///
    /// # Errors
    /// A source that cannot be read, or that is cut in no way the recipe says.
    pub fn open(recipe: &Recipe, trained: Option<&DataRecipe>) -> Result<Self, Misuse> {
        let trained = trained.unwrap_or(&recipe.data);
        if let Some(masking) = recipe.masked {
            let text = recipe.data.open_languages_for(trained)?;
            return Ok(Self::Masked(Arc::new(text), masking));
        }
        if let Some(vae) = &recipe.vae {
            let images = Images::open(&recipe.data.source, None)
                .map_err(|e| Misuse::recipe("data.source", chain(&e)))?;
            return Ok(Self::Drawings(vae.images(images)?, vae.clone()));
        }
        if let Some(classify) = &recipe.classify {
            return Ok(Self::Labelled(classify.open(recipe)?));
        }
        let Some(vision) = &recipe.vision else {
            return Ok(Self::Text(Arc::new(recipe.data.open_for(trained)?)));
        };
        let images = Images::open(&recipe.data.source, vision.side)
            .map_err(|e| Misuse::recipe("data.source", chain(&e)))?;
        Ok(Self::Images(Arc::new(images), vision.clone()))
    }

    /// A fresh model under `store` together with the data.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn task(
        &self,
        recipe: &Recipe,
        store: &ParamStore,
        device: Device,
    ) -> Result<Box<dyn Task>, Misuse> {
        let methods = recipe.methods()?;
        let rules = methods.rules();
        let train = &recipe.train;
        if train.recompute != Recompute::None && device != Device::Cpu {
            let reason = "only the kernels of the CPU can compute experts again";
            return Err(Misuse::recipe("train.recompute", reason));
        }
        match self {
            Self::Text(text) => {
                let model = DecoderLm::new(store, &recipe.model, &rules, text.vocab_size() as i64);
                let model = model.map_err(|e| Misuse::recipe("model", e))?;
                let model = model.with_precision(train.precision).with_recompute(train.recompute);
                let size = (train.batch, train.sequence);
                Ok(Box::new(LmTask::new(model, Arc::clone(text), size, device)))
            }
            Self::Images(images, vision) => {
                let model = vision.classifier(store, &recipe.model, &rules, spec(images))?;
                let how = (train.batch, vision.augment.clone());
                Ok(Box::new(ImageTask::new(model, Arc::clone(images), how, device)))
            }
            Self::Masked(text, masking) => {
                let model = masked_lm(text, recipe, &rules, store)?;
                let how = (train.batch, train.sequence, *masking);
                Ok(Box::new(MaskedTask::new(model, Arc::clone(text), how, device)))
            }
            Self::Drawings(images, vae) => {
                let model = SmoeVae::new(store, vae.config(recipe), rules.router);
                let model = model.map_err(|e| Misuse::recipe("vae", e))?;
                let how = (train.batch, vae.background);
                Ok(Box::new(VaeTask::new(model, Arc::clone(images), how, device)))
            }
            Self::Labelled(Labelled { texts, vocabulary, recipe: classify, .. }) => {
                let ends = (*vocabulary as i64, texts.classes().len() as i64);
                let model = TextClassifier::new(store, &recipe.model, &rules, ends, classify.pool);
                let model = model.map_err(|e| Misuse::recipe(e.key, e.reason))?;
                let how = (train.batch, classify.freeze.as_slice());
                Ok(Box::new(TextTask::new(model, Arc::clone(texts), how, store, device)))
            }
        }
    }

    /// What a model of these data reads and predicts; `None` for drawings, whose cost
    /// [`crate::vae_cost`] counts.
    pub fn ends(&self) -> Option<Ends> {
        match self {
            Self::Text(text) => Some(Ends::Text(text.vocab_size())),
            Self::Masked(text, _) => Some(Ends::Masked(text.vocab_size())),
            Self::Images(images, _) => Some(Ends::Images(spec(images))),
            Self::Labelled(Labelled { texts, vocabulary, .. }) => {
                Some(Ends::Texts { vocabulary: *vocabulary, classes: texts.classes().len() })
            }
            Self::Drawings(..) => None,
        }
    }

    /// Name of the data.
    pub fn name(&self) -> &str {
        match self {
            Self::Text(text) => text.corpus(),
            Self::Images(images, _) | Self::Drawings(images, _) => images.name(),
            Self::Labelled(labelled) => labelled.texts.name(),
            Self::Masked(text, _) => text.languages().name(),
        }
    }

    /// How data become tokens.
    pub fn tokenizer(&self) -> String {
        match self {
            Self::Text(text) => text.tokenizer().name().into(),
            Self::Images(_, vision) => format!("patches of {0} x {0}", vision.patch),
            Self::Masked(text, _) => text.tokenizer().name().into(),
            Self::Drawings(..) => "whole images".into(),
            Self::Labelled(labelled) => labelled.tokenizer.into(),
        }
    }

    /// Tokens of a training batch; of texts as many as they have on average.
    pub fn tokens_per_step(&self, recipe: &Recipe) -> usize {
        let tokens = match self {
            Self::Text(_) | Self::Masked(..) => recipe.train.sequence,
            Self::Images(images, vision) => {
                let [_, h, w] = spec(images).chw;
                vision.tokens(h, w) as usize
            }
            Self::Drawings(..) => 1,
            Self::Labelled(labelled) => labelled.texts.mean_tokens().round() as usize,
        };
        recipe.train.batch * tokens
    }

    /// What an evaluation counts.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Text(_) => "tokens",
            Self::Images(..) | Self::Drawings(..) => "images",
            Self::Labelled(_) => "texts",
            Self::Masked(..) => "hidden tokens",
        }
    }

    /// Mean loss on the validation split of who knows only how often each target occurs in training, or who
    /// draws the mean image.
    pub fn floor(&self) -> f64 {
        match self {
            Self::Text(text) => text.unigram_nll(Split::Valid),
            Self::Images(images, _) => images.label_nll(Split::Valid),
            Self::Masked(text, _) => text.unigram_nll(Split::Valid),
            Self::Drawings(images, _) => images.mean_image_error(Split::Valid),
            Self::Labelled(labelled) => labelled.texts.label_nll(Split::Valid),
        }
    }

    /// Bits per byte of text, where tokens lose none.
    pub fn bits_per_byte(&self, split: Split, nats: f64) -> Option<f64> {
        match self {
            Self::Text(text) => text.bits_per_byte(split, nats),
            Self::Images(..) | Self::Drawings(..) | Self::Labelled(_) | Self::Masked(..) => None,
        }
    }
}

/// The masked language model of a recipe.
///
/// # Errors
/// Sizes that do not go together.
pub(crate) fn masked_lm(
    text: &MaskedText,
    recipe: &Recipe,
    rules: &Rules<'_>,
    store: &ParamStore,
) -> Result<MaskedLm, Misuse> {
    let model = MaskedLm::new(store, &recipe.model, rules, text.vocab_size() as i64);
    let model = model.map_err(|e| Misuse::recipe("model", e))?;
    Ok(model.with_precision(recipe.train.precision))
}

fn spec(images: &Images) -> ImageSpec {
    let size = images.size();
    let chw = [size.channels, size.height, size.width].map(|side| side as i64);
    ImageSpec { chw, classes: images.classes().len() as i64 }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
