//! What a recipe will cost, before anything of it is allocated: parameters, memory, work.
//!
//! The model is built on a [sketch](ParamStore::sketch), whose tensors have shapes and no memory, by the
//! code that builds it for training: counts cannot differ from the trained model's. With `N = b t` tokens
//! of a step, `d` the width, `v` the vocabulary, `H` the hidden width that a token uses (`active_hidden`;
//! `expert_hidden` times the experts that it visits, where that is given) and `m` hidden maps of an
//! activation (2 if gated, else 1), all in values of four bytes:
//!
//! ```text
//! weights       every parameter and buffer, and once more every expert: packed for the kernels (CPU)
//! gradients     every learned parameter
//! moments       twice every learned parameter
//! activations   twice what the forward pass keeps, for gradients flow beside it:
//!               a layer's attention  7 N d     (+ 3 N t heads where a router reads the weights;
//!                                              + N (2 l + t) heads + 3 N d l / t with a span of l;
//!                                              + 3 N q heads with windows of q tokens)
//!               a dense layer        2 N d + (m + 1) N H
//!               a sparse layer       4 N d + m N H + 4 N e
//!               with recompute = "experts", m N H once instead of in every layer
//! scratch       5 min(N, 1024) v + 3 v d + 2 N d: the output layer's chunk, its gradients
//! checkpoint    four times every learned parameter: the moments, copied and as a file
//! process       what is resident when the data are read and the model is not yet there
//! ```
//!
//! The peak is `process + weights + gradients + moments + max(activations + scratch, checkpoint)`. The
//! factors 2 and 5 were fitted to measured peaks. A test holds the peak to within [`FACTOR`] of the measured peak of a training process.
//!
//! Work of a step is three times a forward pass (the backward pass makes two products of every one): a
//! token multiplies every matrix once, 2 FLOPs a value, of the experts its share; and `4 t d` in
//! every layer's attention, or with a span of `l`, whose keys and values are computed again for the memory,
//! `(6 l + 4 t) d + 4 d^2 l / t`. What a rule computes besides its matrices (similarities between tokens,
//! sorting) is not in it, and of an adaptive softmax the head alone: how many targets fall into its tails
//! depends on the text. A masked language model's output layer reads the hidden tokens alone. Of a classifier the output layer works on images or texts, of an image classifier the
//! map of patches on patches, and its activations have the images twice more: as they are and by patches
//! ([`Ends`]).
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `e` experts, `v` vocabulary.

mod ends;
mod stages;

pub use ends::Ends;

use crate::error::Misuse;
use crate::recipe::Recipe;
use ends::Rows;
use moe_models::{LmConfig, Recompute, SoftmaxConfig};
use moe_routers::{ParamStore, Role, RouterConfig};
use serde::Serialize;
use stages::Stage;
use tch::Kind;

/// The measured peak of a training process lies within this factor of the estimate, either way.
pub const FACTOR: f64 = 1.5;

/// What a token passes without a product, by the end of its name: tables of which it takes a row, and the
/// biases of a bank, which lie in a matrix.
const NO_PRODUCT: [&str; 5] = ["embedding", "position", "word_emb", ".b1", ".b2"];

/// Values of `f32` are this long.
const BYTES: f64 = 4.0;

/// What a recipe will cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Number of token ids; 0 of images.
    pub vocabulary: usize,
    /// Number of classes; absent for a language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Learned values.
    pub params_total: u64,
    /// Learned values that one token uses at evaluation.
    pub params_active: u64,
    /// Values that are state and not learned.
    pub buffers: u64,
    /// Learned values by part of the model.
    pub params: Parts,
    /// Peak memory of training by use, bytes.
    pub memory_bytes: Memory,
    /// FLOPs of one training step.
    pub flops_per_step: f64,
    /// Tokens of one training step.
    pub tokens_per_step: u64,
}

/// Learned values by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Embeddings, positions, output layer, norms.
    pub outer: u64,
    /// Attention.
    pub attention: u64,
    /// Dense feed-forward layers.
    pub dense: u64,
    /// Experts.
    pub experts: u64,
    /// Routers.
    pub routers: u64,
}

