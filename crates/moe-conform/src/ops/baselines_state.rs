//! Baselines that balance by assignment, by token id, over time or by a bias: BASE, Sinkhorn, Soft
//! MoE, hash, StableMoE, SMoE-Dropout's schedule, DeepSeek-V3.
//!
//! Logits are handed to a router as tokens with the identity as its gate, so that the router itself
//! runs, not a copy of its parts.

mod assigned;
mod deepseek;
mod serve;
mod soft;
mod tokens;

use crate::args::Args;
use crate::op::{Op, OpError, Outputs};
use moe_routers::smoe_dropout::{Range, Schedule};
use serde_json::Value;

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "baselines.base",
        config: &["mode"],
        tensors: &["scores"],
        reference: Some(assigned::base_reference),
        torch: Some(assigned::base_torch),
    },
    Op {
        name: "baselines.sinkhorn",
        config: &["top_k", "mode", "tol", "max_iters"],
        tensors: &["logits"],
        reference: Some(assigned::sinkhorn_reference),
        torch: Some(assigned::sinkhorn_torch),
    },
    Op {
        name: "baselines.soft_moe",
        config: &["normalize", "scale", "eps"],
        tensors: &["x", "phi", "W1", "b1", "W2", "b2", "expert_scale"],
        reference: Some(soft::reference),
        torch: Some(soft::torch),
    },
    Op {
        name: "baselines.hash",
        config: &["experts", "mode"],
        tensors: &["table", "frequencies", "tokens"],
        reference: Some(tokens::hash_reference),
        torch: Some(tokens::hash_torch),
    },
    Op {
        name: "baselines.stable_moe",
        config: &["stage", "capacity", "balance_weight", "distill_weight"],
        tensors: &["x", "centroids", "word_emb", "distilled"],
        reference: Some(tokens::stable_reference),
        torch: Some(tokens::stable_torch),
    },
    Op {
        name: "baselines.smoe_dropout_k",
        config: &["schedule", "k_min", "k_max", "steps_total", "step"],
        tensors: &[],
        reference: Some(smoe_dropout_k),
        torch: None,
    },
    Op {
        name: "baselines.deepseek_v3",
        config: deepseek::KEYS,
        tensors: &["logits", "bias"],
        reference: Some(deepseek::reference),
        torch: Some(deepseek::torch),
    },
];

const SCHEDULES: &[&str] =
    &["linear_increase", "linear_decrease", "cosine_increase", "cosine_decrease", "exp_increase"];

fn smoe_dropout_k(args: &Args<'_>) -> Result<Outputs, OpError> {
    let name = args.word("schedule", SCHEDULES[0], SCHEDULES)?;
    let schedule: Schedule = serde_json::from_value(Value::String(name.into()))
        .map_err(|e| OpError::new(format!("schedule: {e}")))?;
    let range = Range {
        k_min: args.usize("k_min", 2)?,
        k_max: args.usize("k_max", 16)?,
        steps_total: args.usize("steps_total", 100)? as u64,
    };
    schedule.check(range)?;
    let k = schedule.top_k(range, args.usize("step", 0)? as u64);
    Ok(vec![("top_k", (k as f64).into())])
}
