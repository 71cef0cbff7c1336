//! A decoder-only language model with dense and sparse feed-forward layers.
//!
//! `moe_every = 2` is GLaM's layout (arXiv 2112.06905: every other layer is sparse), `moe_every = 1`
//! the small Switch models' (every layer).
//!
//! Axis letters: `b` batch, `g` groups, `t` tokens, `d` width, `v` vocabulary.

use crate::block::{Block, Stream, after_step, norm};
use crate::experts::Activation;
use crate::flops;
use crate::head::Head;
use crate::head::adaptive::{Adaptive, ClusteredTable, SoftmaxConfig};
use crate::layer::{LayerTrace, MoeLayer, active_params};
use crate::loss::LossWeights;
use crate::memory::Memory;
use crate::precision::Precision;
use crate::recompute::Recompute;
use moe_core::{CapacityPolicy, RouteError};
use moe_routers::norm::TorchNorm;
use moe_routers::residual::{LN_EPS, PlainConfig};
use moe_routers::{Norm, ParamStore, Residual, ResidualConfig, RouteCx, RouterConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Which tokens compete for experts' room and share a balance loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingGroup {
    /// All tokens of the batch: what Switch, GShard and their kin do on one device.
    Batch,
    /// The tokens of one sequence.
    Sequence,
    /// The tokens of so many sequences, one after the other in the batch, as V-MoE's code groups 8
    /// images; a batch that they do not divide is one group.
    Sequences(i64),
}

impl RoutingGroup {
    /// Groups of a batch of `b` sequences of `t` tokens, and the tokens of a group.
    pub(crate) fn split(self, b: i64, t: i64) -> [i64; 2] {
        match self {
            Self::Sequence => [b, t],
            Self::Sequences(n) if b % n == 0 => [b / n, n * t],
            Self::Batch | Self::Sequences(_) => [1, b * t],
        }
    }
}

/// Sizes and layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Positions before itself that a token sees, with relative positions and a memory of the text
    /// before the sequence: the backbone of ACMoE's and MomentumSMoE's language models. Unless given,
    /// a token sees the whole sequence up to itself, with learned absolute positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<i64>,
    /// Share of the values of every attention's and feed-forward layer's output that training drops.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropout: f64,
    /// Where layer normalisation stands.
    pub norm: Norm,
    /// Every n-th block is sparse.
    pub moe_every: i64,
    /// The first sparse block, counted from 0; the n-th unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe_first: Option<i64>,
    /// Experts of a sparse layer.
    pub experts: i64,
    /// Hidden width that a token uses in every feed-forward layer: a dense layer has it whole, a
    /// router with k choices gets experts of a k-th of it.
    pub active_hidden: i64,
    /// Hidden width of one expert, whatever the number that a token visits. The record of a run has it,
    /// so that a trained model can be evaluated with another number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_hidden: Option<i64>,
    /// Nonlinearity of experts and dense layers.
    pub activation: Activation,
    /// Nonlinearity of dense layers; that of the experts unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_activation: Option<Activation>,
    /// Whether experts and dense layers have biases.
    pub bias: bool,
    /// Whether the output projection is the embedding.
    pub tied_embedding: bool,
    /// The output layer of a large vocabulary; one softmax over all ids unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub softmax: Option<SoftmaxConfig>,
    /// Which tokens are routed together.
    pub routing_group: RoutingGroup,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for LmConfig {
    fn default() -> Self {
        Self {
            width: 128,
            layers: 4,
            heads: 4,
            context: 128,
            span: None,
            dropout: 0.0,
            norm: Norm::Pre,
            moe_every: 2,
            moe_first: None,
            experts: 8,
            active_hidden: 512,
            expert_hidden: None,
            activation: Activation::Gelu,
            dense_activation: None,
            bias: true,
            tied_embedding: true,
            softmax: None,
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

/// Deeper than any model that was trained, and still quickly laid out.
const MOST_LAYERS: i64 = 4096;

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
            ("span", self.span.unwrap_or(1)),
            ("moe_every", self.moe_every),
            ("experts", self.experts),
            ("active_hidden", self.active_hidden),
            ("expert_hidden", self.expert_hidden.unwrap_or(1)),
        ];
        // Beyond this no tensor of the model could be allocated, and products might overflow.
        let most = 1 << 24;
        if let Some((key, value)) = positive.into_iter().find(|(_, v)| !(1..=most).contains(v)) {
            return error(key, format!("{value} is outside 1..={most}"));
        }
        if self.layers > MOST_LAYERS {
            return error("layers", format!("{} is outside 1..={MOST_LAYERS}", self.layers));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return error("dropout", format!("{} is outside 0..1", self.dropout));
        }
        if self.width % self.heads != 0 {
            return error("heads", format!("{} does not divide width {}", self.heads, self.width));
        }
        if let RoutingGroup::Sequences(n @ ..=0) = self.routing_group {
            return error("routing_group.sequences", format!("{n} must be at least 1"));
        }
        if self.moe_first.is_some_and(|first| !(0..self.layers).contains(&first)) {
            let first = self.moe_first.unwrap_or_default();
            return error("moe_first", format!("{first} is no block among {}", self.layers));
        }
        self.softmax.as_ref().map_or(Ok(()), |softmax| softmax.check(self.width))?;
        if self.sparse_layers() == 0 {
            let reason = format!("{} leaves no sparse layer among {}", self.moe_every, self.layers);
            return error("moe_every", reason);
        }
        Ok(())
    }

    /// Hidden width of one expert for `router`: as given, else the active width shared among a token's
    /// experts.
    pub fn hidden_of_expert(&self, router: &dyn RouterConfig) -> i64 {
        let sharers = router.trained_experts(self.experts as usize);
        let shared = (self.active_hidden as f64 / sharers).round() as i64;
        self.expert_hidden.unwrap_or(shared).max(1)
    }

    /// Number of sparse layers.
    pub fn sparse_layers(&self) -> usize {
        (0..self.layers).filter(|layer| self.sparse_index(*layer).is_some()).count()
    }

    /// Which of the sparse layers a block has, counted from 0; `None` for a dense one.
    pub(crate) fn sparse_index(&self, layer: i64) -> Option<usize> {
        let after = layer - self.moe_first.unwrap_or(self.moe_every - 1);
        (after >= 0 && after % self.moe_every == 0).then(|| (after / self.moe_every) as usize)
    }
}

