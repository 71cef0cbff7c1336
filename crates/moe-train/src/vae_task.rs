//! Reconstruction of images by SMoE-VAE.
//!
//! Losses are means over images of what the paper sums over a batch; the reported reconstruction error is
//! the paper's: squared error over the 784 pixels, mean over images.
//!
//! Axis letters: `b` batch, `c` channels, `h` height, `w` width, `l` sparse layers (the gate alone).

use crate::evaluate::{EvalPlan, EvalReport, Scored, evaluate};
use crate::task::{Draw, Task};
use crate::trainer::TrainError;
use moe_core::metrics::Specialisation;
use moe_data::{Augment, ImageBatch, Images};
use moe_models::smoe_vae::squared_error;
use moe_models::{LayerTrace, SmoeVae};
use moe_routers::convert::to_host_i64;
use moe_routers::{ParamStore, RouteCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// An expert is active if it wins at least this many of the images evaluated (the release's threshold).
pub const ACTIVE: usize = 10;

/// How images are shown to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// As in QuickDraw's bitmaps: bright strokes, 0 elsewhere.
    Black,
    /// As the release draws strokes: dark on 1.
    White,
}

/// A model with images whose batches are on `[0, 1]`.
#[derive(Debug)]
pub struct VaeTask {
    model: SmoeVae,
    data: Arc<Images>,
    batch: usize,
    background: Background,
    device: Device,
}

/// A batch on the device.
#[derive(Debug)]
pub struct Drawings {
    /// Pixels, `[b, 1, h, w]`.
    pub x_bchw: Tensor,
    /// Classes, int64, `[b]`.
    pub label_b: Tensor,
}

impl Drawings {
    /// A host batch of values on `[0, 1]`, on `device`.
    pub fn new(batch: &ImageBatch, background: Background, device: Device) -> Self {
        let shape: Vec<i64> = batch.x_bchw.shape().iter().map(|&axis| axis as i64).collect();
        let values = batch.x_bchw.as_slice().expect("rows in order");
        let x_bchw = Tensor::from_slice(values).view(shape.as_slice());
        let x_bchw = match background {
            Background::Black => x_bchw,
            Background::White => 1.0 - x_bchw,
        };
        let label_b = Tensor::from_slice(&batch.label_b.to_vec());
        Self { x_bchw: x_bchw.to_device(device), label_b: label_b.to_device(device) }
    }

    /// The rows of a micro batch.
    fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        let part = |all: &Tensor| all.narrow(0, rows.start as i64, rows.len() as i64);
        Self { x_bchw: part(&self.x_bchw), label_b: part(&self.label_b) }
    }
}

impl VaeTask {
    /// `model` on batches of `batch` images, on the model's `device`. The images' batches must be on
    /// `[0, 1]` ([`Images::on_unit_interval`]).
    pub fn new(
        model: SmoeVae,
        data: Arc<Images>,
        (batch, background): (usize, Background),
        device: Device,
    ) -> Self {
        Self { model, data, batch, background, device }
    }

    /// The loss of an evaluation is the reconstruction error under hard routing.
    fn score(
        &self,
        batch: &Drawings,
        cx: &RouteCx<'_>,
        chosen: &mut Chosen,
    ) -> Result<Scored, TrainError> {
        let pass = self.model.forward(&batch.x_bchw, &batch.label_b, cx)?;
        let mean = |values_b: &Tensor| values_b.mean(None::<Kind>);
        let soft_b = squared_error(&self.model.soft(&pass), &batch.x_bchw);
        let loss = mean(&pass.error_b);
        let measures = vec![
            ("reconstruction", loss.shallow_clone()),
            ("reconstruction_soft", mean(&soft_b)),
            ("divergence", mean(&pass.kl_b)),
            ("objective", self.model.loss(&pass)),
        ];
        chosen.add(&pass.trace, &batch.label_b);
        let count = batch.label_b.numel();
        Ok(Scored { loss, count, traces: vec![pass.trace], measures, logits_bv: None })
    }
}

/// Class and winning expert of every image evaluated.
#[derive(Debug, Default)]
struct Chosen {
    label_n: Vec<usize>,
    expert_n: Vec<usize>,
}

impl Chosen {
    fn add(&mut self, trace: &LayerTrace, label_b: &Tensor) {
        let expert_b = winners(trace);
        let host = |values: &Tensor| to_host_i64(values).into_iter().map(|v| v as usize);
        self.label_n.extend(host(label_b));
        self.expert_n.extend(host(&expert_b));
    }

    /// Adds what only all images together say.
    fn report(&self, report: &mut EvalReport) {
        let Ok(found) = Specialisation::of(&self.label_n, &self.expert_n, None, None) else {
            return;
        };
        let load_e = found.count_le.sum_axis(ndarray::Axis(0));
        let active = load_e.iter().filter(|&&images| images >= ACTIVE).count();
        let measures = [
            ("active_experts", active as f64),
            ("mutual_information", found.mi),
            ("purity", found.purity),
        ];
        report.measures.extend(measures.map(|(name, value)| (name.to_owned(), value)));
    }
}

/// The winning expert of every image of a pass, int64, `[b]`.
pub fn winners(trace: &LayerTrace) -> Tensor {
    let chosen = trace.routing.chosen.as_ref().expect("a gate whose images choose");
    chosen.choices.expert_gtk.select(-1, 0).flatten(0, -1)
}

impl Task for VaeTask {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let batch =
            self.data.train_batch((draw.seed, draw.step), self.batch, &Augment::default())?;
        let batch = Drawings::new(&batch, self.background, self.device);
        let part = batch.rows(draw.rows(self.batch));
        let pass = self.model.forward(&part.x_bchw, &part.label_b, cx)?;
        Ok((self.model.loss(&pass), vec![pass.trace]))
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        let batches = self.data.eval_batches(plan.split, self.batch)?;
        let batches = batches.map(|batch| Drawings::new(&batch, self.background, self.device));
        let mut chosen = Chosen::default();
        let mut report = evaluate(plan, batches, |batch, cx| self.score(batch, cx, &mut chosen))?;
        chosen.report(&mut report);
        Ok(report)
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        load_le.iter().for_each(|load_e| self.model.after_step(load_e));
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.model.active_params(store)
    }
}
