//! A block of a model: attention, then a dense or sparse feed-forward layer.
//!
//! Axis letters: `b` batch, `g` groups, `t` tokens, `d` width, `m` heads.

use crate::attention::Attention;
use crate::attention::span::SpanAttention;
use crate::attention::window::{WindowAttention, Windows};
use crate::experts::{Activation, ExpertExec, ExpertShape, Experts};
use crate::layer::{LayerTrace, MoeLayer};
use crate::lm::{LmConfig, RoutingGroup, Rules};
use crate::memory::Memory;
use crate::precision::Precision;
use crate::recompute::Recompute;
use moe_core::RouteError;
use moe_routers::noise::Site;
use moe_routers::norm::TorchNorm;
use moe_routers::residual::{Carried, NormsNeeded, Plain};
use moe_routers::{Dims, Norms, Params, Phase, Residual, RouteCx};
use tch::Tensor;

#[derive(Debug)]
enum FeedForward {
    Dense(Experts),
    Sparse(MoeLayer),
}

#[derive(Debug)]
enum SelfAttention {
    Whole(Attention),
    Span(SpanAttention),
    Window(WindowAttention),
}

/// What passes through the blocks of a model beside the tokens.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    /// The text before.
    pub(crate) memory: &'a mut Memory,
    /// What residuals hand on.
    pub(crate) carried: Carried,
    /// One entry per sparse layer so far.
    pub(crate) traces: Vec<LayerTrace>,
    /// Traces of earlier stages, whose tokens are others.
    earlier: usize,
}

impl<'a> Stream<'a> {
    /// Before the first block.
    pub(crate) fn new(memory: &'a mut Memory) -> Self {
        Self { memory, carried: Carried::new(), traces: Vec::new(), earlier: 0 }
    }

    /// The tokens that come now are none of those before: nothing is carried on, and the next sparse layer
    /// has none before it.
    pub(crate) fn next_stage(&mut self) {
        (self.carried, self.earlier) = (Carried::new(), self.traces.len());
    }
}

/// Where a block stands in its model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Counted from 0.
    pub(crate) index: i64,
    /// Blocks of the model.
    pub(crate) blocks: i64,
    /// Which of the sparse layers it has; `None` for a dense one.
    pub(crate) sparse: Option<usize>,
    /// The windows of its attention; `None` for attention to the whole sequence.
    pub(crate) windows: Option<Windows>,
    /// Share of the images at which training leaves out a sublayer.
    pub(crate) drop_path: f64,
}

#[derive(Debug)]
pub(crate) struct Block {
    index: usize,
    dropout: f64,
    drop_path: f64,
    attention: SelfAttention,
    attention_norm: TorchNorm,
    attention_residual: Plain,
    feed_forward: FeedForward,
    feed_forward_norms: Norms,
    group: RoutingGroup,
    reads_attention: bool,
}

/// A fresh norm under `params`.
pub(crate) fn norm(params: &Params<'_>, width: i64) -> TorchNorm {
    TorchNorm {
        weight_d: Some(params.constant("weight", &[width], 1.0)),
        bias_d: Some(params.constant("bias", &[width], 0.0)),
    }
}

/// The norms that a residual asks for.
fn norms(params: &Params<'_>, width: i64, needed: NormsNeeded) -> Norms {
    let of = |wanted: bool, name: &str| match wanted {
        true => norm(&params.child(name), width),
        false => TorchNorm::default(),
    };
    Norms { inner: of(needed.inner, "feed_forward_norm"), outer: of(needed.outer, "residual_norm") }
}

impl Block {
    /// Block `layer` of a model with blocks of one size.
    pub(crate) fn new(root: &Params<'_>, config: &LmConfig, rules: &Rules<'_>, layer: i64) -> Self {
        let place = Place {
            index: layer,
            blocks: config.layers,
            sparse: config.sparse_index(layer),
            windows: None,
            drop_path: 0.0,
        };
        Self::at(root, config, rules, place)
    }

    /// A block of the sizes in `config` at a place of its own.
    pub(crate) fn at(
        root: &Params<'_>,
        config: &LmConfig,
        rules: &Rules<'_>,
        place: Place,
    ) -> Self {
        let (params, d) = (root.child("layers").child(place.index), config.width);
        let sequence_only = rules.router.within_sequence();
        let sparse = place.sparse.is_some();
        let needed = rules.residual.norms(config.norm, sparse);
        Self {
            index: place.index as usize,
            dropout: config.dropout,
            drop_path: place.drop_path,
            attention: SelfAttention::new(&params.child("attention"), config, place),
            attention_norm: norm(&params.child("attention_norm"), d),
            attention_residual: Plain::new(config.norm),
            feed_forward: FeedForward::new(&params, config, rules, place),
            feed_forward_norms: norms(&params, d, needed),
            group: if sequence_only { RoutingGroup::Sequence } else { config.routing_group },
            reads_attention: sparse && rules.router.reads_attention(),
        }
    }

