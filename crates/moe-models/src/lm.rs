//! A decoder-only language model with dense and sparse feed-forward layers.
//!
//! `moe_every = 2` is GLaM's layout (arXiv 2112.06905: every other layer is sparse), `moe_every = 1`
//! the small Switch models' (every layer).
//!
//! Axis letters: `b` batch, `g` groups, `t` tokens, `d` width, `v` vocabulary.

use crate::attention::Attention;
use crate::experts::{Activation, ExpertExec, ExpertShape, Experts};
use crate::layer::{LayerTrace, MoeLayer};
use crate::residual::{Plain, Residual};
use moe_core::{CapacityPolicy, RouteError};
use moe_routers::{Dims, ParamStore, Params, RouteCx, RouterConfig};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Where layer normalisation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// `x + f(norm(x))`.
    Pre,
    /// `norm(x + f(x))`.
    Post,
}

/// Which tokens compete for experts' room and share a balance loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingGroup {
    /// All tokens of the batch: what Switch, GShard and their kin do on one device.
    Batch,
    /// The tokens of one sequence.
    Sequence,
}

/// Sizes and layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LmConfig {
    /// Model width `d`.
    pub width: i64,
    /// Number of blocks.
    pub layers: i64,
    /// Attention heads; divide the width.
    pub heads: i64,
    /// Longest sequence.
    pub context: i64,
    /// Where layer normalisation stands.
    pub norm: Norm,
    /// Every n-th block is sparse, beginning with the n-th.
    pub moe_every: i64,
    /// Experts of a sparse layer.
    pub experts: i64,
    /// Hidden width that a token uses in every feed-forward layer: a dense layer has it whole, a
    /// router with k choices gets experts of a k-th of it.
    pub active_hidden: i64,
    /// Nonlinearity of experts and dense layers.
    pub activation: Activation,
    /// Whether experts and dense layers have biases.
    pub bias: bool,
    /// Whether the output projection is the embedding.
    pub tied_embedding: bool,
    /// Which tokens are routed together.
    pub routing_group: RoutingGroup,
}

impl Default for LmConfig {
    fn default() -> Self {
        Self {
            width: 128,
            layers: 4,
            heads: 4,
            context: 128,
            norm: Norm::Pre,
            moe_every: 2,
            experts: 8,
            active_hidden: 512,
            activation: Activation::Gelu,
            bias: true,
            tied_embedding: true,
            routing_group: RoutingGroup::Batch,
        }
    }
}

/// Sizes that do not go together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ModelError {
    /// The key of [`LmConfig`].
    pub key: &'static str,
    /// What is wrong and what was expected.
    pub reason: String,
}

impl LmConfig {
    /// Refuses sizes that do not go together.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<(), ModelError> {
        let error = |key, reason: String| Err(ModelError { key, reason });
        let positive = [
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("context", self.context),
            ("moe_every", self.moe_every),
            ("experts", self.experts),
            ("active_hidden", self.active_hidden),
        ];
        // Beyond this no tensor of the model could be allocated, and products might overflow.
        let most = 1 << 24;
        if let Some((key, value)) = positive.into_iter().find(|(_, v)| !(1..=most).contains(v)) {
            return error(key, format!("{value} is outside 1..={most}"));
        }
        if self.width % self.heads != 0 {
            return error("heads", format!("{} does not divide width {}", self.heads, self.width));
        }
        if self.moe_every > self.layers {
            let reason = format!("{} leaves no sparse layer among {}", self.moe_every, self.layers);
            return error("moe_every", reason);
        }
        Ok(())
    }

    /// Hidden width of one expert for `router`: the active width shared among a token's experts.
    pub fn expert_hidden(&self, router: &dyn RouterConfig) -> i64 {
        let active = router.active_experts(self.experts as usize);
        ((self.active_hidden as f64 / active).round() as i64).max(1)
    }

    fn is_sparse(&self, layer: i64) -> bool {
        (layer + 1) % self.moe_every == 0
    }
}

/// Scale and shift of a layer normalisation.
#[derive(Debug)]
struct LayerNorm {
    weight_d: Tensor,
    bias_d: Tensor,
}

impl LayerNorm {
    fn new(params: &Params<'_>, width: i64) -> Self {
        Self {
            weight_d: params.constant("weight", &[width], 1.0),
            bias_d: params.constant("bias", &[width], 0.0),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight_d.size(), Some(&self.weight_d), Some(&self.bias_d), 1e-5, false)
    }
}

