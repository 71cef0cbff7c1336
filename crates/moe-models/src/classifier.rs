//! A classifier of texts: a language model without its output layer, and a linear map of what it makes of
//! a text.
//!
//! Shorter texts of a batch are filled up. Attention is causal, so that no token sees what is behind it,
//! and routers are told which tokens are none of theirs.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `v` classes.

use crate::layer::LayerTrace;
use crate::lm::{DecoderLm, LmConfig, ModelError, Rules};
use moe_core::RouteError;
use moe_routers::{Init, ParamStore, Role, RouteCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What a classifier of texts reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TextPool {
    /// The last token of the text, which has seen all others.
    #[default]
    LastToken,
    /// The mean of all tokens of the text.
    Mean,
}

/// The classifier.
#[derive(Debug)]
pub struct TextClassifier {
    trunk: DecoderLm,
    head_vd: Tensor,
    head_v: Tensor,
    pool: TextPool,
}

/// Before this the names of a classifier's own parameters; all others are the language model's.
pub const CLASSIFIER: &str = "classifier.";

impl TextClassifier {
    /// A fresh classifier into `classes` over a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// Sizes that do not go together, or a router that knows no padding.
    pub fn new(
        store: &ParamStore,
        config: &LmConfig,
        rules: &Rules<'_>,
        (vocab, classes): (i64, i64),
        pool: TextPool,
    ) -> Result<Self, ModelError> {
        let trunk = DecoderLm::trunk(store, config, rules, vocab)?;
        if trunk.sparse_layers().any(|layer| !layer.router.takes_padding()) {
            let reason = "this router knows no padding, which texts of different lengths need";
            return Err(ModelError { key: "router", reason: reason.into() });
        }
        let head = store.root().child(CLASSIFIER.trim_end_matches('.'));
        Ok(Self {
            trunk,
            // Zero: the first loss is that of an even guess.
            head_vd: head.add("weight", &[classes, config.width], Init::Const(0.0), Role::Decayed),
            head_v: head.constant("bias", &[classes], 0.0),
            pool,
        })
    }

    /// Texts `[b, t]` of `length_b` tokens each to scores of the classes, `[b, v]`, and a trace per sparse
    /// layer.
    ///
    /// # Errors
    /// If a router's settings leave no room for this number of tokens.
    ///
    /// # Panics
    /// If `t` exceeds the context.
    pub fn forward(
        &self,
        x_bt: &Tensor,
        length_b: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, Vec<LayerTrace>), RouteError> {
        let place_t = Tensor::arange(x_bt.size()[1], (Kind::Int64, x_bt.device()));
        let length_b1 = length_b.unsqueeze(1);
        let padding_bt = place_t.unsqueeze(0).ge_tensor(&length_b1);
        let cx = RouteCx { padding_gt: Some(&padding_bt), ..*cx };
        let (x_btd, traces) = self.trunk.features(x_bt, &cx)?;
        let share_bt = match self.pool {
            TextPool::LastToken => place_t.unsqueeze(0).eq_tensor(&(length_b1 - 1)),
            TextPool::Mean => padding_bt.logical_not() / length_b1,
        };
        let share_b1t = share_bt.to_kind(x_btd.kind()).unsqueeze(1);
        let feature_bd = share_b1t.bmm(&x_btd).squeeze_dim(1);
        Ok((feature_bd.linear(&self.head_vd, Some(&self.head_v)), traces))
    }

    /// The language model without its output layer.
    pub fn trunk(&self) -> &DecoderLm {
        &self.trunk
    }

    /// The same, to be changed.
    pub fn trunk_mut(&mut self) -> &mut DecoderLm {
        &mut self.trunk
    }
}
