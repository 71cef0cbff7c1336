//! An encoder for masked language models, with dense and sparse feed-forward layers: X-MoE's model.
//!
//! *On the Representation Collapse of Sparse Mixture of Experts*, Chi et al. 2022, arXiv 2204.09179, trains
//! XLM-R's encoder (arXiv 1911.02116) with one sparse layer in its middle. The blocks are those of the
//! decoder, whose [`LmConfig`] has their sizes, with attention to all tokens; positions are learned and given
//! with the ids, so that texts side by side in a row count their own. The sum of both is normalised before
//! the first block, as in BERT and XLM-R. The scores of the hidden ids are
//! `norm(gelu(W x + b)) E^T` with `E` the embedding, as there.
//!
//! Departures: the sparse layer takes the place of a block's dense layer, where the paper adds it between
//! blocks; an expert is one feed-forward network, where the paper stacks three; attention and scores have no
//! biases; norms stand before sublayers unless `norm` says otherwise; positions begin as sines and cosines,
//! where XLM-R draws them: a neighbour is then found by one rotation instead of one product per pair of
//! places, without which small models stay for thousands of steps where no context is used.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `v` vocabulary, `n` targets, `l` sparse layers.

use crate::block::{Block, Stream, after_step, norm};
use crate::head;
use crate::layer::{LayerTrace, MoeLayer, active_params};
use crate::lm::{LmConfig, ModelError, Rules};
use crate::memory::Memory;
use crate::precision::Precision;
use moe_core::RouteError;
use moe_routers::norm::TorchNorm;
use moe_routers::residual::LN_EPS;
use moe_routers::{Init, ParamStore, Residual, Role, RouteCx};
use tch::Tensor;

/// Standard deviation of the embedding at first, and root mean square of the positions.
const EMBEDDING_STD: f64 = 0.02;

/// The masked language model.
#[derive(Debug)]
pub struct MaskedLm {
    embedding_vd: Tensor,
    position_td: Tensor,
    embedding_norm: TorchNorm,
    blocks: Vec<Block>,
    final_norm: TorchNorm,
    transform_dd: Tensor,
    transform_d: Tensor,
    transform_norm: TorchNorm,
    head_vd: Tensor,
    residual: Box<dyn Residual>,
    context: i64,
    active_share: f64,
    precision: Precision,
}

/// Rows of a batch: ids, and the place of each in its own text, both `[b, t]`, int64.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Token ids.
    pub x_bt: &'a Tensor,
    /// Positions, below the model's context.
    pub position_bt: &'a Tensor,
}

impl MaskedLm {
    /// A fresh model over a vocabulary of `vocab` ids, mask and separator included.
    ///
    /// # Errors
    /// Sizes that do not go together; a span, which is a decoder's.
    pub fn new(
        store: &ParamStore,
        config: &LmConfig,
        rules: &Rules<'_>,
        vocab: i64,
    ) -> Result<Self, ModelError> {
        config.check()?;
        if config.span.is_some() {
            let reason = "an encoder attends to all tokens of a row".into();
            return Err(ModelError { key: "span", reason });
        }
        let (root, d, experts) = (store.root(), config.width, config.experts as usize);
        let embedding_vd = root.matrix("embedding", &[vocab, d], EMBEDDING_STD);
        let block = |layer| Block::new(&root, config, rules, layer).of_all();
        let blocks = (0..config.layers).map(block).collect();
        let (transform, std) = (root.child("transform"), (1.0 / d as f64).sqrt());
        Ok(Self {
            head_vd: match config.tied_embedding {
                true => embedding_vd.shallow_clone(),
                false => root.matrix("head", &[vocab, d], std),
            },
            embedding_vd,
            position_td: root.add(
                "position",
                &[config.context, d],
                Init::Sinusoids(EMBEDDING_STD * std::f64::consts::SQRT_2),
                Role::Decayed,
            ),
            embedding_norm: norm(&root.child("embedding_norm"), d),
            blocks,
            final_norm: norm(&root.child("final_norm"), d),
            transform_dd: transform.matrix("weight", &[d, d], std),
            transform_d: transform.constant("bias", &[d], 0.0),
            transform_norm: norm(&transform.child("norm"), d),
            residual: rules.residual.build(config.norm),
            context: config.context,
            active_share: rules.router.active_experts(experts) / rules.router.bank(experts) as f64,
            precision: Precision::Fp32,
        })
    }