#[derive(Debug)]
enum FeedForward {
    Dense(Experts),
    Sparse(MoeLayer),
}

#[derive(Debug)]
struct Block {
    attention: Attention,
    attention_norm: LayerNorm,
    feed_forward: FeedForward,
    feed_forward_norm: LayerNorm,
}

/// What a model returns.
#[derive(Debug)]
pub struct Output {
    /// Scores of the next token, `[b, t, v]`.
    pub logits_btv: Tensor,
    /// One entry per sparse layer, in order.
    pub traces: Vec<LayerTrace>,
}

/// The language model.
#[derive(Debug)]
pub struct DecoderLm {
    embedding_vd: Tensor,
    position_td: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    head_vd: Tensor,
    residual: Box<dyn Residual>,
    config: LmConfig,
    active_share: f64,
}

impl DecoderLm {
    /// A fresh model over a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn new(
        store: &ParamStore,
        config: &LmConfig,
        router: &dyn RouterConfig,
        capacity: Option<CapacityPolicy>,
        vocab: i64,
    ) -> Result<Self, ModelError> {
        config.check()?;
        let (root, d) = (store.root(), config.width);
        let embedding_vd = root.matrix("embedding", &[vocab, d], 0.02);
        let blocks =
            (0..config.layers).map(|layer| Block::new(&root, config, router, capacity, layer));
        let blocks = blocks.collect();
        let head_vd = match config.tied_embedding {
            true => embedding_vd.shallow_clone(),
            false => root.matrix("head", &[vocab, d], (1.0 / d as f64).sqrt()),
        };
        let experts = config.experts as usize;
        Ok(Self {
            position_td: root.matrix("position", &[config.context, d], 0.02),
            embedding_vd,
            blocks,
            final_norm: LayerNorm::new(&root.child("final_norm"), d),
            head_vd,
            residual: Box::new(Plain),
            config: config.clone(),
            active_share: router.active_experts(experts) / router.bank(experts) as f64,
        })
    }

    /// Token ids `[b, t]` to scores of the next token, `[b, t, v]`.
    ///
    /// # Errors
    /// If a router's settings leave no room for this number of tokens.
    ///
    /// # Panics
    /// If `t` exceeds the context.
    pub fn forward(&self, x_bt: &Tensor, cx: &RouteCx<'_>) -> Result<Output, RouteError> {
        let (_, t) = x_bt.size2().expect("[b, t]");
        assert!(t <= self.config.context, "{t} tokens exceed context {}", self.config.context);
        let embedded = Tensor::embedding(&self.embedding_vd, x_bt, -1, false, false);
        let mut x_btd = embedded + self.position_td.narrow(0, 0, t);
        let (mut traces, mut carried) = (Vec::new(), None);
        for block in &self.blocks {
            let attend = |x: &Tensor| Ok(block.attention.forward(x));
            x_btd = self.sublayer(&Plain, &x_btd, &block.attention_norm, attend, &mut None)?;
            let cx = RouteCx { token_gt: Some(x_bt), ..*cx };
            let feed = |x: &Tensor| block.feed(x, self.config.routing_group, &cx, &mut traces);
            let residual = self.residual.as_ref();
            x_btd =
                self.sublayer(residual, &x_btd, &block.feed_forward_norm, feed, &mut carried)?;
        }
        let logits_btv = self.final_norm.forward(&x_btd).linear(&self.head_vd, None::<&Tensor>);
        Ok(Output { logits_btv, traces })
    }

    /// One sublayer with its norm before or after; `carried` belongs to the residual rule.
    fn sublayer(
        &self,
        residual: &dyn Residual,
        x: &Tensor,
        norm: &LayerNorm,
        f: impl FnOnce(&Tensor) -> Result<Tensor, RouteError>,
        carried: &mut Option<Tensor>,
    ) -> Result<Tensor, RouteError> {
        let f_x = match self.config.norm {
            Norm::Pre => f(&norm.forward(x))?,
            Norm::Post => f(x)?,
        };
        let (y, next) = residual.step(x, &f_x, carried.take());
        *carried = next;
        Ok(match self.config.norm {
            Norm::Pre => y,
            Norm::Post => norm.forward(&y),
        })
    }

    /// Parameters that one token uses: all but the experts it does not visit.
    pub fn active_params(&self, store: &ParamStore) -> usize {
        let idle: f64 = self
            .sparse_layers()
            .map(|layer| {
                let bank = layer.experts.params_per_expert() * layer.experts.count() as usize;
                bank as f64 * (1.0 - self.active_share)
            })
            .sum();
        store.trainable_count() - idle.round() as usize
    }

    /// Lets every router update what no gradient reaches, with the loads of the step just taken.
    pub fn after_step(&mut self, traces: &[LayerTrace]) {
        let layers = self.blocks.iter_mut().filter_map(|block| match &mut block.feed_forward {
            FeedForward::Sparse(layer) => Some(layer),
            FeedForward::Dense(_) => None,
        });
        for (layer, trace) in layers.zip(traces) {
            layer.router.after_step(&trace.routing.plan.load_e());
        }
    }

    /// The sparse layers, in order.
    pub fn sparse_layers(&self) -> impl Iterator<Item = &MoeLayer> {
        self.blocks.iter().filter_map(|block| match &block.feed_forward {
            FeedForward::Sparse(layer) => Some(layer),
            FeedForward::Dense(_) => None,
        })
    }
}

