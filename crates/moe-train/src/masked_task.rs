//! Masked language modelling.
//!
//! Axis letters: `b` batch, `t` tokens, `n` targets, `l` sparse layers.

use crate::evaluate::{EvalPlan, EvalReport, Scored, evaluate};
use crate::task::{Draw, Task};
use crate::trainer::TrainError;
use moe_data::{MaskedBatch, MaskedText, Masking};
use moe_models::encoder::Rows;
use moe_models::{LayerTrace, MaskedLm};
use moe_routers::{ParamStore, RouteCx};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Cross-entropy of hidden tokens, on rows of one language or of translations.
#[derive(Debug)]
pub struct MaskedTask {
    model: MaskedLm,
    data: Arc<MaskedText>,
    batch: usize,
    sequence: usize,
    masking: Masking,
    device: Device,
}

/// A batch on the device.
struct OnDevice {
    x_bt: Tensor,
    position_bt: Tensor,
    place_n: Tensor,
    y_n: Tensor,
}

impl OnDevice {
    fn rows(&self) -> Rows<'_> {
        Rows { x_bt: &self.x_bt, position_bt: &self.position_bt }
    }
}

impl MaskedTask {
    /// `model` on batches of `batch` rows of `sequence` tokens each, on the model's `device`.
    pub fn new(
        model: MaskedLm,
        data: Arc<MaskedText>,
        (batch, sequence, masking): (usize, usize, Masking),
        device: Device,
    ) -> Self {
        Self { model, data, batch, sequence, masking, device }
    }

    fn to_device(&self, batch: &MaskedBatch) -> OnDevice {
        let shape = [batch.x_bt.nrows() as i64, batch.x_bt.ncols() as i64];
        let vector = |ids: Vec<i64>| Tensor::from_slice(&ids).to_device(self.device);
        OnDevice {
            x_bt: vector(batch.x_bt.iter().copied().collect()).view(shape),
            position_bt: vector(batch.position_bt.iter().copied().collect()).view(shape),
            place_n: vector(batch.place_n.to_vec()),
            y_n: vector(batch.y_n.to_vec()),
        }
    }

    /// Loss, and share of targets whose id has the highest score.
    fn score(&self, batch: &OnDevice, cx: &RouteCx<'_>) -> Result<Scored, TrainError> {
        let (logits_nv, traces) = self.model.forward(batch.rows(), &batch.place_n, cx)?;
        let right_n = logits_nv.argmax(-1, false).eq_tensor(&batch.y_n);
        let loss = logits_nv.to_kind(Kind::Float).cross_entropy_for_logits(&batch.y_n);
        let measures = vec![("masked_accuracy", right_n.mean(Kind::Float))];
        Ok(Scored { loss, count: batch.y_n.numel(), traces, measures, logits_bv: None })
    }
}

impl Task for MaskedTask {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let (at, rows) = ((draw.seed, draw.step), draw.rows(self.batch));
        let batch = self.data.train_rows(at, rows, self.sequence, &self.masking)?;
        let batch = self.to_device(&batch);
        Ok(self.model.loss(batch.rows(), (&batch.place_n, &batch.y_n), cx)?)
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        let (batch, sequence) = (self.batch, self.sequence);
        let batches = self.data.eval_batches(plan.split, batch, sequence, &self.masking)?;
        let batches = batches.map(|batch| self.to_device(&batch));
        evaluate(plan, batches, |batch, cx| self.score(batch, cx))
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        self.model.after_step(load_le);
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.active_params(store)
    }
}
