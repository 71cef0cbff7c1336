//! Settings of USMoE: presets, the budget of a group (4).

use super::UsMoe;
use crate::config::{ConfigError, Part, Preset, RouterConfig, Settings, to_settings};
use crate::params::Params;
use crate::router::{Dims, Router};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Products such as 1.15 * 20 must not lose one unit to rounding.
const SLACK: f64 = 1e-9;

/// How `k S` becomes a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Down.
    Floor,
    /// Up.
    Ceil,
    /// To the nearest, halves up.
    Round,
}

/// Who competes inside a group of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// All its tokens.
    All,
    /// Each token's experts among themselves: top-k, whatever alpha is.
    Token,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token on average, above 0.
    pub top_k: f64,
    /// Whether `top_k` may have a fraction.
    pub fractional: bool,
    /// Share of the expert side in the score (3), in `0..=1`.
    pub alpha: f64,
    /// Rounding of the budget (4).
    pub rounding: Rounding,
    /// Whether weights are divided by the sum of the token's scores (5).
    pub norm_topk_prob: bool,
    /// Who competes.
    pub group: Group,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "reference"];

    fn preset(name: &str) -> Self {
        Self {
            top_k: 2.0,
            fractional: name != "reference",
            alpha: 0.5,
            rounding: Rounding::Floor,
            norm_topk_prob: false,
            group: Group::All,
        }
    }
}

impl Config {
    /// (4): pairs that are selected among `tokens`; never more than there are.
    pub fn budget(&self, tokens: usize, experts: usize) -> usize {
        let exact = self.top_k * tokens as f64;
        let pairs = match self.rounding {
            Rounding::Floor => (exact + SLACK).floor(),
            Rounding::Ceil => (exact - SLACK).ceil(),
            Rounding::Round => (exact + 0.5).floor(),
        };
        // The cast takes what is below 0 to 0.
        (pairs as usize).min(tokens * experts)
    }

    /// (4) for the tokens of every group, `[g]`, int64.
    pub(super) fn budgets(&self, tokens_g: &Tensor, experts: i64) -> Tensor {
        let exact_g = tokens_g.to_kind(Kind::Double) * self.top_k;
        let pairs_g = match self.rounding {
            Rounding::Floor => (exact_g + SLACK).floor(),
            Rounding::Ceil => (exact_g - SLACK).ceil(),
            Rounding::Round => (exact_g + 0.5).floor(),
        };
        pairs_g.to_kind(Kind::Int64).clamp_min(0).minimum(&(tokens_g * experts))
    }

    /// Places that an expert has in expert choice, of `tokens`.
    pub(super) fn places(&self, tokens: usize, experts: usize) -> usize {
        (self.top_k * tokens as f64 / experts as f64 + SLACK).floor() as usize
    }

    /// The same for every group, `[g]`, int64.
    pub(super) fn places_of(&self, tokens_g: &Tensor, experts: i64) -> Tensor {
        let exact_g = tokens_g.to_kind(Kind::Double) * self.top_k / experts as f64;
        (exact_g + SLACK).floor().to_kind(Kind::Int64)
    }

    /// Refuses an `alpha` outside `0..=1`.
    ///
    /// # Errors
    /// Names `alpha`.
    pub fn check_alpha(&self) -> Result<(), ConfigError> {
        if (0.0..=1.0).contains(&self.alpha) {
            return Ok(());
        }
        Err(ConfigError::setting("alpha", format!("{} is outside 0..=1", self.alpha)))
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        let k = self.top_k;
        if !(k > 0.0 && k <= experts as f64) {
            let reason = format!("{k} is not above 0 and at most {experts} (experts)");
            return Err(ConfigError::setting("top_k", reason));
        }
        if !self.fractional && k.fract() != 0.0 {
            return Err(ConfigError::setting("top_k", format!("{k} must be a whole number")));
        }
        self.check_alpha()
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k
    }

    fn causal(&self) -> bool {
        self.group == Group::Token
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => Some("its budget is over all pairs of token and expert (`top_k`)"),
            Part::Balance => {
                Some("its pairs compete as a whole; tokens do not each choose k experts")
            }
            Part::ZLoss => None,
        }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(UsMoe { gate_ed, config: self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In doubles 1.15 * 100 is 114.99999999999999 and 1.1 * 50 is 55.00000000000001 (`SLACK`);
    /// 0.3 * 2 rounds to 0, 1, 1.
    #[test]
    fn budgets_by_hand() {
        let config = |top_k, rounding| Config { top_k, rounding, ..Config::preset("paper") };
        let inexact = [(1.15, Rounding::Floor, 100, 115), (1.1, Rounding::Ceil, 50, 55)];
        for (top_k, rounding, tokens, want) in inexact {
            let config = config(top_k, rounding);
            assert_eq!(config.budget(tokens, 4), want);
            let tokens_g = Tensor::from_slice(&[tokens as i64]);
            assert_eq!(config.budgets(&tokens_g, 4).int64_value(&[0]), want as i64);
        }
        for (rounding, want) in [(Rounding::Floor, 0), (Rounding::Ceil, 1), (Rounding::Round, 1)] {
            let config = config(0.3, rounding);
            assert_eq!(config.budget(2, 2), want, "{rounding:?}");
            let tokens_g = Tensor::from_slice(&[2i64, 0]);
            let budgets = Vec::<i64>::try_from(config.budgets(&tokens_g, 2)).unwrap();
            assert_eq!(budgets, [want as i64, 0], "{rounding:?}");
        }
        assert_eq!(config(2.0, Rounding::Floor).budget(3, 1), 3);
    }
}
