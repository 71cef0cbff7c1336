//! A block of a model: attention, then a dense or sparse feed-forward layer.
//!
//! Axis letters: `b` batch, `g` groups, `t` tokens, `d` width, `m` heads.

use crate::attention::Attention;
use crate::attention::span::SpanAttention;
use crate::experts::{Activation, ExpertExec, ExpertShape, Experts};
use crate::layer::{LayerTrace, MoeLayer};
use crate::lm::{LmConfig, RoutingGroup, Rules};
use crate::memory::Memory;
use crate::precision::Precision;
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
}

#[derive(Debug)]
pub(crate) struct Block {
    index: usize,
    dropout: f64,
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
    pub(crate) fn new(root: &Params<'_>, config: &LmConfig, rules: &Rules<'_>, layer: i64) -> Self {
        let (params, d) = (root.child("layers").child(layer), config.width);
        let output_scale = (1.0 / (2.0 * config.layers as f64)).sqrt();
        let sequence_only = rules.router.within_sequence();
        let needed = rules.residual.norms(config.norm, config.sparse_index(layer).is_some());
        Self {
            index: layer as usize,
            dropout: config.dropout,
            attention: SelfAttention::new(&params.child("attention"), config, output_scale),
            attention_norm: norm(&params.child("attention_norm"), d),
            attention_residual: Plain::new(config.norm),
            feed_forward: FeedForward::new(&params, config, rules, layer),
            feed_forward_norms: norms(&params, d, needed),
            group: if sequence_only { RoutingGroup::Sequence } else { config.routing_group },
            reads_attention: config.sparse_index(layer).is_some() && rules.router.reads_attention(),
        }
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

    /// The same, but a token attends to all tokens.
    pub(crate) fn of_all(self) -> Self {
        let attention = match self.attention {
            SelfAttention::Whole(attention) => SelfAttention::Whole(attention.of_all()),
            span @ SelfAttention::Span(_) => span,
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
        let drop = |y_btd: Tensor| self.dropped(y_btd, "feed_forward_dropout", cx);
        match &self.feed_forward {
            FeedForward::Dense(network) => {
                let mut run = |x_btd: &Tensor| Ok(drop(network.dense(x_btd)));
                residual.dense(norms, &x_btd, carried, &mut run)
            }
            FeedForward::Sparse(layer) => {
                let previous = stream.traces.last().map(|trace| &trace.routing);
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
                SelfAttention::Span(attention) => {
                    let memory_bld = memory.block(self.index).expect("the memory of this model");
                    let y_btd = attention.forward(x_btd, memory_bld);
                    *memory_bld = attention.remember(x_btd, memory_bld);
                    y_btd
                }
            };
            Ok(self.dropped(y_btd, "attention_dropout", cx))
        };
        let x_btd = self.attention_residual.step(&self.attention_norm, x_btd, &mut run)?;
        Ok((x_btd, weight_bmtt))
    }

    /// The same with a share of its values zero, and the others larger by as much, in training.
    fn dropped(&self, y_btd: Tensor, name: &'static str, cx: &RouteCx<'_>) -> Tensor {
        if self.dropout == 0.0 || !matches!(cx.phase, Phase::Train { .. }) {
            return y_btd;
        }
        let draw_btd = cx.noise.uniform(Site { layer: self.index, name }, &y_btd);
        y_btd * draw_btd.ge(self.dropout) / (1.0 - self.dropout)
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

    pub(crate) fn sparse_mut(&mut self) -> Option<&mut MoeLayer> {
        match &mut self.feed_forward {
            FeedForward::Sparse(layer) => Some(layer),
            FeedForward::Dense(_) => None,
        }
    }
}

impl SelfAttention {
    fn new(params: &Params<'_>, config: &LmConfig, output_scale: f64) -> Self {
        let (d, heads) = (config.width, config.heads);
        match config.span {
            None => Self::Whole(Attention::new(params, d, heads, output_scale)),
            Some(span) => Self::Span(SpanAttention::new(params, (d, heads, span), output_scale)),
        }
    }
}

impl FeedForward {
    fn new(params: &Params<'_>, config: &LmConfig, rules: &Rules<'_>, layer: i64) -> Self {
        let shape = |experts: i64, hidden: i64, activation: Activation| ExpertShape {
            experts,
            width: config.width,
            hidden,
            activation,
            bias: config.bias,
            output_scale: (1.0 / (2.0 * config.layers as f64)).sqrt(),
        };
        let exec = match params.is_sketch() {
            true => ExpertExec::Loop, // which packs no weights
            false => ExpertExec::best(params.device(), params.kind()),
        };
        let Some(index) = config.sparse_index(layer) else {
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
