//! The model of the step measurement: a small language model in GLaM's layout whose weights and tokens
//! any program can make again.
//!
//! ```text
//! x = embedding[token] + position;  blocks;  LayerNorm;  logits = x embedding^T
//! block: x += attention(LN x);  x += feed_forward(LN x)
//! blocks 0, 2, 4..: experts (silu(x G) * (x U)) D, the k best of softmax(x R), weights over their sum
//! blocks 1, 3, 5..: gelu(x U) D
//! loss: mean cross-entropy + 0.01 sum over sparse layers of E sum_e f_e P_e, sum_e f_e = 1
//! ```
//!
//! Parameters are counted in the order embedding, position, then per block (norm weight, norm bias, qkv,
//! out, norm weight, norm bias, and router, gate | up, down or up, down), final norm. Number `i` has the
//! values `(2 u - 1) sqrt(3) s` with `u` from `stream(1000 seed + i)` and `s = 0.02`, or `0.02 / sqrt(2
//! blocks)` for what writes to the stream; norms have ones and zeros.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `h` hidden width, `f` gate and up side by side, `e`
//! experts, `v` vocabulary.

use super::stream::stream;
use crate::error::Misuse;
use crate::speed::Dtype;
use moe_models::{Activation, DecoderLm, LayerTrace, LmConfig, Rules};
use moe_routers::config::ConfigError;
use moe_routers::{ParamStore, RouteCx, RouterConfig, Settings, router_config};
use moe_train::evaluate::{Scored, evaluate};
use moe_train::{Draw, EvalPlan, EvalReport, Task, TrainError};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Seed of weights and tokens.
const SEED: u64 = 0;
/// Standard deviation of initial weights.
const SCALE: f64 = 0.02;

/// A size of the model and its batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSize {
    /// Name in tables.
    pub name: &'static str,
    /// Vocabulary.
    pub vocab: i64,
    /// Model width.
    pub width: i64,
    /// Attention heads.
    pub heads: i64,
    /// Blocks.
    pub blocks: i64,
    /// Hidden width of dense layers.
    pub dense_hidden: i64,
    /// Experts of a sparse layer.
    pub experts: i64,
    /// Experts of a token.
    pub top_k: i64,
    /// Hidden width of an expert.
    pub expert_hidden: i64,
    /// Tokens of a sequence.
    pub sequence: i64,
    /// Sequences of a batch.
    pub batch: i64,
}

/// Sizes by name.
pub const SIZES: [StepSize; 3] = [
    StepSize {
        name: "s",
        vocab: 8192,
        width: 256,
        heads: 8,
        blocks: 6,
        dense_hidden: 1024,
        experts: 16,
        top_k: 2,
        expert_hidden: 512,
        sequence: 256,
        batch: 16,
    },
    StepSize {
        name: "m",
        vocab: 8192,
        width: 512,
        heads: 8,
        blocks: 8,
        dense_hidden: 2048,
        experts: 32,
        top_k: 2,
        expert_hidden: 1024,
        sequence: 512,
        batch: 8,
    },
    StepSize {
        name: "tiny",
        vocab: 64,
        width: 16,
        heads: 2,
        blocks: 2,
        dense_hidden: 32,
        experts: 4,
        top_k: 2,
        expert_hidden: 24,
        sequence: 8,
        batch: 3,
    },
];

impl StepSize {
    /// The size of this name.
    ///
    /// # Errors
    /// A name that is none.
    pub fn named(name: &str) -> Result<Self, Misuse> {
        let names: Vec<_> = SIZES.iter().map(|size| size.name).collect();
        SIZES.into_iter().find(|size| size.name == name).ok_or_else(|| {
            let names = names.join(", ");
            Misuse::new(format!("--sizes {name}: sizes of a training step are {names}"))
        })
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> i64 {
        self.batch * self.sequence
    }

    /// Operations of a step's products, three times those of the forward pass; attention counts for the
    /// half that is not masked.
    pub fn flops(&self) -> f64 {
        let (d, sparse) = (self.width, (self.blocks + 1) / 2);
        let attention = self.blocks * (4 * d * d + self.sequence * d);
        let experts = sparse * d * (self.top_k * 3 * self.expert_hidden + self.experts);
        let dense = (self.blocks - sparse) * 2 * d * self.dense_hidden;
        let per_token = attention + experts + dense + d * self.vocab;
        3.0 * 2.0 * (self.tokens() * per_token) as f64
    }

    fn config(&self) -> LmConfig {
        LmConfig {
            width: self.width,
            layers: self.blocks,
            heads: self.heads,
            context: self.sequence,
            moe_every: 2,
            moe_first: Some(0),
            experts: self.experts,
            active_hidden: self.dense_hidden,
            expert_hidden: Some(self.expert_hidden),
            activation: Activation::Swiglu,
            dense_activation: Some(Activation::Gelu),
            bias: false,
            ..LmConfig::default()
        }
    }

    /// The router: softmax, the k best over their sum, balance loss with `sum f = 1`.
    fn router(&self) -> Result<Box<dyn RouterConfig>, ConfigError> {
        let settings = json!({ "preset": "mixtral", "top_k": self.top_k, "balance": "div-k" });
        let settings = settings.as_object().expect("made above").clone();
        router_config("smoe", &Settings::from_iter(settings))
    }

    /// Inputs and targets of step `step`, each `[b, t]`.
    pub fn tokens_of(&self, step: u64, device: Device) -> [Tensor; 2] {
        let count = self.batch * (self.sequence + 1);
        let key = (1 << 40) + (SEED << 20) + step;
        let ids = stream(key).take(count as usize).map(|u| (u * self.vocab as f64) as i64);
        let ids_bt = Tensor::from_slice(&ids.collect::<Vec<_>>()).view([self.batch, -1]);
        [0, 1].map(|first| ids_bt.narrow(1, first, self.sequence).contiguous().to_device(device))
    }

    /// Initial values by the names of [`DecoderLm`]'s parameters.
    pub fn weights(&self, device: Device) -> Vec<(String, Tensor)> {
        let mut made = Made { size: self, device, next: 0, weights: Vec::new() };
        made.all();
        made.weights
    }

    /// The model with its initial weights; or one with `dense` layers of the width that a token uses in
    /// the place of experts.
    ///
    /// # Panics
    /// If the model takes none of this size.
    pub fn build(&self, dense: bool, dtype: Dtype, device: Device) -> (ParamStore, DecoderLm) {
        let weights = self.weights(device).into_iter();
        let given = weights.filter(|(name, _)| !(dense && name.contains(".experts.")));
        let store = ParamStore::new(SEED, device, Kind::Float).with_given(given);
        let router = if dense { router_config("dense", &Settings::new()) } else { self.router() };
        let router = router.expect("settings of this router");
        let expert_hidden = self.expert_hidden * if dense { self.top_k } else { 1 };
        let config = LmConfig { expert_hidden: Some(expert_hidden), ..self.config() };
        let model = DecoderLm::new(&store, &config, &Rules::new(&*router), self.vocab);
        let model = model.expect("a size of this file").with_precision(dtype.precision());
        (store, model)
    }
}

/// Initial weights as they are made, one parameter after another.
struct Made<'a> {
    size: &'a StepSize,
    device: Device,
    /// Number of the next parameter.
    next: u64,
    weights: Vec<(String, Tensor)>,
}

