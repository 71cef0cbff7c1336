//! Training: the step, the optimiser, the schedule, checkpoints, evaluation.
//!
//! Between two steps a run is its weights, its optimiser's moments and a step number; data order,
//! noise and learning rate are functions of (seed, step). Resuming is arithmetic.
//!
//! Axis letters: `b` batch, `t` tokens, `e` experts, `l` sparse layers.

pub mod adamw;
pub mod checkpoint;
pub mod evaluate;
mod gradient;
pub mod image_task;
pub mod schedule;
pub mod task;
pub mod tensors;
pub mod trainer;

pub use adamw::{AdamW, AdamWConfig};
pub use checkpoint::{CheckpointError, State};
pub use evaluate::{EvalPlan, EvalReport, LayerReport};
pub use gradient::Phases;
pub use image_task::ImageTask;
pub use schedule::{Decay, Schedule};
pub use task::{Draw, LmTask, Task};
pub use trainer::{StepReport, TrainConfig, TrainError, Trainer};
