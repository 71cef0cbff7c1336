//! Classification of texts: fine-tuning of a language model.
//!
//! Axis letters: `b` batch, `t` tokens, `v` classes, `l` sparse layers.

use crate::evaluate::{EvalPlan, EvalReport, Scored, evaluate};
use crate::task::{Draw, Task};
use crate::trainer::TrainError;
use moe_data::{TextBatch, TextClasses};
use moe_models::{LayerTrace, TextClassifier};
use moe_routers::{ParamStore, RouteCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// A part of a model that fine-tuning leaves as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Frozen {
    /// The routers, with the state that no gradient reaches.
    Router,
    /// The experts of sparse layers.
    Experts,
    /// Everything but the classifier's own linear map: a linear probe.
    Trunk,
}

impl Frozen {
    /// Whether a parameter is of this part.
    pub fn has(self, name: &str) -> bool {
        match self {
            Self::Router => name.contains(".router."),
            Self::Experts => name.contains(".experts."),
            Self::Trunk => !name.starts_with(moe_models::classifier::CLASSIFIER),
        }
    }
}

/// Cross-entropy on labelled texts.
#[derive(Debug)]
pub struct TextTask {
    model: TextClassifier,
    data: Arc<TextClasses>,
    batch: usize,
    device: Device,
    routers_learn: bool,
}

/// A batch on the device.
struct OnDevice {
    x_bt: Tensor,
    length_b: Tensor,
    label_b: Tensor,
}

impl TextTask {
    /// `model` on batches of `batch` texts, on the model's `device`; what is `frozen` of the parameters in
    /// `store` gets no gradient from here on.
    pub fn new(
        model: TextClassifier,
        data: Arc<TextClasses>,
        (batch, frozen): (usize, &[Frozen]),
        store: &ParamStore,
        device: Device,
    ) -> Self {
        store.freeze(|name| frozen.iter().any(|part| part.has(name)));
        let fixed = |part: &Frozen| matches!(part, Frozen::Router | Frozen::Trunk);
        Self { model, data, batch, device, routers_learn: !frozen.iter().any(fixed) }
    }

    fn to_device(&self, batch: &TextBatch) -> OnDevice {
        let shape = [batch.x_bt.nrows() as i64, batch.x_bt.ncols() as i64];
        let ids: Vec<i64> = batch.x_bt.iter().copied().collect();
        let whole = |values: &[i64]| Tensor::from_slice(values).to_device(self.device);
        OnDevice {
            x_bt: whole(&ids).view(shape),
            length_b: whole(&batch.length_b.to_vec()),
            label_b: whole(&batch.label_b.to_vec()),
        }
    }

    fn score(&self, batch: &OnDevice, cx: &RouteCx<'_>) -> Result<Scored, TrainError> {
        let (logits_bv, traces) = self.model.forward(&batch.x_bt, &batch.length_b, cx)?;
        let right_b = logits_bv.argmax(-1, false).eq_tensor(&batch.label_b);
        let measures = vec![("accuracy", right_b.mean(Kind::Float))];
        let loss = cross_entropy(&logits_bv, &batch.label_b);
        let count = batch.label_b.numel();
        Ok(Scored { loss, count, traces, measures, logits_bv: None })
    }
}

fn cross_entropy(logits_bv: &Tensor, label_b: &Tensor) -> Tensor {
    logits_bv.to_kind(Kind::Float).cross_entropy_for_logits(label_b)
}

impl Task for TextTask {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let batch = self.data.train_batch((draw.seed, draw.step), self.batch)?;
        let (batch, rows) = (self.to_device(&batch), draw.rows(self.batch));
        let part = |all: &Tensor| all.narrow(0, rows.start as i64, rows.len() as i64);
        let (x_bt, length_b) = (part(&batch.x_bt), part(&batch.length_b));
        let (logits_bv, traces) = self.model.forward(&x_bt, &length_b, cx)?;
        Ok((cross_entropy(&logits_bv, &part(&batch.label_b)), traces))
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        let batches = self.data.eval_batches(plan.split, self.batch)?;
        let batches = batches.map(|batch| self.to_device(&batch));
        evaluate(plan, batches, |batch, cx| self.score(batch, cx))
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        if self.routers_learn {
            self.model.trunk_mut().after_step(load_le);
        }
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.trunk().active_params(store)
    }
}