/// Standard deviation of initial embeddings and positions.
const EMBED_STD: f64 = 0.02;

/// What a model returns.
#[derive(Debug)]
pub struct Output {
    /// Scores of the next token, `[b, t, v]`.
    pub logits_btv: Tensor,
    /// One entry per sparse layer, in order.
    pub traces: Vec<LayerTrace>,
}

/// The rules of a model: what is exchanged between the rows of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Who computes what in the sparse layers.
    pub router: &'a dyn RouterConfig,
    /// How a layer's output enters the stream.
    pub residual: &'a dyn ResidualConfig,
    /// The recipe's capacity policy; `None` leaves the router's own.
    pub capacity: Option<CapacityPolicy>,
    /// The recipe's losses.
    pub losses: LossWeights,
}

impl<'a> Rules<'a> {
    /// `router` with the plain residual, its own capacity and losses.
    pub fn new(router: &'a dyn RouterConfig) -> Self {
        Self { router, residual: &PlainConfig, capacity: None, losses: LossWeights::default() }
    }
}

/// The language model.
#[derive(Debug)]
pub struct DecoderLm {
    embedding: Embedding,
    /// Absolute positions; none with a span, whose positions are relative.
    position_td: Option<Tensor>,
    blocks: Vec<Block>,
    final_norm: TorchNorm,
    /// None in the trunk of another model.
    head: Option<Head>,
    residual: Box<dyn Residual>,
    config: LmConfig,
    active_share: f64,
    precision: Precision,
    /// Products of one token in all routers.
    router_products: f64,
}

/// Where the stream begins.
#[derive(Debug)]
enum Embedding {
    /// One row for every id, `[v, d]`.
    Whole(Tensor),
    /// Shared with an adaptive output layer.
    Clustered(ClusteredTable),
}

impl Embedding {
    fn of(&self, x_bt: &Tensor) -> Tensor {
        match self {
            Self::Whole(row_vd) => Tensor::embedding(row_vd, x_bt, -1, false, false),
            Self::Clustered(table) => table.embed(x_bt),
        }
    }

    fn like(&self) -> &Tensor {
        match self {
            Self::Whole(row_vd) => row_vd,
            Self::Clustered(table) => table.like(),
        }
    }
}

