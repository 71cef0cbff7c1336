//! A Vision Transformer with dense and sparse feed-forward layers, for V-MoE and Soft MoE.
//!
//! *An Image is Worth 16x16 Words*, Dosovitskiy et al. 2020, arXiv 2010.11929: patches become tokens by
//! one linear map, positions are learned, blocks are pre-norm, and the class is read from a class token
//! or from the mean of all tokens. *V-MoE*, arXiv 2106.05974, makes some feed-forward layers sparse
//! ([`VitConfig::trunk`]); every token is routed, the class token too. The blocks are those of the
//! language model, whose [`LmConfig`] has their sizes, with attention to all tokens.
//!
//! | size | width | layers | hidden | heads | (code of V-MoE) |
//! |---|---|---|---|---|---|
//! | S | 512 | 8 | 2048 | 8 | |
//! | B | 768 | 12 | 3072 | 12 | |
//! | L | 1024 | 24 | 4096 | 16 | |
//! | H | 1280 | 32 | 5120 | 16 | |
//!
//! Departures: attention has no biases; experts start apart, where V-MoE's code starts them equal and
//! lets noise part them; no expert dropout.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `c` channels, `h` height, `w` width of an image, `p`
//! side of a patch, `l` sparse layers.

mod flops;

use crate::block::{Block, Stream};
use crate::image::{ImageClassifier, ImageSpec, ImageTrunk, Patches, check_patch};
use crate::layer::LayerTrace;
use crate::lm::{LmConfig, ModelError, Rules};
use crate::memory::Memory;
use moe_core::RouteError;
use moe_routers::v_moe::Placement;
use moe_routers::{ParamStore, RouteCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What the classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// An extra token, as in ViT and V-MoE.
    ClassToken,
    /// The mean of all tokens, as in Soft MoE.
    Mean,
}

/// What an image classifier has beside the sizes of its blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Side of a patch in pixels; divides both sides of the image.
    pub patch: i64,
    /// What the classifier reads.
    pub pool: Pool,
    /// Which blocks are sparse, by V-MoE's rules: `{ every = 2 }` or `{ last = 2 }`. Unless given,
    /// `moe_every` and `moe_first` of the blocks say it.
    pub placement: Option<Placement>,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self { patch: 4, pool: Pool::ClassToken, placement: None }
    }
}

impl VitConfig {
    /// Tokens of an image of `h` x `w` pixels, the class token included.
    pub fn tokens(&self, h: i64, w: i64) -> i64 {
        let extra = i64::from(self.pool == Pool::ClassToken);
        (h / self.patch) * (w / self.patch) + extra
    }

    /// The blocks' sizes with the placement of this model's sparse layers: both of V-MoE's rules are a
    /// first sparse block and a distance.
    ///
    /// # Errors
    /// A placement that leaves no sparse block.
    pub fn trunk(&self, blocks: &LmConfig) -> Result<LmConfig, ModelError> {
        let Some(placement) = self.placement else { return Ok(blocks.clone()) };
        let error = |reason| Err(ModelError { key: "placement", reason });
        if matches!(placement, Placement::Every(0) | Placement::Last(0)) {
            return error("0 must be at least 1".to_owned());
        }
        let sparse = placement.sparse_layers(blocks.layers.max(0) as usize);
        let Some(&first) = sparse.first() else {
            return error(format!("no sparse block among {}", blocks.layers));
        };
        let distance = if let Placement::Every(n) = placement { n } else { 2 };
        let (moe_every, moe_first) = (distance as i64, Some(first as i64));
        Ok(LmConfig { moe_every, moe_first, ..blocks.clone() })
    }

    /// Refuses sizes that do not go together.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self, chw: [i64; 3]) -> Result<(), ModelError> {
        check_patch(self.patch, chw)
    }
}

/// The Vision Transformer.
#[derive(Debug)]
pub struct Vit {
    patches: Patches,
    class_d: Option<Tensor>,
    position_td: Tensor,
    trunk: ImageTrunk,
    sizes: LmConfig,
    /// Products of one token in all routers.
    router_products: f64,
}

impl Vit {
    /// A fresh classifier of `task`'s images, with blocks of the sizes in `blocks`, whose `context`,
    /// `span` and `tied_embedding` are a language model's and not read.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn new(
        store: &ParamStore,
        config: &VitConfig,
        blocks: &LmConfig,
        rules: &Rules<'_>,
        task: ImageSpec,
    ) -> Result<Self, ModelError> {
        let sizes = LmConfig { span: None, ..config.trunk(blocks)? };
        sizes.check()?;
        config.check(task.chw)?;
        let (root, d, [c, h, w]) = (store.root(), sizes.width, task.chw);
        let class = config.pool == Pool::ClassToken;
        let patches = Patches::new(&root, (c, config.patch), d);
        let class_d = class.then(|| root.constant("class_token", &[d], 0.0));
        let position_td = root.matrix("position", &[config.tokens(h, w), d], 0.02);
        let block = |layer| Block::new(&root, &sizes, rules, layer).of_all();
        let blocks: Vec<Block> = (0..sizes.layers).map(block).collect();
        Ok(Self {
            router_products: crate::flops::of_routers(&blocks, store),
            trunk: ImageTrunk::new(&root, blocks, rules, (&sizes, task.classes)),
            patches,
            class_d,
            position_td,
            sizes,
        })
    }

    /// Patches as tokens with their positions, the class token first: `[b, c, h, w] -> [b, t, d]`.
    fn embed(&self, x_bchw: &Tensor) -> Tensor {
        let x_btd = self.patches.embed(x_bchw);
        let x_btd = match &self.class_d {
            Some(class_d) => {
                let (b, _, d) = x_btd.size3().expect("[b, t, d]");
                Tensor::cat(&[class_d.expand([b, 1, d], false), x_btd], 1)
            }
            None => x_btd,
        };
        x_btd + &self.position_td
    }
}

impl ImageClassifier for Vit {
    fn features(
        &self,
        x_bchw: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let mut memory = Memory::default();
        let mut stream = Stream::new(&mut memory);
        let blocks = 0..self.trunk.blocks.len();
        let x_btd = self.trunk.through(blocks, self.embed(x_bchw), cx, &mut stream)?;
        let x_btd = self.trunk.finish(&x_btd);
        let feature_bd = match self.class_d {
            Some(_) => x_btd.select(1, 0),
            None => x_btd.mean_dim(1, false, x_btd.kind()),
        };
        Ok((feature_bd, stream.traces))
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
