//! Settings of the rules, their presets, and the presets' norms.

use super::{Robust, check_kappa};
use crate::config::{ConfigError, Preset, check_positive, check_weight};
use crate::residual::Norm;
use serde::{Deserialize, Serialize};

/// How the layer's output enters the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// (1)
    Plain,
    /// (2), heavy ball; negative with `mu < 0`.
    Momentum,
    /// (3)
    Adam,
    /// (4)
    Robust,
    /// (5)
    Complex,
}

/// Whether the layer's output is a descent direction or a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// Added.
    Plus,
    /// Subtracted.
    Minus,
}

/// Where the norms sit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// Nowhere.
    None,
    /// After the step (released language models).
    Post,
    /// Before the layer.
    Pre,
    /// Before the layer and after the step (released vision models); no outer residual.
    Vmoe,
    /// Where those of the model around it stand.
    Model,
}

impl NormPlace {
    /// The place in a model whose norms stand at `norm`.
    pub fn in_model(self, norm: Norm) -> Self {
        match (self, norm) {
            (Self::Model, Norm::Pre) => Self::Pre,
            (Self::Model, Norm::Post) => Self::Post,
            (fixed, _) => fixed,
        }
    }
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The rule.
    pub rule: Rule,
    /// Share of the momentum that stays.
    pub mu: f64,
    /// Its imaginary part (5).
    pub mu_im: f64,
    /// Step size (2), (3), (5).
    pub gamma: f64,
    /// Step size of the Adam layers (3).
    pub gamma1: f64,
    /// Decay of the mean (3).
    pub beta1: f64,
    /// Decay of the second moment (3).
    pub beta2: f64,
    /// Added inside the square root (3).
    pub eps: f64,
    /// Condition number (4).
    pub kappa: f64,
    /// Lipschitz constant `L` (4).
    pub lipschitz: f64,
    /// Sign of the step.
    pub sign: Sign,
    /// Where the norms sit.
    pub norm: NormPlace,
    /// A second residual around the whole; without effect in `vmoe`.
    pub outer: bool,
    /// Sparse layers that step by Adam, counted from the first; -1 for all.
    pub adam_layers: i64,
    /// Whether an Adam step leaves out the inner `x`.
    pub cancel_residual: bool,
    /// Radius of the sharpness-aware evaluation (6); 0 for none.
    pub sam_rho: f64,
    /// Epsilon of the norms.
    pub ln_eps: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &[
        "model",
        "adam_model",
        "robust_model",
        "complex_model",
        "negative_model",
        "sharpness_model",
        "reference",
        "paper",
        "plain",
        "adam",
        "adam_paper",
        "robust",
        "robust_paper",
        "complex",
        "negative",
        "vmoe",
    ];

    fn preset(name: &str) -> Self {
        let (rule, mu) = match name.trim_end_matches("_paper").trim_end_matches("_model") {
            "plain" => (Rule::Plain, 0.7),
            "adam" => (Rule::Adam, 0.7),
            "robust" | "vmoe" => (Rule::Robust, 0.2),
            "complex" => (Rule::Complex, 0.7),
            "negative" => (Rule::Momentum, -0.2),
            _ => (Rule::Momentum, 0.7),
        };
        let norm = match name {
            "vmoe" => NormPlace::Vmoe,
            _ if name.ends_with("paper") => NormPlace::None,
            _ if name.ends_with("model") => NormPlace::Model,
            _ => NormPlace::Post,
        };
        let added = matches!(norm, NormPlace::None | NormPlace::Model) || name == "plain";
        Self {
            rule,
            mu,
            mu_im: 0.1,
            gamma: 1.0,
            gamma1: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            kappa: 1.25,
            lipschitz: 1.0,
            sign: if added { Sign::Plus } else { Sign::Minus },
            norm,
            outer: norm == NormPlace::Post,
            adam_layers: if name == "adam_paper" { -1 } else { 1 },
            cancel_residual: name == "adam",
            sam_rho: if name == "sharpness_model" { 0.05 } else { 0.0 },
            ln_eps: 1e-5,
        }
    }
}

impl Config {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    pub fn check_values(&self) -> Result<(), ConfigError> {
        let shares = [("mu", self.mu), ("mu_im", self.mu_im)];
        let steps = [("gamma", self.gamma), ("gamma1", self.gamma1)];
        if let Some((key, value)) = shares.into_iter().chain(steps).find(|(_, v)| !v.is_finite()) {
            return Err(ConfigError::setting(key, format!("{value} must be finite")));
        }
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(ConfigError::setting(key, format!("{beta} is outside 0..1")));
            }
        }
        if self.adam_layers < -1 {
            let reason = format!("{} is neither a count nor -1 for all", self.adam_layers);
            return Err(ConfigError::setting("adam_layers", reason));
        }
        check_kappa(self.kappa)?;
        check_positive("lipschitz", self.lipschitz)?;
        for (key, value) in [("eps", self.eps), ("ln_eps", self.ln_eps), ("sam_rho", self.sam_rho)]
        {
            check_weight(key, value)?;
        }
        self.robust().map(|_| ())
    }

    /// +1 or -1.
    pub(super) fn sigma(&self) -> f64 {
        match self.sign {
            Sign::Plus => 1.0,
            Sign::Minus => -1.0,
        }
    }

    /// The constants of (4) where the rule needs them.
    fn robust(&self) -> Result<Option<Robust>, ConfigError> {
        match self.rule {
            Rule::Robust => Robust::new(self.mu, self.kappa, self.lipschitz).map(Some),
            _ => Ok(None),
        }
    }

    /// What [`Self::robust`] gives after [`Self::check_values`].
    pub(super) fn constants(&self) -> Option<Robust> {
        self.robust().expect("a checked configuration")
    }

    /// Whether sparse layer number `layer` steps by Adam.
    pub(super) fn adam_here(&self, layer: usize) -> bool {
        self.adam_layers < 0 || (layer as i64) < self.adam_layers
    }

    /// How much of `x` an Adam layer keeps inside its step.
    pub(super) fn kept_residual(&self, layer: usize) -> f64 {
        let cancelled = self.rule == Rule::Adam && self.adam_here(layer) && self.cancel_residual;
        if cancelled { 0.0 } else { 1.0 }
    }
}

/// Where a rule is used without a model, or before [`NormPlace::in_model`].
pub(super) fn unplaced() -> ! {
    panic!("`model` is no place: the model around the layer says which")
}