/// Bytes by use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// Parameters and buffers, experts packed once more.
    pub weights: f64,
    /// Gradients.
    pub gradients: f64,
    /// Both moments of the optimiser.
    pub moments: f64,
    /// What the forward pass keeps for the backward pass, and the gradients of it.
    pub activations: f64,
    /// The output layer's chunk and gradients.
    pub scratch: f64,
    /// Copies that are made to write a checkpoint, when activations are gone.
    pub checkpoint: f64,
    /// Program and data.
    pub process: f64,
    /// The peak.
    pub total: f64,
}

impl Parts {
    fn add(&mut self, name: &str, values: u64) {
        let part = match name.split('.').nth(2) {
            Some("attention") => &mut self.attention,
            Some("dense") => &mut self.dense,
            Some("experts") => &mut self.experts,
            Some("router") => &mut self.routers,
            _ => &mut self.outer,
        };
        *part += values;
    }
}

/// The cost of `recipe` on data with these `ends`, in a process that has `process` bytes before the model is
/// built.
///
/// # Errors
/// A recipe that cannot be used.
pub fn estimate(recipe: &Recipe, ends: Ends, process: u64) -> Result<Estimate, Misuse> {
    let methods = recipe.methods()?;
    let store = ParamStore::sketch(Kind::Float);
    let params_active = ends.active_params(recipe, &methods.rules(), &store)? as u64;
    if let Some(tensor) = store.oversized() {
        return Err(Misuse::recipe("model", format!("{tensor} is too large for any machine")));
    }
    let sizes = Sizes::new(recipe, methods.rules().router, ends)?;
    let (mut params, mut buffers) = (Parts::default(), 0);
    for param in store.entries().iter() {
        let values = param.tensor.numel() as u64;
        match param.role {
            Role::Buffer => buffers += values,
            Role::Decayed | Role::Undecayed => params.add(&param.name, values),
        }
    }
    let params_total = store.trainable_count() as u64;
    Ok(Estimate {
        vocabulary: ends.vocabulary(),
        classes: ends.classes(),
        params_total,
        params_active,
        buffers,
        params,
        memory_bytes: sizes.memory(params_total, buffers, params.experts, process),
        flops_per_step: sizes.flops(&store),
        tokens_per_step: sizes.rows.tokens as u64,
    })
}

/// What the formulas read.
struct Sizes<'a> {
    /// One after the other; one alone unless the model is a hierarchy.
    stages: Vec<Stage<'a>>,
    reads_attention: bool,
    /// Share of a bank that a token uses in training.
    share: f64,
    /// Hidden width that a token uses in a sparse layer, by stage.
    hidden: Vec<f64>,
    rows: Rows,
    recompute: Recompute,
    ends: Ends,
}

impl<'a> Sizes<'a> {
    fn new(recipe: &'a Recipe, router: &dyn RouterConfig, ends: Ends) -> Result<Self, Misuse> {
        let rows = ends.rows(recipe);
        let stages = Stage::all(recipe, ends, &rows)?;
        let experts = recipe.model.experts as usize;
        let visited = router.trained_experts(experts);
        let hidden = |stage: &Stage<'_>| visited * stage.model.hidden_of_expert(router) as f64;
        Ok(Self {
            reads_attention: router.reads_attention(),
            share: visited / router.bank(experts) as f64,
            hidden: stages.iter().map(hidden).collect(),
            rows,
            recompute: recipe.train.recompute,
            ends,
            stages,
        })
    }

    /// The sizes of the last blocks: what the output layer reads.
    fn model(&self) -> &LmConfig {
        &self.stages.last().expect("a model has blocks").model
    }

    fn memory(&self, learned: u64, buffers: u64, experts: u64, process: u64) -> Memory {
        let bytes = |values: u64| values as f64 * BYTES;
        let weights = bytes(learned) + bytes(buffers) + bytes(experts);
        let (gradients, moments) = (bytes(learned), 2.0 * bytes(learned));
        let (activations, scratch) = (self.activations() * BYTES, self.scratch() * BYTES);
        let (checkpoint, process) = (2.0 * moments, process as f64);
        let passing = checkpoint.max(activations + scratch);
        let total = weights + gradients + moments + passing + process;
        Memory { weights, gradients, moments, activations, scratch, checkpoint, process, total }
    }

