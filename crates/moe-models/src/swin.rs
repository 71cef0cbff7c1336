//! A Swin Transformer with dense and sparse feed-forward layers, for ACMoE's experiments on images.
//!
//! *Swin Transformer: Hierarchical Vision Transformer using Shifted Windows*, Liu et al. 2021, arXiv
//! 2103.14030. Patches become tokens on a map; blocks attend inside windows, every second block inside
//! shifted ones ([`WindowAttention`](crate::attention::window::WindowAttention)); after every stage but the
//! last, four neighbours become one token of twice the width ([`merge`]). No absolute positions; a norm
//! behind the map of patches; the class is read from the mean of all tokens. The blocks are those of the
//! language model: pre-norm, with attention exchanged.
//!
//! *ACMoE*, arXiv 2502.15315, makes every second block of stages 3 and 4 sparse, and takes the clusters of a
//! token from the sparse block before **in the same stage**: a merged token is none of those before. So a
//! router that looks back has nothing to look at in the first sparse block of a stage, and what a residual
//! carries starts anew there too.
//!
//! | size | width | depths | heads | (Swin, table 7) |
//! |---|---|---|---|---|
//! | T | 96 | 2 2 6 2 | 3 6 12 24 | |
//! | S | 96 | 2 2 18 2 | 3 6 12 24 | |
//! | B | 128 | 2 2 18 2 | 4 8 16 32 | |
//!
//! Departures: maps that windows do not tile are padded and the padding is masked (the released classifier
//! refuses them, the detector pads without a mask); odd maps are padded before merging, as in the detector;
//! weights start as in the other models here (normal with `1 / sqrt(inputs)`), the classifier at zero;
//! routers that read attention over the image are refused, for no block has it.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `c` channels, `h` height, `w` width of an image, `l`
//! sparse layers.

mod flops;
pub mod merge;
mod stage;

pub use stage::Stage;

use crate::block::{Block, Place, Stream, norm};
use crate::image::{ImageClassifier, ImageSpec, ImageTrunk, Patches, check_patch};
use crate::layer::LayerTrace;
use crate::lm::{LmConfig, ModelError, Rules};
use crate::memory::Memory;
use merge::PatchMerging;
use moe_core::RouteError;
use moe_routers::norm::TorchNorm;
use moe_routers::residual::LN_EPS;
use moe_routers::{ParamStore, Params, RouteCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Stages, windows, and which blocks are sparse; the default is Swin-T.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SwinConfig {
    /// Blocks of each stage; from stage to stage the width doubles and the map has half the sides.
    pub depths: Vec<i64>,
    /// Attention heads of each stage; divide its width.
    pub heads: Vec<i64>,
    /// Side of a window in tokens; a map whose shorter side is shorter has windows of that side.
    pub window: i64,
    /// Stages with sparse blocks, counted from 1: every `model.moe_every`-th of their blocks.
    pub moe_stages: Vec<usize>,
    /// Share of the images at which training leaves out a sublayer of the last block; it rises from 0 at the
    /// first block.
    pub drop_path: f64,
}

impl Default for SwinConfig {
    fn default() -> Self {
        Self {
            depths: vec![2, 2, 6, 2],
            heads: vec![3, 6, 12, 24],
            window: 7,
            moe_stages: vec![3, 4],
            drop_path: 0.2,
        }
    }
}

/// More stages than any map of an image can be halved.
const MOST_STAGES: usize = 16;

/// More blocks, heads and tokens on a side of a window than any model has.
const MOST: i64 = 4096;

fn refuse<T>(key: &'static str, reason: String) -> Result<T, ModelError> {
    Err(ModelError { key, reason })
}

impl SwinConfig {
    /// Refuses sizes that do not go together with a first stage of `width`, whatever the images.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self, width: i64) -> Result<(), ModelError> {
        let stages = self.depths.len();
        self.check_depths(stages)?;
        self.check_heads(width, stages)?;
        if !(1..=MOST).contains(&self.window) {
            return refuse("swin.window", format!("{} is outside 1..={MOST}", self.window));
        }
        if let Some(stage) = self.moe_stages.iter().find(|stage| !(1..=stages).contains(*stage)) {
            return refuse("swin.moe_stages", format!("{stage} is no stage among {stages}"));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return refuse("swin.drop_path", format!("{} is outside 0..1", self.drop_path));
        }
        Ok(())
    }

    fn check_depths(&self, stages: usize) -> Result<(), ModelError> {
        let key = "swin.depths";
        if !(1..=MOST_STAGES).contains(&stages) {
            return refuse(key, format!("{stages} stages are outside 1..={MOST_STAGES}"));
        }
        if let Some(depth) = self.depths.iter().find(|depth| !(1..=MOST).contains(*depth)) {
            return refuse(key, format!("{depth} is outside 1..={MOST}"));
        }
        let blocks: i64 = self.depths.iter().sum();
        if blocks > MOST {
            return refuse(key, format!("{blocks} blocks are more than {MOST}"));
        }
        Ok(())
    }

    fn check_heads(&self, width: i64, stages: usize) -> Result<(), ModelError> {
        let key = "swin.heads";
        if self.heads.len() != stages {
            let reason = format!("{} values for the {stages} stages of depths", self.heads.len());
            return refuse(key, reason);
        }
        for (index, heads) in self.heads.iter().enumerate() {
            if !(1..=MOST).contains(heads) {
                return refuse(key, format!("{heads} is outside 1..={MOST}"));
            }
            let width = i128::from(width) << index;
            if width % i128::from(*heads) != 0 {
                return refuse(key, format!("{heads} does not divide width {width}"));
            }
        }
        Ok(())
    }

    /// The sizes of the first stage's blocks, with as many layers as the model has blocks: what the other
    /// settings of a model are checked against.
    pub fn blocks(&self, first: &LmConfig) -> LmConfig {
        let heads = self.heads.first().copied().unwrap_or(first.heads);
        let layers = self.depths.iter().fold(0, |sum: i64, depth| sum.saturating_add(*depth));
        LmConfig { layers, heads, moe_first: None, ..first.clone() }
    }

    /// The stages of a model whose first stage has blocks of the sizes in `first`, on a map of `hw` tokens.
    ///
    /// # Errors
    /// Sizes that do not go together; no sparse block.
    pub fn stages(&self, first: &LmConfig, hw: [i64; 2]) -> Result<Vec<Stage>, ModelError> {
        self.check(first.width)?;
        self.blocks(first).check()?;
        let stages: Vec<Stage> = Stage::all(self, first, hw).collect();
        if stages.iter().all(|stage| stage.sparse_layers() == 0) {
            let reason = format!("no block is sparse with moe_every = {}", first.moe_every);
            return refuse("swin.moe_stages", reason);
        }
        Ok(stages)
    }

    /// Share of the images at which block `index` of all is left out.
    fn drop_path_of(&self, index: i64) -> f64 {
        let last: i64 = self.depths.iter().sum::<i64>() - 1;
        self.drop_path * index as f64 / last.max(1) as f64
    }
}

