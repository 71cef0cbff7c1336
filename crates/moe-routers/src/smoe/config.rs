//! Settings of softmax top-k routing: presets, order, capacity (7).

use super::Smoe;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::params::Params;
use crate::router::{Dims, Router};
use moe_core::{AuxForm, CapacityPolicy, DropOrder, Limit};
use serde::{Deserialize, Serialize};

/// Which comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Softmax over all experts, then the k largest (1).
    SoftmaxTopk,
    /// The k largest logits, then softmax over them (3).
    TopkSoftmax,
}

/// Who keeps a place when an expert is full (7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// The first in token order.
    Position,
    /// Those with the largest gate.
    Probs,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Order of softmax and selection.
    pub order: Order,
    /// Whether the k weights are divided by their sum (2).
    pub normalize: bool,
    /// Factor on every gate (4).
    pub scale: f64,
    /// Rows that an expert keeps of a group (7); `null` keeps all.
    pub capacity: Option<usize>,
    /// Which rows these are.
    pub drop_policy: DropPolicy,
    /// Form of the balance loss.
    pub balance: AuxForm,
    /// Weight of the balance loss.
    pub balance_weight: f64,
    /// Weight of the z-loss.
    pub z_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] =
        &["smoe", "plain", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"];

    fn preset(name: &str) -> Self {
        let (top_k, order, normalize) = match name {
            "plain" => (2, Order::SoftmaxTopk, false),
            "mixtral" => (2, Order::SoftmaxTopk, true),
            "olmoe" => (8, Order::SoftmaxTopk, false),
            "qwen2_moe" => (4, Order::SoftmaxTopk, false),
            "qwen3_moe" => (8, Order::SoftmaxTopk, true),
            _ => (2, Order::TopkSoftmax, false),
        };
        let z_weight = if name == "olmoe" { 1e-3 } else { 0.0 };
        Self {
            top_k,
            order,
            normalize,
            scale: 1.0,
            capacity: None,
            drop_policy: DropPolicy::Position,
            balance: AuxForm::SumK,
            balance_weight: 0.01,
            z_weight,
        }
    }
}

impl Config {
    /// (7).
    pub(super) fn policy(&self) -> CapacityPolicy {
        let order = match self.drop_policy {
            DropPolicy::Position => DropOrder::Position,
            DropPolicy::Probs => DropOrder::Gate,
        };
        CapacityPolicy { limit: self.capacity.map_or(Limit::Unlimited, Limit::Fixed), order }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        check_positive("scale", self.scale)?;
        check_weight("balance_weight", self.balance_weight)?;
        check_weight("z_weight", self.z_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    /// In token order no later token can take a place; by gates it can.
    fn causal(&self) -> bool {
        self.capacity.is_none() || self.drop_policy == DropPolicy::Position
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(Smoe { gate_ed, config: self.clone() })
    }
}
