//! What a recipe with `[vae]` will cost: `moe train R --dry-run`.
//!
//! The model is built on a sketch, whose tensors have shapes and no memory. Bytes are four a value: weights,
//! gradients and both moments of every parameter, and four times what convolutions write in a forward pass
//! over a batch (output, activation, and the gradients of both). Unverified: no test holds it to a measured
//! peak.
//! FLOPs of a training step are three forward passes: encoder, gate, and every decoder that runs.

use crate::environment::peak_memory_bytes;
use crate::error::Misuse;
use crate::estimate::size;
use crate::recipe::Recipe;
use crate::say::say;
use crate::subject::Subject;
use anyhow::Result;
use moe_data::{Images, Split};
use moe_models::SmoeVae;
use moe_routers::ParamStore;
use serde::Serialize;
use tch::Kind;

/// Learned values by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Encoder.
    pub encoder: u64,
    /// All decoders.
    pub decoders: u64,
    /// Gate.
    pub gate: u64,
}

/// What a recipe will cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VaeCost {
    /// Learned values.
    pub params_total: u64,
    /// Learned values that one image uses at evaluation.
    pub params_active: u64,
    /// Learned values by part.
    pub params: Parts,
    /// Decoders that draw an image in training.
    pub trained_decoders: f64,
    /// Peak memory of training, bytes, the process with its data included.
    pub memory_bytes: f64,
    /// FLOPs of one training step.
    pub flops_per_step: f64,
    /// FLOPs of one image at evaluation, by one decoder.
    pub flops_per_image: f64,
    /// Images of one training step.
    pub images_per_step: u64,
}

/// What `--dry-run --json` prints.
#[derive(Debug, Serialize)]
struct DryRun {
    recipe: Recipe,
    /// Images of training, validation and test.
    images: [usize; 3],
    classes: Vec<String>,
    #[serde(flatten)]
    cost: VaeCost,
}

impl VaeCost {
    /// The cost of a resolved recipe in a process that has `process` bytes before the model is built.
    ///
    /// # Errors
    /// A recipe without `[vae]`, or sizes out of range.
    pub fn of(recipe: &Recipe, process: u64) -> Result<Self, Misuse> {
        let missing = || Misuse::new("vae: is not in this recipe");
        let vae = recipe.vae.as_ref().ok_or_else(missing)?;
        let (gate, config) = (recipe.router.router()?, vae.config(recipe));
        let store = ParamStore::sketch(Kind::Float);
        let model = SmoeVae::new(&store, config, gate.as_ref());
        let model = model.map_err(|e| Misuse::recipe("vae", e))?;
        let batch = recipe.train.batch as f64;
        let trained_decoders = gate.trained_experts(config.experts as usize);
        let (flops, values) = model.cost(&store, trained_decoders);
        let params_total = store.trainable_count() as u64;
        let values = 4.0 * params_total as f64 + 4.0 * batch * values;
        Ok(Self {
            params_total,
            params_active: model.active_params(&store) as u64,
            params: parts(&store),
            trained_decoders,
            memory_bytes: process as f64 + 4.0 * values,
            flops_per_step: 3.0 * batch * flops,
            flops_per_image: model.cost(&store, 1.0).0,
            images_per_step: recipe.train.batch as u64,
        })
    }

    fn render(&self) -> String {
        let Self { params, trained_decoders: decoders, .. } = self;
        format!(
            "parameters   {} learned, {} active per image: encoder {}, decoders {}, gate {}\n\
             memory       about {} at the peak of training on a CPU\n\
             work         {:.4e} FLOPs per step of {} images, each drawn by {decoders} decoders; {:.4e} per image at evaluation\n",
            self.params_total,
            self.params_active,
            params.encoder,
            params.decoders,
            params.gate,
            size(self.memory_bytes),
            self.flops_per_step,
            self.images_per_step,
            self.flops_per_image,
        )
    }
}

fn parts(store: &ParamStore) -> Parts {
    let mut parts = Parts::default();
    for param in store.entries().iter() {
        let part = match param.name.split('.').next() {
            Some("encoder") => &mut parts.encoder,
            Some("decoder") => &mut parts.decoders,
            _ => &mut parts.gate,
        };
        *part += param.tensor.numel() as u64;
    }
    parts
}

/// Prints what a run would be.
///
/// # Errors
/// A recipe or data that cannot be used.
pub fn dry_run(recipe: &Recipe, json: bool) -> Result<()> {
    let recipe = recipe.resolved()?;
    recipe.check()?;
    let Subject::Drawings(images, _) = Subject::open(&recipe, None)? else {
        return Err(Misuse::new("vae: is not in this recipe").into());
    };
    let found = DryRun {
        images: Split::ALL.map(|split| images.split(split).len()),
        classes: images.classes().to_vec(),
        cost: VaeCost::of(&recipe, peak_memory_bytes())?,
        recipe,
    };
    let text = match json {
        // The record, not the whole structure: other models' keys have no meaning here.
        true => serde_json::to_string_pretty(&as_json(&found)?)? + "\n",
        false => {
            let data = data_line(&images, found.images);
            format!("{}\n{data}\n{}", found.recipe.to_toml(), found.cost.render())
        }
    };
    Ok(say(&text)?)
}

fn as_json(found: &DryRun) -> Result<serde_json::Value> {
    let mut json = serde_json::to_value(found)?;
    let record: toml::Table = found.recipe.to_toml().parse()?;
    json["recipe"] = serde_json::to_value(record)?;
    Ok(json)
}

fn data_line(images: &Images, [train, valid, test]: [usize; 3]) -> String {
    let classes = images.classes().len();
    let name = images.name();
    format!("data         {name}: {train} + {valid} + {test} images of {classes} classes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(sets: &[&str]) -> VaeCost {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let recipe = Recipe::parse("router = 'smoe-vae'\nmodel.experts = 5\n[vae]\n", &sets);
        VaeCost::of(&recipe.unwrap().resolved().unwrap(), 0).unwrap()
    }

    /// The release's sizes; five decoders draw in unsupervised training, one in supervised.
    #[test]
    fn parts_are_those_of_the_release() {
        let found = cost(&[]);
        let want = Parts { encoder: 494_144, decoders: 5 * 14_249, gate: 4_357 };
        assert_eq!(found.params, want);
        assert_eq!(found.params_total, 494_144 + 5 * 14_249 + 4_357);
        assert_eq!(found.params_active, 494_144 + 14_249 + 4_357);
        assert_eq!(found.trained_decoders, 5.0);
        let supervised = cost(&["router.preset=supervised"]);
        assert_eq!(supervised.trained_decoders, 1.0);
        assert_eq!(supervised.flops_per_image, found.flops_per_image);
        let step = |found: &VaeCost| found.flops_per_step / found.images_per_step as f64;
        assert_eq!(step(&supervised), 3.0 * found.flops_per_image);
        assert!(step(&found) > step(&supervised));
    }
}
