//! Settings of a router: presets, overrides, checks.

use crate::params::Params;
use crate::router::{Dims, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Debug;

/// Keys and values as they stand in a recipe or a conformance case.
pub type Settings = Map<String, Value>;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No such router or residual.
    #[error("name: unknown {what} `{name}`; choose one of {choices}")]
    Unknown {
        /// Router or residual.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        choices: String,
    },
    /// No such preset.
    #[error("preset: unknown preset `{preset}`; choose one of {choices}")]
    UnknownPreset {
        /// What was asked for.
        preset: String,
        /// What there is.
        choices: String,
    },
    /// A key that does not exist, or a value outside its type or range.
    #[error("{key}: {reason}")]
    Setting {
        /// The key.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
}

impl ConfigError {
    /// A bad value of `key`.
    pub fn setting(key: &str, reason: impl Into<String>) -> Self {
        Self::Setting { key: key.into(), reason: reason.into() }
    }
}

/// A paper's configuration with its named sets of values.
pub trait Preset: Serialize + DeserializeOwned {
    /// Names, the default first.
    const PRESETS: &'static [&'static str];

    /// The values of preset `name`, one of [`Self::PRESETS`].
    fn preset(name: &str) -> Self;
}

/// A part of a recipe that acts on whatever router stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A capacity policy.
    Capacity,
    /// A balance or importance loss.
    Balance,
    /// A router z-loss.
    ZLoss,
}

/// What of a run a setting follows where a recipe does not give it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tie {
    /// The number of token ids.
    Vocab,
    /// This share of the training steps; at least one step.
    ShareOfSteps(f64),
}

/// What decides besides the values of tokens and parameters, in evaluation and with room for everyone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Symmetry {
    /// Where a token stands.
    pub position: bool,
    /// Which number an expert has.
    pub number: bool,
    /// Random draws.
    pub draws: bool,
}

/// A router's settings, resolved and ready to build from.
pub trait RouterConfig: Debug + Send + Sync {
    /// Every setting with its value, for the record of a run.
    fn settings(&self) -> Settings;

    /// Refuses values outside their range for a layer of `experts` experts.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    fn check(&self, experts: usize) -> Result<(), ConfigError>;

    /// Settings that say little as absolute numbers, and what they follow in a recipe.
    fn ties(&self) -> &'static [(&'static str, Tie)] {
        &[]
    }

    /// Experts that a token visits on average; a layer divides its active width by this, so that
    /// every router spends the same computation per token.
    fn active_experts(&self, experts: usize) -> f64;

    /// Experts that a token visited when the weights were trained, where the rule serves with fewer:
    /// a layer divides its active width by this, so that their weights fit.
    fn trained_experts(&self, experts: usize) -> f64 {
        self.active_experts(experts)
    }

    /// Experts that the layer really has; the dense control has one, whatever the recipe says.
    fn bank(&self, experts: usize) -> usize {
        experts
    }

    /// Whether a token's route depends on no later token of its group, as long as the attention that
    /// is handed in reads none.
    fn causal(&self) -> bool;

    /// What decides besides values; nothing, unless the rule says otherwise.
    fn symmetry(&self) -> Symmetry {
        Symmetry::default()
    }

    /// Whether the rule is about the tokens of one sequence, so that a group is a sequence whatever
    /// the recipe says.
    fn within_sequence(&self) -> bool {
        false
    }

    /// Whether the router reads the attention weights of its block.
    fn reads_attention(&self) -> bool {
        false
    }

    /// Why this part of a recipe would do nothing beside this router; `None` where it does something.
    fn refuses(&self, _part: Part) -> Option<&'static str> {
        None
    }

    /// Refuses settings that read what no block of a model hands in; `heads` is the number of its
    /// attention heads.
    ///
    /// # Errors
    /// Names the key, and what is missing.
    fn check_block(&self, _heads: usize) -> Result<(), ConfigError> {
        Ok(())
    }

    /// A router with fresh parameters under `params`.
    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router>;
}

/// Reads `settings` over the preset they name. TOML has no null: where a setting is no word of its
/// own, `"none"` stands for it.
///
/// # Errors
/// An unknown preset or key, or a value of the wrong type.
pub fn resolve<C: Preset>(settings: &Settings) -> Result<C, ConfigError> {
    let mut given = settings.clone();
    let preset = match given.remove("preset") {
        None => C::PRESETS[0].to_owned(),
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(ConfigError::setting("preset", format!("expected a name, found {other}")));
        }
    };
    if !C::PRESETS.contains(&preset.as_str()) {
        let choices = C::PRESETS.join(", ");
        return Err(ConfigError::UnknownPreset { preset, choices });
    }
    let mut merged = to_settings(&C::preset(&preset));
    for (key, value) in given {
        let absent = value == "none" && merged.get(&key).is_some_and(|v| !v.is_string());
        merged.insert(key, if absent { Value::Null } else { value });
    }
    serde_path_to_error::deserialize(Value::Object(merged)).map_err(|e| from_serde(&e))
}

/// A configuration as keys and values.
pub fn to_settings(config: &impl Serialize) -> Settings {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        other => unreachable!("a configuration is a table of plain values: {other:?}"),
    }
}

/// serde names the key only in its message; put it where every other error has it.
fn from_serde(error: &serde_path_to_error::Error<serde_json::Error>) -> ConfigError {
    let reason = error.inner().to_string();
    let unknown = reason.strip_prefix("unknown field `").and_then(|r| r.split_once('`'));
    match (unknown, error.path().to_string()) {
        (Some((key, rest)), _) => {
            ConfigError::setting(key, format!("unknown key{}", rest.replace('`', "")))
        }
        (None, path) => ConfigError::setting(&path, reason),
    }
}

/// `top_k` must lie in `1..=experts`.
///
/// # Errors
/// Names `top_k`.
pub fn check_top_k(top_k: usize, experts: usize) -> Result<(), ConfigError> {
    check_choices("top_k", top_k, experts)
}

/// A number of experts that a token chooses must lie in `1..=experts`.
///
/// # Errors
/// Names `key`.
pub fn check_choices(key: &str, k: usize, experts: usize) -> Result<(), ConfigError> {
    if (1..=experts).contains(&k) {
        return Ok(());
    }
    Err(ConfigError::setting(key, format!("{k} is outside 1..={experts} (experts)")))
}

/// A weight, coefficient or standard deviation must be finite and not negative.
///
/// # Errors
/// Names `key`.
pub fn check_weight(key: &str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(ConfigError::setting(key, format!("{value} must be finite and at least 0")))
}

/// A scale, temperature or factor must be finite and positive.
///
/// # Errors
/// Names `key`.
pub fn check_positive(key: &str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(ConfigError::setting(key, format!("{value} must be finite and above 0")))
}