    fn activations(&self) -> f64 {
        let stages = self.stages.iter().zip(&self.hidden);
        let kept: f64 = stages.clone().map(|(stage, hidden)| self.kept(stage, *hidden)).sum();
        let again = stages.map(|(stage, hidden)| self.again(stage, *hidden)).fold(0.0, f64::max);
        // Between stages: four neighbours side by side, normalised, and what they become.
        let merged = self.stages.iter().skip(1).map(|s| 5.0 * s.tokens * s.model.width as f64);
        2.0 * (kept + merged.sum::<f64>() + self.rows.pixels) + again
    }

    /// Hidden values of a dense and of a sparse layer, one map each.
    fn hidden_maps(&self, stage: &Stage<'_>, hidden: f64) -> (f64, f64) {
        let LmConfig { active_hidden, activation, dense_activation, .. } = *stage.model;
        let maps = |gated: bool| if gated { 2.0 } else { 1.0 };
        let dense = maps(dense_activation.unwrap_or(activation).gated());
        let routed = maps(activation.gated()) * hidden * stage.tokens;
        (dense * stage.tokens * active_hidden as f64, routed)
    }

    /// What is computed again of one layer.
    fn again(&self, stage: &Stage<'_>, hidden: f64) -> f64 {
        let (dense, routed) = self.hidden_maps(stage, hidden);
        if self.recompute == Recompute::None { 0.0 } else { routed.max(dense) }
    }

    /// What the forward pass of a stage keeps.
    fn kept(&self, stage: &Stage<'_>, hidden: f64) -> f64 {
        let LmConfig { width, layers, heads, experts, active_hidden, .. } = *stage.model;
        let (tokens, sparse, layers) = (stage.tokens, stage.sparse as f64, layers as f64);
        let n_d = tokens * width as f64;
        let kept = if self.recompute == Recompute::None { 1.0 } else { 0.0 };
        let (dense, routed) = self.hidden_maps(stage, hidden);
        let written = if self.reads_attention { 3.0 * stage.sequence * heads as f64 } else { 0.0 };
        let dense_layer = 2.0 * n_d + tokens * active_hidden as f64 + kept * dense;
        let scores = tokens * (4.0 * experts as f64 + written);
        let sparse_layer = 4.0 * n_d + scores + kept * routed;
        let attention = 7.0 * n_d + stage.more_kept();
        attention * layers + dense_layer * (layers - sparse) + sparse_layer * sparse
    }

    fn scratch(&self) -> f64 {
        let (Rows { chunk, outputs, .. }, width) = (self.rows, self.model().width as f64);
        let table = match self.ends {
            Ends::Texts { .. } => 0.0,
            ends => ends.choices() as f64,
        };
        5.0 * chunk * self.scored() + (3.0 * table + 2.0 * outputs) * width
    }

    /// Ids or classes of the largest softmax.
    fn scored(&self) -> f64 {
        let whole = self.ends.choices() as f64;
        let Some(softmax) = self.adaptive() else { return whole };
        let cuts = [0.0].into_iter().chain(softmax.adaptive.iter().map(|cut| *cut as f64));
        let cuts: Vec<f64> = cuts.chain([whole]).collect();
        let largest = cuts.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        largest.max(cuts[1] + softmax.adaptive.len() as f64)
    }

    /// The adaptive softmax of a language model, if it has one.
    fn adaptive(&self) -> Option<&SoftmaxConfig> {
        self.model().softmax.as_ref().filter(|_| matches!(self.ends, Ends::Text(_)))
    }

    /// Values of the output layer that are no matrix of their own: a token meets the embedding once more
    /// where it is tied, and the head of an adaptive softmax.
    fn output(&self) -> f64 {
        let width = self.model().width as f64;
        match (self.adaptive(), self.ends) {
            (Some(softmax), _) => {
                (softmax.adaptive[0] as f64 + softmax.adaptive.len() as f64) * width
            }
            (None, Ends::Text(ids) | Ends::Masked(ids)) if self.model().tied_embedding => {
                ids as f64 * width
            }
            (None, _) => 0.0,
        }
    }