impl Block {
    fn new(
        root: &Params<'_>,
        config: &LmConfig,
        router: &dyn RouterConfig,
        capacity: Option<CapacityPolicy>,
        layer: i64,
    ) -> Self {
        let params = root.child("layers").child(layer);
        let output_scale = (1.0 / (2.0 * config.layers as f64)).sqrt();
        let shape = |experts: i64, hidden: i64| ExpertShape {
            experts,
            width: config.width,
            hidden,
            activation: config.activation,
            bias: config.bias,
            output_scale,
        };
        let feed_forward = if config.is_sparse(layer) {
            let experts = router.bank(config.experts as usize) as i64;
            let shape = shape(experts, config.expert_hidden(router));
            FeedForward::Sparse(MoeLayer {
                index: ((layer + 1) / config.moe_every - 1) as usize,
                router: router
                    .build(&params.child("router"), Dims { width: config.width, experts }),
                experts: Experts::new(&params.child("experts"), shape, ExpertExec::Loop),
                capacity,
            })
        } else {
            let shape = shape(1, config.active_hidden);
            FeedForward::Dense(Experts::new(&params.child("dense"), shape, ExpertExec::Loop))
        };
        Self {
            attention: Attention::new(
                &params.child("attention"),
                config.width,
                config.heads,
                output_scale,
            ),
            attention_norm: LayerNorm::new(&params.child("attention_norm"), config.width),
            feed_forward,
            feed_forward_norm: LayerNorm::new(&params.child("feed_forward_norm"), config.width),
        }
    }

    fn feed(
        &self,
        x_btd: &Tensor,
        group: RoutingGroup,
        cx: &RouteCx<'_>,
        traces: &mut Vec<LayerTrace>,
    ) -> Result<Tensor, RouteError> {
        let (b, t, d) = x_btd.size3().expect("[b, t, d]");
        match &self.feed_forward {
            FeedForward::Dense(network) => {
                let rows = Tensor::from(b * t).view([1]);
                Ok(network.forward(&x_btd.reshape([b * t, d]), &rows).view([b, t, d]))
            }
            FeedForward::Sparse(layer) => {
                let x_gtd = match group {
                    RoutingGroup::Batch => x_btd.reshape([1, b * t, d]),
                    RoutingGroup::Sequence => x_btd.shallow_clone(),
                };
                let (g, t_of_group, _) = x_gtd.size3().expect("[g, t, d]");
                let token_gt = cx.token_gt.map(|ids| ids.reshape([g, t_of_group]));
                let previous = traces.last().map(|trace| &trace.routing);
                let cx = RouteCx { previous, token_gt: token_gt.as_ref(), ..*cx };
                let (y_gtd, trace) = layer.forward(&x_gtd, &cx)?;
                traces.push(trace);
                Ok(y_gtd.view([b, t, d]))
            }
        }
    }
}

/// Mean cross-entropy of the targets `y_bt`, nats per token, a scalar with its graph.
pub fn cross_entropy(logits_btv: &Tensor, y_bt: &Tensor) -> Tensor {
    let logits_nv = logits_btv.flatten(0, 1).to_kind(Kind::Float);
    logits_nv.cross_entropy_for_logits(&y_bt.flatten(0, -1))
}
