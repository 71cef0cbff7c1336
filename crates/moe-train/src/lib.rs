//! Training: the step, the optimiser, the schedule, checkpoints, evaluation.
//!
//! Between two steps a run is its weights, its optimiser's moments and a step number; data order,
//! noise and learning rate are functions of (seed, step). Resuming is arithmetic.
//!
//! Axis letters: `b` batch, `t` tokens, `e` experts, `l` sparse layers.

pub mod adamw;
pub mod checkpoint;
pub mod disk;
pub mod evaluate;
mod gradient;
pub mod guard;
pub mod image_task;
mod manifest;
pub mod masked_task;
mod names;
pub mod schedule;
mod shelf;
pub mod task;
pub mod tensors;
pub mod text_task;
pub mod trainer;
pub mod vae_task;

pub use adamw::{AdamW, AdamWConfig};
pub use checkpoint::{CheckpointError, State};
pub use disk::Disk;
pub use evaluate::{EvalPlan, EvalReport, LayerReport, Scored};
pub use gradient::Phases;
pub use guard::NonFinite;
pub use image_task::{Attacked, AttackedBatch, ImageAttack, ImageTask};
pub use masked_task::MaskedTask;
pub use schedule::{Decay, Schedule};
pub use task::{Draw, LmTask, Task};
pub use text_task::{Frozen, TextTask};
pub use trainer::{Advance, StepReport, TrainConfig, TrainError, Trainer};
pub use vae_task::{Background, VaeTask};
