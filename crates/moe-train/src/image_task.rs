//! Classification of images.
//!
//! Axis letters: `b` batch, `c` channels, `h` height, `w` width, `v` classes, `l` sparse layers.

mod adversary;

pub use adversary::{Attacked, AttackedBatch, ImageAttack};

use crate::evaluate::{EvalPlan, EvalReport, Scored, evaluate};
use crate::task::{Draw, Task};
use crate::trainer::TrainError;
use moe_data::{Augment, ImageBatch, Images, Split};
use moe_models::{ImageClassifier, LayerTrace, MoeLayer};
use moe_routers::convert::to_host;
use moe_routers::{ParamStore, Phase, RouteCx, SeededNoise};
use ndarray::{Array2, Axis, concatenate};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Cross-entropy on labelled images, whose targets may be smoothed or mixed in training.
#[derive(Debug)]
pub struct ImageTask {
    model: Box<dyn ImageClassifier>,
    data: Arc<Images>,
    batch: usize,
    augment: Augment,
    device: Device,
}

/// A batch on the device.
struct OnDevice {
    x_bchw: Tensor,
    target_bv: Tensor,
    label_b: Tensor,
}

impl ImageTask {
    /// `model` on batches of `batch` images, on the model's `device`.
    pub fn new(
        model: Box<dyn ImageClassifier>,
        data: Arc<Images>,
        (batch, augment): (usize, Augment),
        device: Device,
    ) -> Self {
        Self { model, data, batch, augment, device }
    }

    fn to_device(&self, batch: &ImageBatch) -> OnDevice {
        let shape = |axes: &[usize]| axes.iter().map(|&axis| axis as i64).collect::<Vec<_>>();
        let values = |values: Option<&[f32]>, axes: &[usize]| {
            let values = Tensor::from_slice(values.expect("rows in order"));
            values.view(shape(axes).as_slice()).to_device(self.device)
        };
        OnDevice {
            x_bchw: values(batch.x_bchw.as_slice(), batch.x_bchw.shape()),
            target_bv: values(batch.target_bv.as_slice(), batch.target_bv.shape()),
            label_b: Tensor::from_slice(&batch.label_b.to_vec()).to_device(self.device),
        }
    }

    fn score(&self, batch: &OnDevice, cx: &RouteCx<'_>) -> Result<Scored, TrainError> {
        let (logits_bv, traces) = self.model.forward(&batch.x_bchw, cx)?;
        let right_b = logits_bv.argmax(-1, false).eq_tensor(&batch.label_b);
        let mut measures = vec![("accuracy", right_b.mean(Kind::Float))];
        measures.extend(success_rate(&traces).map(|rate| ("success_rate", rate)));
        let loss = cross_entropy(&logits_bv, &batch.target_bv);
        let count = batch.label_b.numel();
        Ok(Scored { loss, count, traces, measures, logits_bv: Some(logits_bv) })
    }
}

/// Mean over the batch of `-sum_v target_v log softmax(logits)_v`, a scalar with its graph.
fn cross_entropy(logits_bv: &Tensor, target_bv: &Tensor) -> Tensor {
    let log_bv = logits_bv.to_kind(Kind::Float).log_softmax(-1, Kind::Float);
    -(log_bv * target_bv).sum_dim_intlist(-1, false, Kind::Float).mean(Kind::Float)
}

/// Share of (token, choice) pairs that found room, over all sparse layers; `None` where tokens do not
/// choose.
fn success_rate(traces: &[LayerTrace]) -> Option<Tensor> {
    let of = |trace: &LayerTrace| {
        let asked = trace.routing.chosen.as_ref()?.choices.expert_gtk.numel() as f64;
        Some(trace.routing.plan.load_e().sum(Kind::Double) / asked)
    };
    let rates: Option<Vec<Tensor>> = traces.iter().map(of).collect();
    rates.filter(|rates| !rates.is_empty()).map(|rates| Tensor::stack(&rates, 0).mean(Kind::Double))
}

impl Task for ImageTask {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let batch = self.data.train_batch((draw.seed, draw.step), self.batch, &self.augment)?;
        let (batch, rows) = (self.to_device(&batch), draw.rows(self.batch));
        let part = |all: &Tensor| all.narrow(0, rows.start as i64, rows.len() as i64);
        let (logits_bv, traces) = self.model.forward(&part(&batch.x_bchw), cx)?;
        Ok((cross_entropy(&logits_bv, &part(&batch.target_bv)), traces))
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        let batches = self.data.eval_batches(plan.split, self.batch)?;
        let batches = batches.map(|batch| self.to_device(&batch));
        let mut report = evaluate(plan, batches, |batch, cx| self.score(batch, cx))?;
        // By the rows that experts really processed.
        let flops = self.model.flops(&report.rows_per_target());
        report.measures.insert("flops_per_image".into(), flops);
        Ok(report)
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        self.model.after_step(load_le);
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.active_params(store)
    }

    fn as_images(&self) -> Option<&ImageTask> {
        Some(self)
    }

    fn sparse_layers(&self) -> Vec<&MoeLayer> {
        self.model.sparse_layers()
    }

    fn features(&self, split: Split, places: &[usize]) -> Result<Option<Array2<f64>>, TrainError> {
        let _guard = tch::no_grad_guard();
        let noise = SeededNoise::eval(0, 0);
        let cx = RouteCx::new(Phase::Eval, &noise);
        let mut rows = Vec::new();
        for places in places.chunks(self.batch) {
            let batch = self.to_device(&self.data.images(split, places)?);
            let (feature_bd, _) = self.model.features(&batch.x_bchw, &cx)?;
            rows.push(to_host(&feature_bd));
        }
        let views: Vec<_> = rows.iter().map(|rows_nd| rows_nd.view()).collect();
        Ok(Some(concatenate(Axis(0), &views).expect("rows of one width")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::tolerance::tolerance;

    /// Scores (0, ln 3) are probabilities (1/4, 3/4). The hard target costs ln(4/3), the even one
    /// (ln 4 + ln(4/3)) / 2.
    #[test]
    fn cross_entropy_by_hand() {
        let logits_bv = Tensor::from_slice(&[0.0, 3f64.ln(), 0.0, 3f64.ln()]).view([2, 2]);
        let target_bv = Tensor::from_slice(&[0.0f32, 1.0, 0.5, 0.5]).view([2, 2]);
        let (hard, far) = ((4.0f64 / 3.0).ln(), 4f64.ln());
        let want = (hard + (far + hard) / 2.0) / 2.0;
        let off = cross_entropy(&logits_bv, &target_bv).double_value(&[]) - want;
        assert!(off.abs() < tolerance(Kind::Float).value, "{off}");
    }
}
