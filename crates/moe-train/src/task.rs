//! What a trainer trains: a model together with its data.
//!
//! Axis letters: `b` batch, `t` tokens, `l` sparse layers, `e` experts.

use crate::evaluate::{EvalPlan, EvalReport, Scored, evaluate};
use crate::trainer::TrainError;
use moe_data::{TokenBatch, TokenStream};
use moe_models::{DecoderLm, LayerTrace};
use moe_routers::{ParamStore, RouteCx};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use tch::{Device, Tensor};

/// Which training batch: a function of these numbers, so that resuming is arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Seed of the run.
    pub seed: u64,
    /// Steps taken before this one.
    pub step: u64,
    /// Which of the step's micro batches, from 0.
    pub part: usize,
    /// Micro batches that the step's batch is cut into.
    pub parts: usize,
}

impl Draw {
    /// The micro batch's rows of a batch of `rows`, which [`crate::TrainConfig::check`] made a
    /// multiple of the number of parts.
    pub fn rows(&self, rows: usize) -> Range<usize> {
        rows * self.part / self.parts..rows * (self.part + 1) / self.parts
    }
}

/// A model with its data. What its parameters hold lies in the run's [`ParamStore`].
pub trait Task: Debug {
    /// The mean loss of a micro batch ([`Draw::rows`] of the step's batch) without what routers add to it,
    /// a scalar with its graph; and one trace per sparse layer.
    ///
    /// # Errors
    /// Data too short for a batch, or a router that refuses.
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError>;

    /// Measures the present weights and changes nothing: the same weights give the same report.
    ///
    /// # Errors
    /// A split too short for one batch, or a router that refuses.
    fn evaluate(&self, plan: &EvalPlan) -> Result<EvalReport, TrainError>;

    /// Lets every router update what no gradient reaches, with the loads of the step just taken, one `[e]`
    /// per sparse layer.
    fn after_step(&mut self, load_le: &[Tensor]);

    /// Parameters that one token uses: all but the experts it does not visit.
    fn active_params(&self, store: &ParamStore) -> usize;
}

/// Next-token prediction.
#[derive(Debug)]
pub struct LmTask {
    model: DecoderLm,
    data: Arc<TokenStream>,
    batch: usize,
    sequence: usize,
    device: Device,
}

impl LmTask {
    /// `model` on batches of `batch` sequences of `sequence` tokens each, on the model's `device`.
    pub fn new(
        model: DecoderLm,
        data: Arc<TokenStream>,
        (batch, sequence): (usize, usize),
        device: Device,
    ) -> Self {
        Self { model, data, batch, sequence, device }
    }

    /// A host batch of token ids and targets on the device, each `[b, t]`.
    fn to_device(&self, batch: &TokenBatch) -> [Tensor; 2] {
        [&batch.x_bt, &batch.y_bt].map(|ids| {
            let values: Vec<i64> = ids.iter().copied().collect();
            let shape = [ids.nrows() as i64, ids.ncols() as i64];
            Tensor::from_slice(&values).view(shape).to_device(self.device)
        })
    }
}

impl Task for LmTask {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let batch = self.data.train_batch(draw.seed, draw.step, self.batch, self.sequence)?;
        let rows = draw.rows(self.batch);
        let [x_bt, y_bt] =
            self.to_device(&batch).map(|t| t.narrow(0, rows.start as i64, rows.len() as i64));
        Ok(self.model.loss(&x_bt, &y_bt, cx)?)
    }

    fn evaluate(&self, plan: &EvalPlan) -> Result<EvalReport, TrainError> {
        let batches = self.data.eval_batches(plan.split, self.batch, self.sequence)?;
        evaluate(plan, batches.map(|batch| self.to_device(&batch)), |[x_bt, y_bt], cx| {
            let (loss, traces) = self.model.loss(x_bt, y_bt, cx)?;
            Ok(Scored { loss, count: y_bt.numel(), traces })
        })
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        self.model.after_step(load_le);
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.active_params(store)
    }
}
