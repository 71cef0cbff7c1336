//! A pass over a split: latents, decisions, errors, and examples to look at.
//!
//! Axis letters: `n` images, `b` batch, `z` latent width, `p` pixels.

use crate::error::{Misuse, Stopped};
use crate::run::Prepared;
use crate::subject::Subject;
use anyhow::Result;
use indicatif::ProgressBar;
use moe_data::Split;
use moe_models::smoe_vae::{Pass, squared_error};
use moe_models::{SmoeVae, VaeConfig};
use moe_routers::convert::{to_host, to_host_i64, to_host1};
use moe_routers::{ParamStore, Phase, RouteCx, SeededNoise};
use moe_train::trainer::named;
use moe_train::vae_task::{Drawings, winners};
use ndarray::{Array2, Axis, concatenate};
use std::sync::atomic::{AtomicBool, Ordering};
use tch::{Device, Kind, Tensor};

/// Examples of every class.
const EXAMPLES: usize = 10;

/// Images of one class with what the model makes of them; pixels on `[0, 1]`.
#[derive(Debug, Default, Clone)]
pub(super) struct Examples {
    /// The images.
    pub(super) given: Vec<Vec<f64>>,
    /// By the winning decoder.
    pub(super) hard: Vec<Vec<f64>>,
    /// By the mix of all decoders.
    pub(super) soft: Vec<Vec<f64>>,
}

/// What the model made of a split.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) classes: usize,
    pub(super) experts: usize,
    /// Sampled latents, `[n, z]`.
    pub(super) z_nz: Array2<f64>,
    pub(super) label_n: Vec<usize>,
    /// Winning expert of every image.
    pub(super) expert_n: Vec<usize>,
    pub(super) hard: f64,
    pub(super) soft: f64,
    pub(super) gate_entropy: f64,
    /// By class.
    pub(super) examples: Vec<Examples>,
}

/// Runs the model of `prepared` over `split`.
///
/// # Errors
/// A recipe without `[vae]`, a gate that refuses, or a stop.
pub(super) fn collect(
    prepared: &mut Prepared,
    split: Split,
    device: Device,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<Drawn> {
    let recipe = prepared.recipe().clone();
    let Subject::Drawings(images, vae) = prepared.subject().clone() else {
        return Err(Misuse::new("no recipe with [vae]").into());
    };
    let config = vae.config(&recipe);
    let store = ParamStore::new(recipe.seed, device, Kind::Float)
        .with_given(named(prepared.trainer_mut().store()));
    let model = SmoeVae::new(&store, config, recipe.router.router()?.as_ref())?;
    let batches = images.eval_batches(split, recipe.train.batch)?;
    bar.set_length(batches.len() as u64);
    bar.set_message("batches");
    let mut drawn = Drawn::new(config, images.classes().len());
    let _guard = tch::no_grad_guard();
    for (index, batch) in batches.enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Err(Stopped("analysing").into());
        }
        let batch = Drawings::new(&batch, vae.background, device);
        // As evaluations draw: the same latents.
        let noise = SeededNoise::eval(recipe.seed, index as u64);
        let cx = RouteCx::new(Phase::Eval, &noise);
        let pass = model.forward(&batch.x_bchw, &batch.label_b, &cx)?;
        drawn.add(&batch, &pass, &model.soft(&pass))?;
        bar.inc(1);
    }
    Ok(drawn.over())
}

impl Drawn {
    fn new(config: VaeConfig, classes: usize) -> Self {
        Self {
            classes,
            experts: config.experts as usize,
            z_nz: Array2::zeros((0, config.latent as usize)),
            label_n: Vec::new(),
            expert_n: Vec::new(),
            hard: 0.0,
            soft: 0.0,
            gate_entropy: 0.0,
            examples: vec![Examples::default(); classes],
        }
    }

    /// Adds a batch; errors and entropies as sums.
    fn add(&mut self, batch: &Drawings, pass: &Pass, soft_bp: &Tensor) -> Result<()> {
        let host = |ids: &Tensor| to_host_i64(ids).into_iter().map(|id| id as usize);
        let labels: Vec<usize> = host(&batch.label_b).collect();
        self.expert_n.extend(host(&winners(&pass.trace)));
        self.z_nz = concatenate![Axis(0), self.z_nz, to_host(&pass.z_bz)];
        self.hard += to_host1(&pass.error_b).sum();
        self.soft += to_host1(&squared_error(soft_bp, &batch.x_bchw)).sum();
        self.gate_entropy += pass.trace.gate_entropy.double_value(&[]) * labels.len() as f64;
        let given_bp = to_host(&batch.x_bchw.flatten(1, -1));
        let (hard_bp, soft_bp) = (to_host(&pass.xhat_bp), to_host(soft_bp));
        for (b, &label) in labels.iter().enumerate() {
            let examples = &mut self.examples[label];
            if examples.given.len() < EXAMPLES {
                examples.given.push(given_bp.row(b).to_vec());
                examples.hard.push(hard_bp.row(b).to_vec());
                examples.soft.push(soft_bp.row(b).to_vec());
            }
        }
        self.label_n.extend(labels);
        Ok(())
    }

    /// With means in the place of sums.
    fn over(mut self) -> Self {
        let images = self.label_n.len() as f64;
        for sum in [&mut self.hard, &mut self.soft, &mut self.gate_entropy] {
            *sum /= images;
        }
        self
    }
}
