//! This program as a candidate: one model, one training step per round.

use super::model::{StepSize, StepTask};
use crate::environment::peak_memory_bytes;
use crate::error::Misuse;
use crate::speed::Dtype;
use crate::speed::child::{Answer, Hello, serve};
use anyhow::Result;
use moe_models::Recompute;
use moe_train::{Decay, StepReport, TrainConfig, Trainer};
use tch::Device;

/// Batches that a measurement cycles through.
const BATCHES: u64 = 8;

/// What this program can be as a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// Name on the command line and in tables.
    pub name: &'static str,
    /// Micro batches of a step.
    accumulate: usize,
    /// Whether the hidden layers of experts are computed again.
    recompute: Recompute,
    /// Whether the model has dense layers of a token's active width in the place of experts.
    dense: bool,
}

impl Variant {
    /// All of them; the first is the default path.
    pub const ALL: [Self; 4] = [
        Self::PLAIN,
        Self { name: "dense-model", dense: true, ..Self::PLAIN },
        Self { name: "accumulate", accumulate: 4, ..Self::PLAIN },
        Self { name: "recompute", recompute: Recompute::Experts, ..Self::PLAIN },
    ];

    const PLAIN: Self =
        Self { name: "moe", accumulate: 1, recompute: Recompute::None, dense: false };

    /// The variant of this name.
    ///
    /// # Errors
    /// A name that is none.
    pub fn named(name: &str) -> Result<Self, Misuse> {
        let names: Vec<_> = Self::ALL.iter().map(|variant| variant.name).collect();
        let found = Self::ALL.into_iter().find(|variant| variant.name == name);
        found.ok_or_else(|| {
            Misuse::new(format!("--variants {name}: choose of {}", names.join(", ")))
        })
    }

    /// A trainer of the model at its first step, learning at the rate `lr`.
    pub fn trainer(self, size: &StepSize, dtype: Dtype, lr: f64, device: Device) -> Trainer {
        let (store, model) = size.build(self.dense, dtype, device);
        let model = model.with_recompute(self.recompute);
        let config = TrainConfig {
            steps: BATCHES,
            batch: size.batch as usize,
            accumulate: self.accumulate.min(size.batch as usize),
            sequence: size.sequence as usize,
            lr,
            warmup: 0,
            decay: Decay::Constant,
            ..TrainConfig::default()
        };
        let task = StepTask::new(size, model, BATCHES.max(12), device);
        Trainer::new(Box::new(task), store, config, 0)
    }
}

/// Serves rounds of `variant` until standard input ends. The learning rate is 0, so that routing and
/// with it the work stay what they were at the first step; the update is carried out all the same.
///
/// # Errors
/// A step that cannot be taken.
pub fn run(variant: Variant, size: &StepSize, dtype: Dtype, device: Device) -> Result<()> {
    let mut trainer = variant.trainer(size, dtype, 0.0, device);
    let about = format!("moe {}", env!("CARGO_PKG_VERSION"));
    serve(&Hello::Ready(about), || {
        let StepReport { seconds, phases, loss, .. } = trainer.train_step()?;
        Ok(Answer {
            seconds,
            phases: Some([phases.forward, phases.backward, phases.update]),
            loss: Some(loss),
            peak_bytes: Some(peak_memory_bytes()),
        })
    })
}