    /// Of a training step.
    fn flops(&self, store: &ParamStore) -> f64 {
        let clustered = |name: &str| name.starts_with("embedding.") || name.starts_with("head.");
        let table = |name: &str| NO_PRODUCT.iter().any(|end| name.ends_with(end));
        let adaptive = self.adaptive().is_some();
        let multiplied = |name: &str| !(table(name) || adaptive && clustered(name));
        let entries = store.entries();
        let matrices = entries.iter().filter(|p| p.tensor.dim() > 1 && multiplied(&p.name));
        let products: f64 = matrices
            .map(|p| {
                let share = if p.name.contains(".experts.") { self.share } else { 1.0 };
                p.tensor.numel() as f64 * share * self.through(&p.name)
            })
            .sum();
        let attention = |stage: &Stage<'_>| {
            stage.attention_flops() * stage.blocks.len() as f64 * stage.attending
        };
        let attention: f64 = self.stages.iter().map(attention).sum();
        3.0 * (2.0 * (products + self.output() * self.rows.outputs) + attention)
    }

    /// Rows that pass through a matrix, by its name.
    fn through(&self, matrix: &str) -> f64 {
        let mut parts = matrix.split('.');
        let place = (parts.next(), parts.next().and_then(|number| number.parse::<usize>().ok()));
        let stage = match place {
            (Some("layers"), Some(block)) => {
                self.stages.iter().find(|stage| stage.blocks.contains(&block))
            }
            (Some("merge"), Some(before)) => self.stages.get(before + 1),
            _ => None,
        };
        stage.map_or_else(|| self.rows.through(matrix), |stage| stage.through(matrix))
    }
}

impl Estimate {
    /// For people, lines that end with a line end.
    pub fn render(&self) -> String {
        let Self { params, memory_bytes: memory, .. } = self;
        let per_token = self.flops_per_step / self.tokens_per_step as f64;
        format!(
            "parameters   {} learned, {} active per token, {} in buffers\n\
             \x20            outer {}, attention {}, dense layers {}, experts {}, routers {}\n\
             memory       about {} at the peak of training on a CPU (within a factor of {FACTOR})\n\
             \x20            weights {}, gradients {}, moments {}, activations {}, output layer {}, program and data {}; or {} to write a checkpoint\n\
             work         {:.4e} FLOPs per step of {} tokens ({per_token:.4e} per token)\n",
            self.params_total,
            self.params_active,
            self.buffers,
            params.outer,
            params.attention,
            params.dense,
            params.experts,
            params.routers,
            size(memory.total),
            size(memory.weights),
            size(memory.gradients),
            size(memory.moments),
            size(memory.activations),
            size(memory.scratch),
            size(memory.process),
            size(memory.checkpoint),
            self.flops_per_step,
            self.tokens_per_step,
        )
    }
}