    /// Its place among the blocks, counted from 0.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Sets what products are carried out in.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        if let SelfAttention::Whole(attention) = &mut self.attention {
            attention.set_precision(precision);
        }
        let (FeedForward::Dense(experts) | FeedForward::Sparse(MoeLayer { experts, .. })) =
            &mut self.feed_forward;
        *experts = experts.with_precision(precision);
    }

    /// Sets what the backward pass computes again.
    pub(crate) fn set_recompute(&mut self, recompute: Recompute) {
        let (FeedForward::Dense(experts) | FeedForward::Sparse(MoeLayer { experts, .. })) =
            &mut self.feed_forward;
        *experts = experts.with_recompute(recompute);
    }

    /// The same, but a token attends to all tokens.
    pub(crate) fn of_all(self) -> Self {
        let attention = match self.attention {
            SelfAttention::Whole(attention) => SelfAttention::Whole(attention.of_all()),
            other @ (SelfAttention::Span(_) | SelfAttention::Window(_)) => other,
        };
        Self { attention, ..self }
    }

    /// `[b, t, d] -> [b, t, d]`. A sparse layer adds its trace, whose predecessor is the sparse layer
    /// before it.
    pub(crate) fn forward(
        &self,
        residual: &dyn Residual,
        x_btd: &Tensor,
        cx: &RouteCx<'_>,
        stream: &mut Stream<'_>,
    ) -> Result<Tensor, RouteError> {
        let (x_btd, weight_bmtt) = self.attend(x_btd, cx, stream.memory)?;
        let (norms, carried) = (&self.feed_forward_norms, &mut stream.carried);
        let drop =
            |y_btd: Tensor| self.dropped(y_btd, ["feed_forward_dropout", "feed_forward_path"], cx);
        match &self.feed_forward {
            FeedForward::Dense(network) => {
                let mut run = |x_btd: &Tensor| Ok(drop(network.dense(x_btd)));
                residual.dense(norms, &x_btd, carried, &mut run)
            }
            FeedForward::Sparse(layer) => {
                let previous = stream.traces[stream.earlier..].last().map(|trace| &trace.routing);
                let cx = RouteCx { previous, attention_gmtt: weight_bmtt.as_ref(), ..*cx };
                let mut last: Option<LayerTrace> = None;
                let mut run = |x_btd: &Tensor| {
                    let (y_btd, mut trace) = self.route(layer, x_btd, &cx)?;
                    // A rule that looks twice is led by its last look, and pays for both.
                    trace.expert_rows +=
                        last.take().map_or(Tensor::from(0.0), |look| look.expert_rows);
                    last = Some(trace);
                    Ok(drop(y_btd))
                };
                let before = std::mem::take(carried);
                let (x_btd, after) =
                    residual.sparse(layer.index, norms, &x_btd, before, &mut run)?;
                *carried = after;
                stream.traces.extend(last);
                Ok(x_btd)
            }
        }
    }

    /// The attention sublayer; its weights where the router reads them.
    fn attend(
        &self,
        x_btd: &Tensor,
        cx: &RouteCx<'_>,
        memory: &mut Memory,
    ) -> Result<(Tensor, Option<Tensor>), RouteError> {
        let mut weight_bmtt = None;
        let mut run = |x_btd: &Tensor| {
            let y_btd = match &self.attention {
                SelfAttention::Whole(attention) if self.reads_attention => {
                    let (y_btd, weights) = attention.forward_with_weights(x_btd);
                    weight_bmtt = Some(weights);
                    y_btd
                }
                SelfAttention::Whole(attention) => attention.forward(x_btd),
                SelfAttention::Window(attention) => attention.forward(x_btd),
                SelfAttention::Span(attention) => {
                    let memory_bld = memory.block(self.index).expect("the memory of this model");
                    let y_btd = attention.forward(x_btd, memory_bld);
                    *memory_bld = attention.remember(x_btd, memory_bld);
                    y_btd
                }
            };
            Ok(self.dropped(y_btd, ["attention_dropout", "attention_path"], cx))
        };
        let x_btd = self.attention_residual.step(&self.attention_norm, x_btd, &mut run)?;
        Ok((x_btd, weight_bmtt))
    }

    /// The same with a share of its values zero, then of its sequences, and the others larger by as much, in
    /// training. The draws are named for values and for sequences.
    fn dropped(&self, y_btd: Tensor, names: [&'static str; 2], cx: &RouteCx<'_>) -> Tensor {
        if !matches!(cx.phase, Phase::Train { .. }) {
            return y_btd;
        }
        let drop = |y_btd: Tensor, share: f64, name: &'static str, like: &Tensor| {
            let draw = cx.noise.uniform(Site { layer: self.index, name }, like);
            y_btd * draw.ge(share) / (1.0 - share)
        };
        let [values, path] = names;
        let mut y_btd = y_btd;
        if self.dropout > 0.0 {
            let like_btd = y_btd.shallow_clone();
            y_btd = drop(y_btd, self.dropout, values, &like_btd);
        }
        if self.drop_path > 0.0 {
            let like_b11 = y_btd.narrow(1, 0, 1).narrow(2, 0, 1);
            y_btd = drop(y_btd, self.drop_path, path, &like_b11);
        }
        y_btd
    }

    /// The sparse layer on the groups of the batch.
    fn route(
        &self,
        layer: &MoeLayer,
        x_btd: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, LayerTrace), RouteError> {
        let (b, t, d) = x_btd.size3().expect("[b, t, d]");
        let [g, t_of_group] = self.group.split(b, t);
        let token_gt = cx.token_gt.map(|ids| ids.reshape([g, t_of_group]));
        let padding_gt = cx.padding_gt.map(|padding_bt| padding_bt.reshape([g, t_of_group]));
        let cx = RouteCx { token_gt: token_gt.as_ref(), padding_gt: padding_gt.as_ref(), ..*cx };
        let (y_gtd, trace) = layer.forward(&x_btd.reshape([g, t_of_group, d]), &cx)?;
        Ok((y_gtd.view([b, t, d]), trace))
    }

    pub(crate) fn dense(&self) -> Option<&Experts> {
        match &self.feed_forward {
            FeedForward::Sparse(_) => None,
            FeedForward::Dense(network) => Some(network),
        }
    }

    pub(crate) fn sparse(&self) -> Option<&MoeLayer> {
        match &self.feed_forward {
            FeedForward::Sparse(layer) => Some(layer),
            FeedForward::Dense(_) => None,
        }
    }

    fn sparse_mut(&mut self) -> Option<&mut MoeLayer> {
        match &mut self.feed_forward {
            FeedForward::Sparse(layer) => Some(layer),
            FeedForward::Dense(_) => None,
        }
    }
}

