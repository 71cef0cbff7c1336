//! What image classifiers have in common: patches become tokens, blocks follow one another, and a linear
//! map reads the classes from one vector of an image.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `c` channels, `h` height, `w` width of an image, `v`
//! classes, `n` values of a patch, `l` sparse layers.

use crate::block::{Block, Stream, after_step, norm};
use crate::layer::{LayerTrace, MoeLayer, active_params};
use crate::lm::{LmConfig, ModelError, Rules};
use moe_core::RouteError;
use moe_routers::norm::TorchNorm;
use moe_routers::residual::LN_EPS;
use moe_routers::{Init, ParamStore, Params, Residual, Role, RouteCx};
use std::fmt::Debug;
use std::ops::Range;
use tch::Tensor;

/// Size of the images and number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSpec {
    /// Channels, height and width.
    pub chw: [i64; 3],
    /// Number of classes.
    pub classes: i64,
}

/// A classifier of images with sparse layers.
pub trait ImageClassifier: Debug {
    /// What the classes are read from, `[b, c, h, w] -> [b, d]`, and a trace per sparse layer.
    ///
    /// # Errors
    /// If a router's settings leave no room for this number of tokens.
    ///
    /// # Panics
    /// If the images have another size than the model was built for.
    fn features(
        &self,
        x_bchw: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError>;

    /// FLOPs of one image whose sparse layers process `rows_l` rows of experts an image, `[l]`: k T
    /// without drops, at most `E * capacity / images of a group` with a capacity.
    fn flops(&self, rows_l: &[f64]) -> f64;

    /// The blocks and the classifier.
    fn trunk(&self) -> &ImageTrunk;

    /// The same, to be changed.
    fn trunk_mut(&mut self) -> &mut ImageTrunk;

    /// Images `[b, c, h, w]` to scores of the classes, `[b, v]`, and a trace per sparse layer.
    ///
    /// # Errors
    /// As [`Self::features`].
    ///
    /// # Panics
    /// As [`Self::features`].
    fn forward(
        &self,
        x_bchw: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (feature_bd, traces) = self.features(x_bchw, cx)?;
        let ImageTrunk { head_vd, head_v, .. } = self.trunk();
        Ok((feature_bd.linear(head_vd, Some(head_v)), traces))
    }

    /// Parameters that one token uses: all but the experts it does not visit.
    fn active_params(&self, store: &ParamStore) -> usize {
        active_params(store, self.sparse_layers(), self.trunk().active_share)
    }

    /// Lets every router update what no gradient reaches, with the loads of the step just taken, one `[e]`
    /// per sparse layer.
    fn after_step(&mut self, load_le: &[Tensor]) {
        after_step(&mut self.trunk_mut().blocks, load_le);
    }

    /// The sparse layers, in order.
    fn sparse_layers(&self) -> Vec<&MoeLayer> {
        self.trunk().blocks.iter().filter_map(Block::sparse).collect()
    }
}

/// The blocks of an image classifier, the last norm, and the map to the classes.
#[derive(Debug)]
pub struct ImageTrunk {
    pub(crate) blocks: Vec<Block>,
    final_norm: TorchNorm,
    pub(crate) head_vd: Tensor,
    head_v: Tensor,
    residual: Box<dyn Residual>,
    active_share: f64,
}

impl ImageTrunk {
    /// `blocks` under a fresh classifier of `classes` classes; `last` has the sizes of the last block.
    pub(crate) fn new(
        root: &Params<'_>,
        blocks: Vec<Block>,
        rules: &Rules<'_>,
        (last, classes): (&LmConfig, i64),
    ) -> Self {
        let (d, experts) = (last.width, last.experts as usize);
        Self {
            blocks,
            final_norm: norm(&root.child("final_norm"), d),
            // Zero, as in V-MoE: the first loss is that of an even guess.
            head_vd: root.add("head.weight", &[classes, d], Init::Const(0.0), Role::Decayed),
            head_v: root.constant("head.bias", &[classes], 0.0),
            residual: rules.residual.build(last.norm),
            active_share: rules.router.active_experts(experts) / rules.router.bank(experts) as f64,
        }
    }

    /// `x_btd` after these blocks.
    pub(crate) fn through(
        &self,
        blocks: Range<usize>,
        x_btd: Tensor,
        cx: &RouteCx<'_>,
        stream: &mut Stream<'_>,
    ) -> Result<Tensor, RouteError> {
        let step = |x_btd: Tensor, block: &Block| {
            block.forward(self.residual.as_ref(), &x_btd, cx, stream)
        };
        self.blocks[blocks].iter().try_fold(x_btd, step)
    }

    /// The last norm.
    pub(crate) fn finish(&self, x_btd: &Tensor) -> Tensor {
        self.final_norm.apply(x_btd, LN_EPS)
    }
}

/// The linear map from patches to tokens.
#[derive(Debug)]
pub(crate) struct Patches {
    weight_dn: Tensor,
    bias_d: Tensor,
    side: i64,
}

impl Patches {
    /// Fresh, for patches of `side` x `side` pixels of `channels` channels.
    pub(crate) fn new(root: &Params<'_>, (channels, side): (i64, i64), width: i64) -> Self {
        let values = channels * side * side;
        Self {
            weight_dn: root.matrix("patch.weight", &[width, values], (1.0 / values as f64).sqrt()),
            bias_d: root.constant("patch.bias", &[width], 0.0),
            side,
        }
    }

    /// Tokens in reading order, `[b, c, h, w] -> [b, t, d]`.
    pub(crate) fn embed(&self, x_bchw: &Tensor) -> Tensor {
        let patch_bnt = x_bchw.im2col([self.side; 2], [1, 1], [0, 0], [self.side; 2]);
        patch_bnt.transpose(1, 2).linear(&self.weight_dn, Some(&self.bias_d))
    }

    /// Products of one patch.
    pub(crate) fn products(&self) -> f64 {
        self.weight_dn.numel() as f64
    }
}

/// Refuses patches that do not tile the images.
///
/// # Errors
/// Names the key.
pub(crate) fn check_patch(patch: i64, [_, h, w]: [i64; 3]) -> Result<(), ModelError> {
    if patch < 1 || h % patch != 0 || w % patch != 0 {
        let reason = format!("{patch} does not divide images of {h} x {w}");
        return Err(ModelError { key: "patch", reason });
    }
    Ok(())
}
