//! Baseline routers and losses: capacity rules, softmax top-k, Switch, GShard, noisy top-k, expert choice,
//! balance loss, z-loss, GEGLU.
//!
//! Logits are handed to a router as tokens with the identity as its gate, so that the router itself
//! runs, not a copy of its parts.
//!
//! Axis letters: `g` groups (always one), `t` tokens, `d` width, `h` hidden width, `e` experts,
//! `k` choices.

mod choice;
mod losses;
mod routers;

use crate::args::Args;
use crate::op::{Op, OpError, Outputs};
use moe_core::{CapacityInput, CapacityRule};
use tch::{Device, Tensor};

/// The operations.
pub const OPS: &[Op] = &[
    CAPACITY,
    losses::AUX_LOSS,
    losses::Z_LOSS,
    losses::GEGLU,
    routers::SOFTMAX_TOPK,
    routers::SWITCH,
    routers::GSHARD,
    choice::NOISY_TOPK,
    choice::EXPERT_CHOICE,
];

const CAPACITY: Op = Op {
    name: "baselines.capacity",
    config: &["rule", "tokens", "experts", "top_k", "capacity_factor", "min_capacity"],
    tensors: &[],
    reference: Some(capacity),
    torch: None,
};

/// The capacity rules of the code bases, by the names of the cases.
const RULES: &[(&str, CapacityRule)] = &[
    ("switch_mesh", CapacityRule::SwitchMesh),
    ("flaxformer", CapacityRule::Flaxformer),
    ("lingvo", CapacityRule::Lingvo),
    ("megatron", CapacityRule::Megatron),
    ("gshard_paper", CapacityRule::GshardPaper),
    ("expert_choice", CapacityRule::ExpertChoice),
    ("floor", CapacityRule::Floor),
];

/// The rule under `key`, `switch_mesh` if it is absent.
fn rule(args: &Args<'_>, key: &str) -> Result<(&'static str, CapacityRule), OpError> {
    let names: Vec<&'static str> = RULES.iter().map(|(name, _)| *name).collect();
    let name = args.word(key, "switch_mesh", &names)?;
    Ok(*RULES.iter().find(|(known, _)| *known == name).expect("a listed name"))
}

fn capacity(args: &Args<'_>) -> Result<Outputs, OpError> {
    let count = |key: &str| match args.usize_or_null(key, None)? {
        None => Err(OpError::new(format!("{key} is missing"))),
        Some(0) => Err(OpError::new(format!("{key}: 0 is below 1"))),
        Some(n) => Ok(n),
    };
    let (tokens, experts) = (count("tokens")?, count("experts")?);
    let factor = args.f64("capacity_factor", 1.25)?;
    if factor < 0.0 {
        return Err(OpError::new(format!("capacity_factor: {factor} is negative")));
    }
    let (_, rule) = rule(args, "rule")?;
    let top_k = args.top_k(1, experts)?;
    let min_capacity = args.usize_or_null("min_capacity", None)?;
    let rows = rule.capacity(&CapacityInput { tokens, experts, top_k, factor, min_capacity })?;
    Ok(vec![("capacity", (rows as f64).into())])
}

/// A router's gate that hands its tokens through as logits, `[e, e]`.
fn identity(like: &Tensor) -> Tensor {
    let experts = *like.size().last().expect("an axis of experts");
    Tensor::eye(experts, (like.kind(), Device::Cpu))
}

/// Padding flags as a tensor of one group, `[1, t]`, bool.
fn flags(padding_t: Option<&[bool]>) -> Option<Tensor> {
    padding_t.map(|padding_t| Tensor::from_slice(padding_t).unsqueeze(0))
}