/// The image classifier.
#[derive(Debug)]
pub struct Swin {
    patches: Patches,
    patch_norm: TorchNorm,
    trunk: ImageTrunk,
    stages: Vec<Stage>,
    /// Between stages: one fewer.
    merges: Vec<PatchMerging>,
    /// Products of one token in all routers of a stage.
    router_products: Vec<f64>,
}

impl Swin {
    /// A fresh classifier of `task`'s images by patches of side `patch`, with blocks of the sizes in `first`
    /// in its first stage, whose `layers` and `heads` `config` says, and whose `moe_first`, `context`, `span`
    /// and `tied_embedding` are not read.
    ///
    /// # Errors
    /// Sizes that do not go together; a router that reads attention.
    pub fn new(
        store: &ParamStore,
        (config, patch): (&SwinConfig, i64),
        first: &LmConfig,
        rules: &Rules<'_>,
        task: ImageSpec,
    ) -> Result<Self, ModelError> {
        check_patch(patch, task.chw)?;
        if rules.router.reads_attention() {
            let reason = "this router reads attention over the whole image".into();
            return refuse("swin.window", reason);
        }
        let [c, h, w] = task.chw;
        let expert_hidden = Some(first.hidden_of_expert(rules.router));
        let first = &LmConfig { expert_hidden, ..first.clone() };
        let stages = config.stages(first, [h / patch, w / patch])?;
        let (root, d) = (store.root(), first.width);
        let patches = Patches::new(&root, (c, patch), d);
        let patch_norm = norm(&root.child("patch_norm"), d);
        let blocks = blocks(&root, config, &stages, rules);
        let products = |stage: &Stage| crate::flops::of_routers(&blocks[stage.range()], store);
        let last = &stages.last().expect("checked to have stages").blocks;
        Ok(Self {
            patches,
            patch_norm,
            router_products: stages.iter().map(products).collect(),
            trunk: ImageTrunk::new(&root, blocks, rules, (last, task.classes)),
            merges: merges(&root.child("merge"), &stages),
            stages,
        })
    }

    /// Patches as tokens, normalised: `[b, c, h, w] -> [b, t, d]`.
    fn embed(&self, x_bchw: &Tensor) -> Tensor {
        self.patch_norm.apply(&self.patches.embed(x_bchw), LN_EPS)
    }
}

/// The blocks of all stages in order.
fn blocks(
    root: &Params<'_>,
    config: &SwinConfig,
    stages: &[Stage],
    rules: &Rules<'_>,
) -> Vec<Block> {
    let mut sparse = 0..;
    let mut blocks = Vec::new();
    let total: i64 = config.depths.iter().sum();
    for stage in stages {
        for (offset, index) in (0..).zip(stage.range()) {
            let index = index as i64;
            let place = Place {
                index,
                blocks: total,
                sparse: stage.is_sparse(offset).then(|| sparse.next()).flatten(),
                windows: Some(stage.windows(offset)),
                drop_path: config.drop_path_of(index),
            };
            blocks.push(Block::at(root, &stage.blocks, rules, place));
        }
    }
    blocks
}

/// What leads from each stage to the next.
fn merges(params: &Params<'_>, stages: &[Stage]) -> Vec<PatchMerging> {
    let between = stages.iter().take(stages.len() - 1).enumerate();
    between
        .map(|(index, stage)| PatchMerging::new(&params.child(index), stage.blocks.width, stage.hw))
        .collect()
}

impl ImageClassifier for Swin {
    fn features(
        &self,
        x_bchw: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let mut x_btd = self.embed(x_bchw);
        let mut memory = Memory::default();
        let mut stream = Stream::new(&mut memory);
        let mut merges = self.merges.iter();
        for stage in &self.stages {
            x_btd = self.trunk.through(stage.range(), x_btd, cx, &mut stream)?;
            if let Some(merge) = merges.next() {
                x_btd = merge.forward(&x_btd);
                stream.next_stage();
            }
        }
        let x_btd = self.trunk.finish(&x_btd);
        Ok((x_btd.mean_dim(1, false, x_btd.kind()), stream.traces))
    }

    fn flops(&self, rows_l: &[f64]) -> f64 {
        self.products(rows_l) * 2.0
    }

    fn trunk(&self) -> &ImageTrunk {
        &self.trunk
    }

    fn trunk_mut(&mut self) -> &mut ImageTrunk {
        &mut self.trunk
    }
}