/// Lets the routers of `blocks` update what no gradient reaches, with the loads of the step just taken, one
/// `[e]` per sparse layer.
pub(crate) fn after_step(blocks: &mut [Block], load_le: &[Tensor]) {
    for (layer, load_e) in blocks.iter_mut().filter_map(Block::sparse_mut).zip(load_le) {
        layer.router.after_step(load_e);
    }
}

/// Factor on the deviation of initial outputs of a sublayer, of which a model has two in each block.
fn output_scale(blocks: i64) -> f64 {
    (1.0 / (2.0 * blocks as f64)).sqrt()
}

impl SelfAttention {
    fn new(params: &Params<'_>, config: &LmConfig, place: Place) -> Self {
        let (d, heads, scale) = (config.width, config.heads, output_scale(place.blocks));
        match (place.windows, config.span) {
            (Some(windows), _) => {
                Self::Window(WindowAttention::new(params, (d, heads), windows, scale))
            }
            (None, None) => Self::Whole(Attention::new(params, d, heads, scale)),
            (None, Some(span)) => Self::Span(SpanAttention::new(params, (d, heads, span), scale)),
        }
    }
}

impl FeedForward {
    fn new(params: &Params<'_>, config: &LmConfig, rules: &Rules<'_>, place: Place) -> Self {
        let shape = |experts: i64, hidden: i64, activation: Activation| ExpertShape {
            experts,
            width: config.width,
            hidden,
            activation,
            bias: config.bias,
            output_scale: output_scale(place.blocks),
        };
        let exec = match params.is_sketch() {
            true => ExpertExec::Loop, // which packs no weights
            false => ExpertExec::best(params.device(), params.kind()),
        };
        let Some(index) = place.sparse else {
            let activation = config.dense_activation.unwrap_or(config.activation);
            let shape = shape(1, config.active_hidden, activation);
            return Self::Dense(Experts::new(&params.child("dense"), shape, exec));
        };
        let experts = rules.router.bank(config.experts as usize) as i64;
        let shape = shape(experts, config.hidden_of_expert(rules.router), config.activation);
        Self::Sparse(MoeLayer {
            index,
            router: rules
                .router
                .build(&params.child("router").wide(), Dims { width: config.width, experts }),
            experts: Experts::new(&params.child("experts"), shape, exec),
            capacity: rules.capacity,
            losses: rules.losses,
        })
    }
}