/// `1.5 GiB`.
pub(crate) fn size(bytes: f64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_models::{DecoderLm, ImageClassifier, ImageSpec, Rules, Vit};
    use moe_routers::routers;
    use tch::Device;

    const VOCABULARY: usize = 256;
    const TEXT: Ends = Ends::Text(VOCABULARY);

    fn recipe(router: &str, more: &[&str]) -> Recipe {
        let sizes = ["model.width=16", "model.experts=4", "model.active_hidden=24"];
        let more = [&sizes[..], more].concat();
        let sets: Vec<String> = more.into_iter().map(str::to_owned).collect();
        Recipe::parse(&format!("router = '{router}'"), &sets).unwrap().resolved().unwrap()
    }

    /// What the built model says: learned, active, buffers.
    fn built(recipe: &Recipe) -> [u64; 3] {
        let methods = recipe.methods().unwrap();
        let store = ParamStore::new(0, Device::Cpu, Kind::Float);
        let model = DecoderLm::new(&store, &recipe.model, &methods.rules(), VOCABULARY as i64);
        let model = model.unwrap();
        let buffers: usize = {
            let entries = store.entries();
            entries.iter().filter(|p| p.role == Role::Buffer).map(|p| p.tensor.numel()).sum()
        };
        [store.trainable_count(), model.active_params(&store), buffers].map(|n| n as u64)
    }

    #[track_caller]
    fn assert_counts(recipe: &Recipe) {
        let found = estimate(recipe, TEXT, 0).unwrap();
        let counts = [found.params_total, found.params_active, found.buffers];
        assert_eq!(counts, built(recipe), "{}", recipe.to_toml());
        let Parts { outer, attention, dense, experts, routers } = found.params;
        assert_eq!(outer + attention + dense + experts + routers, found.params_total);
    }

    #[test]
    fn counts_are_those_of_the_built_model_for_every_router_and_preset() {
        let mut checked = 0;
        for (id, preset) in routers().flat_map(|p| p.presets.iter().map(|name| (p.id, *name))) {
            let small =
                format!("router = '{id}:{preset}'\n[model]\nwidth = 16\nactive_hidden = 24");
            // Presets that need more experts, or what no block hands in, are refused before.
            let Ok(recipe) = Recipe::parse(&small, &[]).and_then(|r| r.resolved()) else {
                continue;
            };
            assert_counts(&recipe);
            checked += 1;
        }
        assert!(checked >= 40, "{checked}");
    }

    #[test]
    fn counts_follow_layout_activation_and_residual() {
        for more in [
            "model.activation=swiglu",
            "model.bias=false",
            "model.tied_embedding=false",
            "model.moe_every=1",
            "residual=momentum",
            "model.dense_activation=geglu",
            "model.span=7",
            "model.softmax={ adaptive = [20, 50] }",
        ] {
            assert_counts(&recipe("switch", &[more]));
        }
    }

    /// One layer of width 2, one head; k = 1 of 2 experts of width 3, no bias; 4 ids; 5 tokens.
    /// Matrices: qkv 12, out 4, gate 4, half the experts 12, tied output 8: 40 values, 80 FLOPs; attention
    /// 4 * 5 * 2 = 40. Three times that for each of two rows of 5 tokens: 3 * 120 * 10.
    #[test]
    fn work_by_hand() {
        let text = "router = 'switch'\n[model]\nwidth = 2\nlayers = 1\nheads = 1\nmoe_every = 1\n\
            experts = 2\nactive_hidden = 3\nbias = false\n[train]\nbatch = 2\nsequence = 5";
        let recipe = Recipe::parse(text, &[]).unwrap().resolved().unwrap();
        assert_eq!(estimate(&recipe, Ends::Text(4), 0).unwrap().flops_per_step, 3600.0);
    }

    /// The same with a span of 10: (60 + 20) * 2 + 4 * 4 * 10 / 5 = 192 in attention in the place of 40, and
    /// key, value, query and output are 16 values as before.
    #[test]
    fn work_of_a_span_by_hand() {
        let text = "router = 'switch'\n[model]\nwidth = 2\nlayers = 1\nheads = 1\nmoe_every = 1\nspan = 10\n\
            experts = 2\nactive_hidden = 3\nbias = false\n[train]\nbatch = 2\nsequence = 5";
        let recipe = Recipe::parse(text, &[]).unwrap().resolved().unwrap();
        assert_eq!(
            estimate(&recipe, Ends::Text(4), 0).unwrap().flops_per_step,
            3.0 * (80.0 + 192.0) * 10.0
        );
    }

    /// The same with two classes in the place of the ids' output layer: 32 values and 40 of attention for every
    /// token, 4 values for each of the two texts.
    #[test]
    fn work_of_a_classifier_by_hand() {
        let text = "router = 'switch'\n[model]\nwidth = 2\nlayers = 1\nheads = 1\nmoe_every = 1\n\
            experts = 2\nactive_hidden = 3\nbias = false\n[train]\nbatch = 2\nsequence = 5";
        let recipe = Recipe::parse(text, &[]).unwrap().resolved().unwrap();
        let ends = Ends::Texts { vocabulary: 4, classes: 2 };
        let found = estimate(&recipe, ends, 0).unwrap();
        assert_eq!(found.flops_per_step, 3.0 * ((2.0 * 32.0 + 40.0) * 10.0 + 2.0 * 4.0 * 2.0));
        let without = estimate(&recipe, Ends::Text(4), 0).unwrap();
        // The classifier's map and bias.
        assert_eq!(found.params_total, without.params_total + 4 + 2);
    }

    /// Hidden layers that are computed again leave the activations; everything else stays.
    #[test]
    fn computing_again_takes_less_memory_and_keeps_the_rest() {
        let memory = |recompute: &str| {
            let train = format!("train.recompute='{recompute}'");
            estimate(&recipe("smoe", &[&train]), TEXT, 0).unwrap().memory_bytes
        };
        let (kept, again) = (memory("none"), memory("experts"));
        assert!(again.activations < kept.activations);
        assert_eq!((again.scratch, again.moments), (kept.scratch, kept.moments));
    }

    /// Weights and moments scale with the model, activations with the batch.
    #[test]
    fn memory_by_hand() {
        let one = estimate(&recipe("switch", &["train.batch=4"]), TEXT, 7).unwrap();
        let two = estimate(&recipe("switch", &["train.batch=8"]), TEXT, 7).unwrap();
        let (memory, learned) = (one.memory_bytes, one.params_total as f64 * 4.0);
        assert_eq!(
            (memory.gradients, memory.moments, memory.process),
            (learned, 2.0 * learned, 7.0)
        );
        assert_eq!(memory.weights, learned + one.params.experts as f64 * 4.0);
        assert_eq!(two.memory_bytes.activations, 2.0 * memory.activations);
        assert!(memory.checkpoint < memory.activations + memory.scratch);
        let parts = memory.weights + memory.gradients + memory.moments + memory.activations;
        assert_eq!(memory.total, parts + memory.scratch + memory.process);
        let small =
            estimate(&recipe("switch", &["train.batch=1", "train.sequence=1"]), Ends::Text(9), 0);
        let small = small.unwrap().memory_bytes;
        let resident = small.weights + small.gradients + small.moments;
        assert_eq!(small.total, resident + small.checkpoint);
    }

    /// A model of 10^12 parameters takes no memory to count, and one that no computer could number is
    /// refused.
    #[test]
    fn size_is_no_obstacle() {
        let huge = ["model.width=65536", "model.experts=256", "model.active_hidden=131072"];
        let found = estimate(&recipe("switch", &huge), TEXT, 0).unwrap();
        assert!(found.params_total > 1_000_000_000_000, "{found:?}");
        assert!(found.render().contains("TiB"), "{}", found.render());
        let slots = ["router.slots_per_expert=4294967296", "model.experts=65536"];
        let error = estimate(&recipe("soft-moe", &slots), TEXT, 0).unwrap_err().to_string();
        let want =
            "model: layers.1.router.phi of [16, 281474976710656] is too large for any machine";
        assert_eq!(error, want);
    }

    fn vision(router: &str, more: &[&str]) -> Recipe {
        let text =
            format!("router = '{router}'\n[data]\nsource = 'fashion-small'\n[vision]\npatch = 7");
        let sizes = ["model.width=16", "model.experts=4", "model.active_hidden=24"];
        let sets: Vec<String> =
            [&sizes[..], more].concat().into_iter().map(str::to_owned).collect();
        Recipe::parse(&text, &sets).unwrap().resolved().unwrap()
    }

    /// Counts are the built classifier's, and the work is three times its exact FLOPs with a row of an
    /// expert for every choice of every token.
    #[test]
    fn an_image_classifier_is_counted_as_it_is_built() {
        let spec = ImageSpec { chw: [3, 28, 14], classes: 10 };
        for (router, more) in [
            ("smoe", &["vision.placement.last=1"][..]),
            ("switch", &["vision.pool=mean", "model.activation=swiglu", "train.batch=3"]),
            ("x-moe", &["vision.placement.every=2"]),
        ] {
            let recipe = vision(router, more);
            let found = estimate(&recipe, Ends::Images(spec), 0).unwrap();
            let config = recipe.router.router().unwrap();
            let (store, rules) =
                (ParamStore::new(0, Device::Cpu, Kind::Float), Rules::new(config.as_ref()));
            let vit = recipe.vision.as_ref().unwrap().vit();
            let model = Vit::new(&store, &vit, &recipe.model, &rules, spec).unwrap();
            let counts = (found.params_total, found.params_active);
            let built = (store.trainable_count() as u64, model.active_params(&store) as u64);
            assert_eq!(counts, built, "{router}");
            let batch = recipe.train.batch as f64;
            let rows = vit.tokens(28, 14) as f64 * config.active_experts(4);
            let exact = 3.0 * batch * model.flops(&vec![rows; model.sparse_layers().len()]);
            assert!(
                (found.flops_per_step / exact - 1.0).abs() < 1e-12,
                "{router}: {found:?}, {exact}"
            );
            assert_eq!(found.tokens_per_step as f64, batch * vit.tokens(28, 14) as f64);
        }
    }
}
