//! Settings of X-MoE: presets, checks, and the capacity rule of the release.

use super::XMoe;
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_top_k, check_weight,
    to_settings,
};
use crate::params::Params;
use crate::router::{Dims, Router, room};
use moe_core::{CapacityError, CapacityPolicy, DropOrder};
use serde::{Deserialize, Serialize};

/// Least temperature, and the `theta` that stands for it.
const MIN_TEMPERATURE: f64 = 1e-4;
/// Largest `theta` of Tutel's form: tau = 1/100.
const TUTEL_MAX_THETA: f64 = 4.605_170_185_988_092;

/// How a score becomes a weight (8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each score.
    Sigmoid,
    /// Softmax over the chosen experts.
    SoftmaxTopk,
}

/// Whether the k gates are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeGates {
    /// They are not.
    None,
    /// Before choices are dropped.
    BeforeDrop,
    /// Those that are kept, so that a lone survivor has weight 1.
    AfterDrop,
}

/// Which second choices queue at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondPolicy {
    /// All.
    All,
    /// One with gate `g` queues iff `2 g > u`, `u ~ U(0, 1)`.
    Random,
}

/// How padding enters the balance loss (9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingMode {
    /// Padded tokens leave numerator and denominator.
    Exclude,
    /// Padded tokens are no choices, but their probabilities and their number count.
    Reference,
}

/// What `t_i` is in the balance loss (9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BalanceForm {
    /// The share of tokens; the loss of a uniform router is 1.
    Fraction,
    /// Their number, T times larger.
    Count,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
    /// Width of the hypersphere, `d_e`; `null` is half the number of experts, at least 2.
    pub width: Option<usize>,
    /// Whether the projection has a bias.
    pub bias: bool,
    /// How a score becomes a weight.
    pub gate: Gate,
    /// Temperature `tau`, or its initial value; below 1e-4 it acts as 1e-4.
    pub temperature: f64,
    /// `theta = ln(1 / tau)`, clamped at ln 100, in the place of `temperature` (Tutel's form).
    pub theta: Option<f64>,
    /// Whether the temperature is learned.
    pub learn_temperature: bool,
    /// Whether the token's projection is normalised (6).
    pub normalize_token: bool,
    /// Floor of both norms (6).
    pub eps: f64,
    /// Norm to which embeddings are rescaled in place before every forward pass.
    pub emb_rescale_norm: Option<f64>,
    /// Whether scores that are not finite are replaced by the smallest finite one of the group.
    pub make_finite: bool,
    /// Rows that an expert keeps of a group; `null` is all.
    pub capacity: Option<usize>,
    /// Whether the gates are divided by their sum.
    pub normalize_gates: NormalizeGates,
    /// Which second choices queue.
    pub second_policy: SecondPolicy,
    /// Temperature of the balance loss (9).
    pub tau0: f64,
    /// Weight of the balance loss.
    pub balance_weight: f64,
    /// What the balance loss counts.
    pub balance_form: BalanceForm,
    /// How padding enters the balance loss.
    pub padding_mode: PaddingMode,
}

impl Config {
    fn paper(gate: Gate, tau0: f64) -> Self {
        Self {
            top_k: 1,
            width: None,
            bias: false,
            gate,
            temperature: tau0,
            theta: None,
            learn_temperature: true,
            normalize_token: true,
            eps: 1e-4,
            emb_rescale_norm: None,
            make_finite: false,
            capacity: None,
            normalize_gates: NormalizeGates::None,
            second_policy: SecondPolicy::All,
            tau0,
            balance_weight: 0.01,
            balance_form: BalanceForm::Fraction,
            padding_mode: PaddingMode::Exclude,
        }
    }

    fn torchscale(top_k: usize) -> Self {
        let (normalize_gates, second_policy) = match top_k {
            1 => (NormalizeGates::None, SecondPolicy::All),
            _ => (NormalizeGates::BeforeDrop, SecondPolicy::Random),
        };
        Self {
            top_k,
            width: Some(16),
            learn_temperature: false,
            normalize_token: false,
            emb_rescale_norm: Some(1.5),
            make_finite: true,
            normalize_gates,
            second_policy,
            padding_mode: PaddingMode::Reference,
            ..Self::paper(Gate::Softmax, 1.0)
        }
    }