impl DecoderLm {
    /// A fresh model over a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// Sizes that do not go together.
    pub fn new(
        store: &ParamStore,
        config: &LmConfig,
        rules: &Rules<'_>,
        vocab: i64,
    ) -> Result<Self, ModelError> {
        let mut model = Self::trunk(store, config, rules, vocab)?;
        model.head = Some(model.fresh_head(store, vocab));
        Ok(model)
    }

    /// A fresh model without its output layer, for [`Self::features`]: the rest of it, under the same
    /// names.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn trunk(
        store: &ParamStore,
        config: &LmConfig,
        rules: &Rules<'_>,
        vocab: i64,
    ) -> Result<Self, ModelError> {
        config.check()?;
        config.softmax.as_ref().map_or(Ok(()), |softmax| softmax.check_vocab(vocab))?;
        let (root, d, router) = (store.root(), config.width, rules.router);
        if config.span.is_some() && router.reads_attention() {
            let reason = "this router reads attention over the whole sequence".into();
            return Err(ModelError { key: "span", reason });
        }
        let embedding = match &config.softmax {
            Some(softmax) if config.tied_embedding => {
                let table = root.child("embedding");
                Embedding::Clustered(ClusteredTable::new(&table, softmax, (vocab, d), EMBED_STD))
            }
            _ => Embedding::Whole(root.matrix("embedding", &[vocab, d], EMBED_STD)),
        };
        let blocks = (0..config.layers).map(|layer| Block::new(&root, config, rules, layer));
        let blocks: Vec<Block> = blocks.collect();
        let experts = config.experts as usize;
        let absolute = config.span.is_none();
        let position =
            || absolute.then(|| root.matrix("position", &[config.context, d], EMBED_STD));
        Ok(Self {
            position_td: position(),
            embedding,
            router_products: flops::of_routers(&blocks, store),
            blocks,
            final_norm: norm(&root.child("final_norm"), d),
            head: None,
            residual: rules.residual.build(config.norm),
            config: config.clone(),
            active_share: router.active_experts(experts) / router.bank(experts) as f64,
            precision: Precision::Fp32,
        })
    }

    fn fresh_head(&self, store: &ParamStore, vocab: i64) -> Head {
        let (root, d) = (store.root(), self.config.width);
        let std = (1.0 / d as f64).sqrt();
        match (&self.config.softmax, &self.embedding) {
            (_, Embedding::Clustered(table)) => {
                let tails = root.child("head");
                Head::Adaptive(Adaptive::new(&tails, table.share(), d, EMBED_STD))
            }
            (Some(softmax), Embedding::Whole(_)) => {
                let head = root.child("head");
                let table = ClusteredTable::new(&head, softmax, (vocab, d), std);
                Head::Adaptive(Adaptive::new(&head, table, d, std))
            }
            (None, Embedding::Whole(row_vd)) if self.config.tied_embedding => {
                Head::Full(row_vd.shallow_clone())
            }
            (None, Embedding::Whole(_)) => Head::Full(root.matrix("head", &[vocab, d], std)),
        }
    }

    /// # Panics
    /// If this is the trunk of another model.
    fn head(&self) -> &Head {
        self.head.as_ref().expect("a language model has an output layer")
    }

    /// The same parameters with products in `precision`. Attention over a span stays as it is.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        if precision == self.precision {
            return self;
        }
        self.precision = precision;
        for block in &mut self.blocks {
            block.set_precision(precision);
        }
        self
    }

    /// The same parameters, whose backward pass computes `recompute` again rather than finding it kept.
    #[must_use]
    pub fn with_recompute(mut self, recompute: Recompute) -> Self {
        for block in &mut self.blocks {
            block.set_recompute(recompute);
        }
        self
    }

    /// Token ids `[b, t]` to scores of the next token, `[b, t, v]`.
    ///
    /// # Errors
    /// If a router's settings leave no room for this number of tokens.
    ///
    /// # Panics
    /// If `t` exceeds the context.
    pub fn forward(&self, x_bt: &Tensor, cx: &RouteCx<'_>) -> Result<Output, RouteError> {
        let (x_btd, traces) = self.hidden(x_bt, &mut self.no_memory(x_bt.size()[0]), cx)?;
        Ok(Output { logits_btv: self.head().scores(&x_btd, self.precision), traces })
    }

    /// Mean cross-entropy of the targets `y_bt`, nats per token, with its graph, without ever holding
    /// the scores of all tokens ([`crate::head`]); and the traces.
    ///
    /// # Errors
    /// As [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn loss(
        &self,
        x_bt: &Tensor,
        y_bt: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        self.loss_after(&mut self.no_memory(x_bt.size()[0]), x_bt, y_bt, cx)
    }

    /// [`Self::loss`] of a text that goes on after `memory`, which is moved on to its end.
    ///
    /// # Errors
    /// As [`Self::forward`]; the memory is of no use then.
    ///
    /// # Panics
    /// As [`Self::forward`], and if the memory is another model's or another batch's.
    pub fn loss_after(
        &self,
        memory: &mut Memory,
        x_bt: &Tensor,
        y_bt: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (x_btd, traces) = self.hidden(x_bt, memory, cx)?;
        let (x_nd, y_n) = (x_btd.flatten(0, 1), y_bt.flatten(0, 1));
        Ok((self.head().loss(&x_nd, &y_n, self.precision), traces))
    }

    /// The memory at the start of a text, for `batch` texts at a time: zeros.
    pub fn no_memory(&self, batch: i64) -> Memory {
        let like = (self.embedding.like().kind(), self.embedding.like().device());
        let zeros = |span: i64| Tensor::zeros([batch, span, self.config.width], like);
        let blocks =
            self.config.span.into_iter().flat_map(|span| {
                std::iter::repeat_with(move || zeros(span)).take(self.blocks.len())
            });
        Memory::new(blocks.collect())
    }

    /// Whether a text may go on after a memory.
    pub fn remembers(&self) -> bool {
        self.config.span.is_some()
    }

    /// Token ids `[b, t]` of texts with nothing before them to what an output layer reads, `[b, t, d]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn features(
        &self,
        x_bt: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        self.hidden(x_bt, &mut self.no_memory(x_bt.size()[0]), cx)
    }

    /// Values of the output layer that a token is multiplied with, mean over these targets, a scalar.
    ///
    /// # Panics
    /// If this is the trunk of another model.
    pub fn output_products(&self, y_bt: &Tensor) -> Tensor {
        self.head().products(y_bt)
    }

    /// FLOPs of one token of a sequence of `t`, whose sparse layers process `rows_l` rows of experts a
    /// token, `[l]`, and whose output layer multiplies it with `output` values: 2 for every value of a
    /// matrix, 4 t d for attention, which computes what it masks too; with a span of `l`, whose keys and
    /// values are computed again for the memory, (6 l + 4 t) d + 4 d^2 l / t (`flops.rs`).
    pub fn flops(&self, rows_l: &[f64], t: usize, output: f64) -> f64 {
        let (t, d) = (t as f64, self.config.width as f64);
        let span = self.config.span.unwrap_or(0) as f64;
        let seen = (3.0 * span + 2.0 * t) * d + 2.0 * d * d * span / t;
        let attention = self.config.layers as f64 * (4.0 * d * d + seen);
        let experts = flops::of_experts(&self.blocks, rows_l);
        let shared = self.router_products + flops::of_dense(&self.blocks);
        2.0 * (attention + shared + experts + output)
    }

    /// Token ids `[b, t]` to what the output layer reads, `[b, t, d]`.
    fn hidden(
        &self,
        x_bt: &Tensor,
        memory: &mut Memory,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (_, t) = x_bt.size2().expect("[b, t]");
        assert!(t <= self.config.context, "{t} tokens exceed context {}", self.config.context);
        let mut x_btd = self.embedding.of(x_bt);
        if let Some(position_td) = &self.position_td {
            x_btd += position_td.narrow(0, 0, t);
        }
        let mut stream = Stream::new(memory);
        let cx = RouteCx { token_gt: Some(x_bt), ..*cx };
        for block in &self.blocks {
            x_btd = block.forward(self.residual.as_ref(), &x_btd, &cx, &mut stream)?;
        }
        Ok((self.final_norm.apply(&x_btd, LN_EPS), stream.traces))
    }

    /// Parameters that one token uses: all but the experts it does not visit.
    pub fn active_params(&self, store: &ParamStore) -> usize {
        active_params(store, self.sparse_layers(), self.active_share)
    }

    /// Lets every router update what no gradient reaches, with the loads of the step just taken, one `[e]`
    /// per sparse layer.
    pub fn after_step(&mut self, load_le: &[Tensor]) {
        after_step(&mut self.blocks, load_le);
    }

    /// The sparse layers, in order.
    pub fn sparse_layers(&self) -> impl Iterator<Item = &MoeLayer> {
        self.blocks.iter().filter_map(Block::sparse)
    }
}
