//! MomentumSMoE: Integrating Momentum in Sparse Mixture of Experts. Teo, Nguyen, 2024 (NeurIPS), arXiv
//! 2410.14574.
//!
//! A stack of sparse layers `x <- x + f(x)` is read as gradient descent; the residual is replaced by
//! the step of an accelerated optimiser. The router is unchanged. With `s` = +1 or -1 (`sign`):
//!
//! ```text
//! plain:     x + s f                                                                       (1)
//! momentum:  p <- mu p + gamma f;  x + s p                                                 (2)
//! adam:      m <- mu m + gamma f;  p <- b1 p + (1-b1) f;  v <- b2 v + (1-b2) f^2;
//!            x + s gamma1 p / sqrt(v + eps) in the first `adam_layers`, else x + s m       (3)
//! robust:    p <- s f + a p, f at (input + e b p);  x + b p                                (4)
//!            a = kappa mu^3/(kappa-1),  b = kappa (1-mu)^2 (1+mu)/L,
//!            e = mu^3/((kappa-1) (1-mu)^2 (1+mu))
//! complex:   p + iq <- (mu + i mu_im)(p + iq) + gamma f;  x + s p                          (5)
//! sharpness: f at u + rho f(u)/|f(u)|, the norm over the whole tensor (`sam_rho`)          (6)
//! ```
//!
//! The state is zero at the start of every forward pass, goes from layer to layer (never from token to
//! token), and stays on the graph. These are rules for the residual, not routers: they wrap whatever
//! computes `f`, so they are not in [`crate::PAPERS`]; [`host::block`] and [`torch::block`] take `f` as a
//! closure. Equations (1)-(5) are `update` of either side, (6) is `evaluate`, `a b e` are [`Robust::new`].
//!
//! Paper and released code differ (presets): `paper` adds the momentum and has no norms, `reference`
//! subtracts it, wraps every step in a LayerNorm and adds a second residual (`outer`); the released Adam
//! acts in the first sparse layer only and drops the inner `x` (`cancel_residual`); `vmoe` is the vision
//! code. Unverified: the paper's sign, `adam_paper` (a weight decay may be missing).
//!
//! Axis letters: `t` tokens, `d` width.

pub mod host;
pub mod torch;

use crate::config::{ConfigError, Preset, check_positive, check_weight};
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
        let (rule, mu) = match name {
            "plain" => (Rule::Plain, 0.7),
            "adam" | "adam_paper" => (Rule::Adam, 0.7),
            "robust" | "robust_paper" | "vmoe" => (Rule::Robust, 0.2),
            "complex" => (Rule::Complex, 0.7),
            "negative" => (Rule::Momentum, -0.2),
            _ => (Rule::Momentum, 0.7),
        };
        let as_published = matches!(name, "paper" | "adam_paper" | "robust_paper");
        let added = as_published || name == "plain";
        let norm = match name {
            "vmoe" => NormPlace::Vmoe,
            _ if as_published => NormPlace::None,
            _ => NormPlace::Post,
        };
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
            sam_rho: 0.0,
            ln_eps: 1e-5,
        }
    }
}

impl Config {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    pub fn check(&self) -> Result<(), ConfigError> {
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
    fn sigma(&self) -> f64 {
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

    /// What [`Self::robust`] gives after [`Self::check`].
    fn constants(&self) -> Option<Robust> {
        self.robust().expect("a checked configuration")
    }

    /// Whether sparse layer number `layer` steps by Adam.
    fn adam_here(&self, layer: usize) -> bool {
        self.adam_layers < 0 || (layer as i64) < self.adam_layers
    }

    /// How much of `x` an Adam layer keeps inside its step.
    fn kept_residual(&self, layer: usize) -> f64 {
        let cancelled = self.rule == Rule::Adam && self.adam_here(layer) && self.cancel_residual;
        if cancelled { 0.0 } else { 1.0 }
    }
}

fn check_kappa(kappa: f64) -> Result<(), ConfigError> {
    if kappa == 1.0 || !kappa.is_finite() {
        return Err(ConfigError::setting("kappa", format!("{kappa} divides by kappa - 1")));
    }
    Ok(())
}

/// The constants of the robust rule (4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Robust {
    /// Share of `p` that stays.
    pub a: f64,
    /// Step size.
    pub b: f64,
    /// Shift of the point of evaluation, in steps.
    pub e: f64,
}

impl Robust {
    /// From the decay, the condition number and the Lipschitz constant.
    ///
    /// # Errors
    /// `kappa` = 1, `|mu|` = 1, `lipschitz` not above 0: they divide by zero.
    pub fn new(mu: f64, kappa: f64, lipschitz: f64) -> Result<Self, ConfigError> {
        check_kappa(kappa)?;
        check_positive("lipschitz", lipschitz)?;
        if mu.abs() == 1.0 {
            return Err(ConfigError::setting("mu", format!("|{mu}| = 1 leaves no step")));
        }
        let brake = (1.0 - mu).powi(2) * (1.0 + mu);
        Ok(Self {
            a: kappa * mu.powi(3) / (kappa - 1.0),
            b: kappa * brake / lipschitz,
            e: mu.powi(3) / ((kappa - 1.0) * brake),
        })
    }

    /// Factor on the incoming `p` in the shift, `e b`.
    pub fn shift(&self) -> f64 {
        self.e * self.b
    }
}

/// Spectral radius of `p <- mu p + step x, x <- x - p` (the new `p`): the larger root of
/// `z^2 - (1 + mu - step) z + mu`.
pub fn spectral_radius(mu: f64, step: f64) -> f64 {
    let trace = 1.0 + mu - step;
    let discriminant = trace * trace - 4.0 * mu;
    if discriminant < 0.0 {
        return mu.sqrt(); // conjugate roots; their product is mu
    }
    (trace.abs() + discriminant.sqrt()) / 2.0
}

/// Whether that iteration converges.
pub fn is_stable(mu: f64, step: f64) -> bool {
    0.0 < step && step < 2.0 * (1.0 + mu) && mu.abs() < 1.0
}

#[cfg(test)]
mod tests;
