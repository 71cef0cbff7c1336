//! Settings of V-MoE: presets, capacity (3), the order in which places are handed out.

use super::VMoe;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::params::Params;
use crate::router::{Dims, Router, room};
use moe_core::{CapacityError, CapacityPolicy, DropOrder};
use serde::{Deserialize, Serialize};

/// How (3) becomes a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Half to even.
    Round,
    /// Up.
    Ceil,
}

/// By which score batch priority visits tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriorityScore {
    /// The largest gate.
    Max,
    /// The sum of the k gates.
    Sum,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Noise standard deviation in units of `1 / E`.
    pub noise_std: f64,
    /// Whether the k weights are divided by their sum; in neither paper nor code.
    pub normalize: bool,
    /// Rows that an expert keeps of a group; wins over the factor.
    pub capacity: Option<usize>,
    /// Capacity factor `C`; with no `capacity` either, room is unlimited.
    pub capacity_factor: Option<f64>,
    /// Rounding of the capacity (3).
    pub capacity_round: Rounding,
    /// The capacity is raised to a multiple of this; 0 leaves it.
    pub capacity_multiple: usize,
    /// Whether places are handed out by falling gate (Algorithm 2) rather than in token order.
    pub batch_priority: bool,
    /// What falls.
    pub priority_score: PriorityScore,
    /// Weight of the importance loss.
    pub importance_weight: f64,
    /// Weight of the load loss.
    pub load_weight: f64,
    /// Weight of a GShard loss on the noisy probabilities (0 in the released configurations).
    pub gshard_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "paper_bpr", "reference", "reference_bpr"];

    fn preset(name: &str) -> Self {
        let (reference, bpr) = (name.starts_with("reference"), name.ends_with("_bpr"));
        Self {
            top_k: 2,
            noise_std: 1.0,
            normalize: false,
            capacity: None,
            capacity_factor: Some(1.05),
            capacity_round: if reference { Rounding::Ceil } else { Rounding::Round },
            capacity_multiple: if reference { 4 } else { 0 },
            batch_priority: bpr,
            priority_score: PriorityScore::Max,
            importance_weight: 0.005,
            load_weight: 0.005,
            gshard_weight: 0.0,
        }
    }
}

impl Config {
    /// Standard deviation of the noise on the logits of `experts` experts.
    pub fn noise_scale(&self, experts: usize) -> f64 {
        self.noise_std / experts as f64
    }

    /// What the released module has before a recipe speaks: k = 1 and losses of full weight.
    pub fn module_default() -> Self {
        Self { top_k: 1, importance_weight: 1.0, load_weight: 1.0, ..Self::preset("reference") }
    }

    /// (3): rows that an expert keeps of a group, `None` for all.
    ///
    /// # Errors
    /// A capacity below 1; the check comes before the rounding up to a multiple.
    pub fn slots(&self, tokens: usize, experts: usize) -> Result<Option<usize>, CapacityError> {
        let Some(factor) = self.capacity_factor.filter(|_| self.capacity.is_none()) else {
            return match self.capacity {
                Some(0) => Err(CapacityError::BelowOne { got: 0.0 }),
                given => Ok(given),
            };
        };
        let exact = self.top_k as f64 * tokens as f64 * factor / experts as f64;
        let rows = match self.capacity_round {
            Rounding::Round => exact.round_ties_even(),
            Rounding::Ceil => exact.ceil(),
        };
        if rows.is_nan() || rows < 1.0 {
            return Err(CapacityError::BelowOne { got: rows });
        }
        // A capacity beyond what can be counted is no limit; the cast saturates.
        Ok(Some((rows as usize).next_multiple_of(self.capacity_multiple.max(1))))
    }

    /// The order in which places are handed out.
    pub fn order(&self) -> DropOrder {
        match (self.batch_priority, self.priority_score) {
            (false, _) => DropOrder::Arrival,
            (true, PriorityScore::Max) => DropOrder::BatchPriority,
            (true, PriorityScore::Sum) => DropOrder::BatchPrioritySum,
        }
    }

    /// The recipe's room if it has a policy, else the paper's own.
    pub(super) fn room(
        &self,
        chosen: Option<&CapacityPolicy>,
        (tokens, experts): (usize, usize),
    ) -> Result<(Option<usize>, DropOrder), CapacityError> {
        match chosen {
            Some(_) => room(chosen, None, (tokens, experts, self.top_k)),
            None => Ok((self.slots(tokens, experts)?, self.order())),
        }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_weight("noise_std", self.noise_std)?;
        self.capacity_factor.map_or(Ok(()), |c| check_positive("capacity_factor", c))?;
        check_weight("importance_weight", self.importance_weight)?;
        check_weight("load_weight", self.load_weight)?;
        check_weight("gshard_weight", self.gshard_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    /// Later tokens' first choices come before earlier tokens' second ones, and batch priority lets
    /// any token overtake: with limited room, causal only in arrival order with k = 1.
    fn causal(&self) -> bool {
        (self.capacity.is_none() && self.capacity_factor.is_none())
            || (self.top_k == 1 && self.order() == DropOrder::Arrival)
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(VMoe { gate_ed, config: self.clone() })
    }
}