    /// The temperature that acts: of `theta` if it is given, else `temperature`, not below its floor.
    pub fn tau(&self) -> f64 {
        self.theta
            .map_or(self.temperature.max(MIN_TEMPERATURE), |t| (-t.min(TUTEL_MAX_THETA)).exp())
    }

    /// Largest value of the learned `theta`.
    pub fn max_theta(&self) -> f64 {
        self.theta.map_or(-MIN_TEMPERATURE.ln(), |_| TUTEL_MAX_THETA)
    }

    /// The recipe's room if it has a policy, else the paper's own.
    pub(super) fn room(
        &self,
        chosen: Option<&CapacityPolicy>,
        (tokens, experts): (usize, usize),
    ) -> Result<(Option<usize>, DropOrder), CapacityError> {
        match (chosen, self.capacity) {
            (None, Some(0)) => Err(CapacityError::BelowOne { got: 0.0 }),
            (None, slots) => Ok((slots, DropOrder::Arrival)),
            (chosen, _) => room(chosen, None, (tokens, experts, self.top_k)),
        }
    }
}

/// Capacity of the release, in rows per expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Experts per token.
    pub top_k: usize,
    /// Training rather than evaluation.
    pub train: bool,
    /// Factor in training, for one choice per token.
    pub factor: f64,
    /// Share of the tokens at evaluation, whatever E; 0 means the training rule.
    pub eval_fraction: f64,
}

impl Capacity {
    /// Rows that an expert keeps of `tokens`.
    ///
    /// # Errors
    /// Less than one row.
    pub fn slots(&self, tokens: usize, experts: usize) -> Result<usize, CapacityError> {
        let per_expert = tokens.div_ceil(experts);
        let rows = if !self.train && self.eval_fraction > 0.0 {
            (self.eval_fraction * tokens as f64).ceil()
        } else if self.top_k == 1 {
            (self.factor * per_expert as f64).trunc()
        } else {
            (self.top_k * per_expert) as f64
        };
        if rows >= 1.0 { Ok(rows as usize) } else { Err(CapacityError::BelowOne { got: rows }) }
    }
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] =
        &["paper", "paper_sigmoid", "reference", "reference_top1", "tutel"];

    fn preset(name: &str) -> Self {
        match name {
            "paper_sigmoid" => Self::paper(Gate::Sigmoid, 0.07),
            "reference" => Self::torchscale(2),
            "reference_top1" => Self::torchscale(1),
            "tutel" => Self {
                width: Some(256),
                bias: true,
                theta: Some(std::f64::consts::LN_2),
                eps: 1e-12,
                ..Self::paper(Gate::Softmax, 0.5)
            },
            _ => Self::paper(Gate::Softmax, 0.3),
        }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)?;
        if self.width == Some(0) {
            return Err(ConfigError::setting("width", "0 must be at least 1"));
        }
        check_positive("temperature", self.temperature)?;
        if let Some(theta) = self.theta.filter(|_| !(self.tau() > 0.0 && self.tau().is_finite())) {
            return Err(ConfigError::setting("theta", format!("{theta} gives no temperature")));
        }
        check_positive("tau0", self.tau0)?;
        check_positive("eps", self.eps)?;
        self.emb_rescale_norm.map_or(Ok(()), |n| check_positive("emb_rescale_norm", n))?;
        if self.capacity == Some(0) {
            return Err(ConfigError::setting("capacity", "0 must be at least 1"));
        }
        check_weight("balance_weight", self.balance_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    /// Later tokens' first choices come before earlier tokens' second ones: with limited room, causal
    /// only with k = 1.
    fn causal(&self) -> bool {
        self.capacity.is_none() || self.top_k == 1
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        Box::new(XMoe::new(self, params, dims))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 tokens, 4 experts: ceil(10 / 4) = 3 in training, twice that for two choices, and
    /// ceil(0.25 * 10) = 3 at evaluation.
    #[test]
    fn capacity_by_hand() {
        let rule = Capacity { top_k: 1, train: true, factor: 1.0, eval_fraction: 0.25 };
        assert_eq!(rule.slots(10, 4), Ok(3));
        assert_eq!(Capacity { factor: 1.5, ..rule }.slots(10, 4), Ok(4));
        assert_eq!(Capacity { top_k: 2, ..rule }.slots(10, 4), Ok(6));
        assert_eq!(Capacity { train: false, ..rule }.slots(10, 4), Ok(3));
        assert!(Capacity { factor: 0.1, ..rule }.slots(4, 4).is_err());
    }
}
