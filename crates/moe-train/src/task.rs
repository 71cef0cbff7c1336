//! What a trainer trains: a model together with its data.
//!
//! Axis letters: `b` batch, `t` tokens, `l` sparse layers, `e` experts.

use crate::evaluate::{EvalPlan, EvalReport, Scored, evaluate};
use crate::image_task::ImageTask;
use crate::trainer::TrainError;
use moe_data::{Split, TokenBatch, TokenStream};
use moe_models::{DecoderLm, LayerTrace, Memory, MoeLayer};
use moe_routers::{ParamStore, RouteCx};
use ndarray::Array2;
use std::cell::RefCell;
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

/// Measure of a batch that is part of the FLOPs of a token.
const OUTPUT: &str = "output_products";

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
    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError>;

    /// Lets every router update what no gradient reaches, with the loads of the step just taken, one `[e]`
    /// per sparse layer.
    fn after_step(&mut self, load_le: &[Tensor]);

    /// Parameters that one token uses: all but the experts it does not visit.
    fn active_params(&self, store: &ParamStore) -> usize;

    /// The task as one of images, whose inputs have gradients; `None` for any other.
    fn as_images(&self) -> Option<&ImageTask> {
        None
    }

    /// The sparse layers, in order, for measures of what they learned; none where there are none to show.
    fn sparse_layers(&self) -> Vec<&MoeLayer> {
        Vec::new()
    }

    /// What the last linear map reads of these items of a split, `[n, d]`; `None` where it reads no item
    /// whole.
    ///
    /// # Errors
    /// Data that make no batch, or a router that refuses.
    fn features(
        &self,
        _split: Split,
        _places: &[usize],
    ) -> Result<Option<Array2<f64>>, TrainError> {
        Ok(None)
    }

    /// Tensors beside the weights that the next step depends on, by name; resuming writes into them.
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }
}

/// Next-token prediction: on windows drawn at random, or, for a model with a memory, on texts side by
/// side, which begin again without memory after their last stretch.
#[derive(Debug)]
pub struct LmTask {
    model: DecoderLm,
    data: Arc<TokenStream>,
    batch: usize,
    sequence: usize,
    device: Device,
    /// The memory after the last step taken.
    memory: Memory,
    /// The memory after the loss computed last, until its step is taken.
    ahead: RefCell<Option<Memory>>,
}

impl LmTask {
    /// `model` on batches of `batch` sequences of `sequence` tokens each, on the model's `device`. A model
    /// with a memory takes its batches whole: [`Task::loss`] panics on a micro batch.
    pub fn new(
        model: DecoderLm,
        data: Arc<TokenStream>,
        (batch, sequence): (usize, usize),
        device: Device,
    ) -> Self {
        let memory = model.no_memory(batch as i64);
        Self { model, data, batch, sequence, device, memory, ahead: RefCell::default() }
    }

    /// The training batch, and the memory of the text before it.
    fn draw(&self, draw: Draw) -> Result<(TokenBatch, Memory), TrainError> {
        let (batch, sequence) = (self.batch, self.sequence);
        if !self.model.remembers() {
            let batch = self.data.train_batch(draw.seed, draw.step, batch, sequence)?;
            return Ok((batch, Memory::default()));
        }
        let texts = self.data.side_by_side(Split::Train, batch, sequence)?;
        let index = (draw.step % texts.stretches() as u64) as usize;
        let memory = match index {
            0 => self.model.no_memory(batch as i64),
            _ => self.memory.shallow_clone(),
        };
        Ok((texts.stretch(index), memory))
    }

    /// Scores the batches of an evaluation, each after what `memory` says was before it.
    fn score(
        &self,
        plan: &EvalPlan<'_>,
        batches: impl Iterator<Item = TokenBatch>,
        mut memory: Memory,
    ) -> Result<EvalReport, TrainError> {
        let batches = batches.map(|batch| self.to_device(&batch));
        let mut report = evaluate(plan, batches, |[x_bt, y_bt], cx| {
            let (loss, traces) = self.model.loss_after(&mut memory, x_bt, y_bt, cx)?;
            let measures = vec![(OUTPUT, self.model.output_products(y_bt))];
            Ok(Scored { loss, count: y_bt.numel(), traces, measures, logits_bv: None })
        })?;
        let output = report.measures.remove(OUTPUT).unwrap_or_default();
        let flops = self.model.flops(&report.rows_per_target(), self.sequence, output);
        report.measures.insert("flops_per_token".into(), flops);
        Ok(report)
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
        let (batch, mut memory) = self.draw(draw)?;
        assert!(draw.parts == 1 || !self.model.remembers(), "a memory is of the whole batch");
        let rows = draw.rows(self.batch);
        let part = |ids_bt: Tensor| ids_bt.narrow(0, rows.start as i64, rows.len() as i64);
        let [x_bt, y_bt] = self.to_device(&batch).map(part);
        let loss = self.model.loss_after(&mut memory, &x_bt, &y_bt, cx)?;
        self.ahead.replace(Some(memory));
        Ok(loss)
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        let (batch, sequence) = (self.batch, self.sequence);
        if !self.model.remembers() {
            let batches = self.data.eval_batches(plan.split, batch, sequence)?;
            return self.score(plan, batches, Memory::default());
        }
        let texts = self.data.side_by_side(plan.split, batch, sequence)?;
        let stretches = (0..texts.stretches()).map(|index| texts.stretch(index));
        self.score(plan, stretches, self.model.no_memory(batch as i64))
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        if let Some(memory) = self.ahead.take() {
            self.memory.copy_from(&memory);
        }
        self.model.after_step(load_le);
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.active_params(store)
    }

    fn sparse_layers(&self) -> Vec<&MoeLayer> {
        self.model.sparse_layers().collect()
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let blocks = self.memory.blocks().iter().enumerate();
        blocks.map(|(index, block)| (format!("memory.{index}"), block.shallow_clone())).collect()
    }
}
