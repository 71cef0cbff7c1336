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
//! side of a patch, `v` classes, `l` sparse layers.

pub(crate) mod flops;

use crate::block::{Block, Stream, norm};
use crate::layer::{LayerTrace, MoeLayer};
use crate::lm::{LmConfig, ModelError, Rules};
use crate::memory::Memory;
use moe_core::RouteError;
use moe_routers::norm::TorchNorm;
use moe_routers::residual::{Carried, LN_EPS};
use moe_routers::v_moe::Placement;
use moe_routers::{Init, ParamStore, Residual, Role, RouteCx};
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

/// Size of the images and number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSpec {
    /// Channels, height and width.
    pub chw: [i64; 3],
    /// Number of classes.
    pub classes: i64,
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
    pub fn check(&self, [_, h, w]: [i64; 3]) -> Result<(), ModelError> {
        if self.patch < 1 || h % self.patch != 0 || w % self.patch != 0 {
            let reason = format!("{} does not divide images of {h} x {w}", self.patch);
            return Err(ModelError { key: "patch", reason });
        }
        Ok(())
    }
}

/// The image classifier.
#[derive(Debug)]
pub struct Vit {
    patch_dn: Tensor,
    patch_d: Tensor,
    class_d: Option<Tensor>,
    position_td: Tensor,
    blocks: Vec<Block>,
    final_norm: TorchNorm,
    head_vd: Tensor,
    head_v: Tensor,
    residual: Box<dyn Residual>,
    trunk: LmConfig,
    patch: i64,
    active_share: f64,
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
        let trunk = LmConfig { span: None, ..config.trunk(blocks)? };
        trunk.check()?;
        config.check(task.chw)?;
        let (root, d, [c, h, w]) = (store.root(), trunk.width, task.chw);
        let (values, experts) = (c * config.patch * config.patch, trunk.experts as usize);
        let class = config.pool == Pool::ClassToken;
        let block = |layer| Block::new(&root, &trunk, rules, layer).of_all();
        let blocks: Vec<Block> = (0..trunk.layers).map(block).collect();
        Ok(Self {
            patch_dn: root.matrix("patch.weight", &[d, values], (1.0 / values as f64).sqrt()),
            patch_d: root.constant("patch.bias", &[d], 0.0),
            class_d: class.then(|| root.constant("class_token", &[d], 0.0)),
            position_td: root.matrix("position", &[config.tokens(h, w), d], 0.02),
            blocks,
            router_products: flops::routed_matrices(store),
            final_norm: norm(&root.child("final_norm"), d),
            // Zero, as in V-MoE: the first loss is that of an even guess.
            head_vd: root.add("head.weight", &[task.classes, d], Init::Const(0.0), Role::Decayed),
            head_v: root.constant("head.bias", &[task.classes], 0.0),
            residual: rules.residual.build(trunk.norm),
            active_share: rules.router.active_experts(experts) / rules.router.bank(experts) as f64,
            patch: config.patch,
            trunk,
        })
    }

    /// Images `[b, c, h, w]` to scores of the classes, `[b, v]`, and a trace per sparse layer.
    ///
    /// # Errors
    /// If a router's settings leave no room for this number of tokens.
    ///
    /// # Panics
    /// If the images have another size than the model was built for.
    pub fn forward(
        &self,
        x_bchw: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (feature_bd, traces) = self.features(x_bchw, cx)?;
        Ok((feature_bd.linear(&self.head_vd, Some(&self.head_v)), traces))
    }

    /// What the classifier reads, `[b, d]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn features(
        &self,
        x_bchw: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let mut x_btd = self.embed(x_bchw);
        let mut memory = Memory::default();
        let mut stream =
            Stream { memory: &mut memory, carried: Carried::new(), traces: Vec::new() };
        for block in &self.blocks {
            x_btd = block.forward(self.residual.as_ref(), &x_btd, cx, &mut stream)?;
        }
        let x_btd = self.final_norm.apply(&x_btd, LN_EPS);
        let feature_bd = match self.class_d {
            Some(_) => x_btd.select(1, 0),
            None => x_btd.mean_dim(1, false, x_btd.kind()),
        };
        Ok((feature_bd, stream.traces))
    }

    /// Patches as tokens with their positions, the class token first: `[b, c, h, w] -> [b, t, d]`.
    fn embed(&self, x_bchw: &Tensor) -> Tensor {
        let patch_bnt = x_bchw.im2col([self.patch; 2], [1, 1], [0, 0], [self.patch; 2]);
        let x_btd = patch_bnt.transpose(1, 2).linear(&self.patch_dn, Some(&self.patch_d));
        let x_btd = match &self.class_d {
            Some(class_d) => {
                let (b, _, d) = x_btd.size3().expect("[b, t, d]");
                Tensor::cat(&[class_d.expand([b, 1, d], false), x_btd], 1)
            }
            None => x_btd,
        };
        x_btd + &self.position_td
    }

    /// Parameters that one token uses: all but the experts it does not visit.
    pub fn active_params(&self, store: &ParamStore) -> usize {
        let bank =
            |layer: &MoeLayer| layer.experts.params_per_expert() * layer.experts.count() as usize;
        let sparse: usize = self.sparse_layers().map(bank).sum();
        store.trainable_count() - (sparse as f64 * (1.0 - self.active_share)).round() as usize
    }

    /// Lets every router update what no gradient reaches, with the loads of the step just taken, one `[e]`
    /// per sparse layer.
    pub fn after_step(&mut self, load_le: &[Tensor]) {
        let layers = self.blocks.iter_mut().filter_map(Block::sparse_mut);
        for (layer, load_e) in layers.zip(load_le) {
            layer.router.after_step(load_e);
        }
    }

    /// The sparse layers, in order.
    pub fn sparse_layers(&self) -> impl Iterator<Item = &MoeLayer> {
        self.blocks.iter().filter_map(Block::sparse)
    }
}