impl Made<'_> {
    fn all(&mut self) {
        let StepSize { vocab, width: d, sequence, blocks, .. } = *self.size;
        self.matrix("embedding", &[vocab, d], SCALE);
        self.matrix("position", &[sequence, d], SCALE);
        for block in 0..blocks {
            self.block(block);
        }
    }

    fn block(&mut self, block: i64) {
        let size = *self.size;
        let (d, out) = (size.width, SCALE / (2.0 * size.blocks as f64).sqrt());
        let name = |part: &str| format!("layers.{block}.{part}");
        self.skip_norm();
        self.matrix(&name("attention.qkv"), &[3 * d, d], SCALE);
        self.matrix(&name("attention.out"), &[d, d], out);
        self.skip_norm();
        if block % 2 == 1 {
            self.matrix(&name("dense.w1"), &[1, size.dense_hidden, d], SCALE);
            self.matrix(&name("dense.w2"), &[1, d, size.dense_hidden], out);
            return;
        }
        let (e, h) = (size.experts, size.expert_hidden);
        self.matrix(&name("router.gate"), &[e, d], SCALE);
        let both_edf = self.values(&[e, d, 2 * h], SCALE);
        for (part, first) in [("experts.gate", 0), ("experts.w1", h)] {
            self.keep(&name(part), &both_edf.narrow(2, first, h).transpose(1, 2));
        }
        let down_ehd = self.values(&[e, h, d], out);
        self.keep(&name("experts.w2"), &down_ehd.transpose(1, 2));
    }

    /// Weight and bias of a norm, which keep their ones and zeros.
    fn skip_norm(&mut self) {
        self.next += 2;
    }

    fn matrix(&mut self, name: &str, shape: &[i64], scale: f64) {
        let values = self.values(shape, scale);
        self.keep(name, &values);
    }

    fn values(&mut self, shape: &[i64], scale: f64) -> Tensor {
        let key = 1000 * SEED + self.next;
        self.next += 1;
        let count = shape.iter().product::<i64>() as usize;
        let factor = 3f64.sqrt() * scale;
        let values = stream(key).take(count).map(|u| ((2.0 * u - 1.0) * factor) as f32);
        Tensor::from_slice(&values.collect::<Vec<_>>()).view(shape)
    }

    fn keep(&mut self, name: &str, values: &Tensor) {
        let leaf = values.contiguous().to_device(self.device).set_requires_grad(true);
        self.weights.push((name.to_owned(), leaf));
    }
}

/// The model on the batches of its first steps.
#[derive(Debug)]
pub struct StepTask {
    model: DecoderLm,
    batches: Vec<[Tensor; 2]>,
}

impl StepTask {
    /// `model` with so many `batches`, after which the first comes again.
    pub fn new(size: &StepSize, model: DecoderLm, batches: u64, device: Device) -> Self {
        let batches = (0..batches).map(|step| size.tokens_of(step, device)).collect();
        Self { model, batches }
    }
}

impl Task for StepTask {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let [x_bt, y_bt] = &self.batches[draw.step as usize % self.batches.len()];
        let rows = draw.rows(x_bt.size()[0] as usize);
        let of = |ids_bt: &Tensor| ids_bt.narrow(0, rows.start as i64, rows.len() as i64);
        Ok(self.model.loss(&of(x_bt), &of(y_bt), cx)?)
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        evaluate(plan, self.batches.iter(), |[x_bt, y_bt], cx| {
            let (loss, traces) = self.model.loss(x_bt, y_bt, cx)?;
            let (count, measures) = (y_bt.numel(), Vec::new());
            Ok(Scored { loss, count, traces, measures, logits_bv: None })
        })
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        self.model.after_step(load_le);
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.active_params(store)
    }
}