    /// The same parameters with products in `precision`.
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

    /// Mean cross-entropy of the hidden ids `y_n` at `place_n` of the rows one after the other, nats per
    /// target, with its graph; and a trace per sparse layer.
    ///
    /// # Errors
    /// If a router's settings leave no room for this number of tokens.
    ///
    /// # Panics
    /// If a row is longer than the context.
    pub fn loss(
        &self,
        rows: Rows<'_>,
        (place_n, y_n): (&Tensor, &Tensor),
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (x_nd, traces) = self.transformed(rows, place_n, cx)?;
        Ok((head::cross_entropy(&x_nd, &self.head_vd, y_n, self.precision), traces))
    }

    /// Scores of the hidden ids at `place_n`, `[n, v]`; and a trace per sparse layer.
    ///
    /// # Errors
    /// As [`Self::loss`].
    ///
    /// # Panics
    /// As [`Self::loss`].
    pub fn forward(
        &self,
        rows: Rows<'_>,
        place_n: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (x_nd, traces) = self.transformed(rows, place_n, cx)?;
        Ok((self.precision.linear(&x_nd, &self.head_vd), traces))
    }

    /// Mean over each row of what block `n` put out, `[b, d]` for every `n` from 0, the embedding, to the
    /// last; the first token, a separator, is left out unless it is alone.
    ///
    /// # Errors
    /// As [`Self::loss`].
    ///
    /// # Panics
    /// As [`Self::loss`].
    pub fn pooled(&self, rows: Rows<'_>, cx: &RouteCx<'_>) -> Result<Vec<Tensor>, RouteError> {
        let mut layers = Vec::with_capacity(self.blocks.len() + 1);
        let _ = self.run(rows, cx, &mut |x_btd| {
            let (_, t, _) = x_btd.size3().expect("[b, t, d]");
            let text_btd = if t > 1 { x_btd.narrow(1, 1, t - 1) } else { x_btd.shallow_clone() };
            layers.push(text_btd.mean_dim(1, false, x_btd.kind()));
        })?;
        Ok(layers)
    }

    /// What the output layer reads at `place_n`, `[n, d]`.
    fn transformed(
        &self,
        rows: Rows<'_>,
        place_n: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (x_btd, traces) = self.run(rows, cx, &mut |_| {})?;
        let x_nd = Tensor::embedding(&x_btd.flatten(0, 1), place_n, -1, false, false);
        let x_nd = self.final_norm.apply(&x_nd, LN_EPS);
        let x_nd = self.precision.linear(&x_nd, &self.transform_dd) + &self.transform_d;
        Ok((self.transform_norm.apply(&x_nd.gelu("none"), LN_EPS), traces))
    }

    /// The stream after the last block, `[b, t, d]`; `watch` sees the embedding and what each block put out.
    fn run(
        &self,
        Rows { x_bt, position_bt }: Rows<'_>,
        cx: &RouteCx<'_>,
        watch: &mut dyn FnMut(&Tensor),
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let (_, t) = x_bt.size2().expect("[b, t]");
        assert!(t <= self.context, "{t} tokens exceed context {}", self.context);
        let look_up =
            |table: &Tensor, ids: &Tensor| Tensor::embedding(table, ids, -1, false, false);
        let x_btd = look_up(&self.embedding_vd, x_bt) + look_up(&self.position_td, position_bt);
        let mut x_btd = self.embedding_norm.apply(&x_btd, LN_EPS);
        watch(&x_btd);
        let mut memory = Memory::default();
        let mut stream = Stream::new(&mut memory);
        let cx = RouteCx { token_gt: Some(x_bt), ..*cx };
        for block in &self.blocks {
            x_btd = block.forward(self.residual.as_ref(), &x_btd, &cx, &mut stream)?;
            watch(&x_btd);
        }
        Ok((x_btd, stream.traces))
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
