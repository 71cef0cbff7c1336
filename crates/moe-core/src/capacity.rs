//! Capacity: how many rows an expert accepts from a group, and who goes without when it is full.
//!
//! Axis letters in formulas: `T` tokens of a group, `E` experts, `k` choices of a token, `C` the
//! capacity factor.

use serde::{Deserialize, Serialize};

/// Who keeps a place when an expert is full.
///
/// All first choices queue before all second choices in every order; an order says in which
/// sequence the tokens are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropOrder {
    /// Earlier tokens first (GShard, arXiv 2006.16668, Algorithm 1; V-MoE, Algorithm 1).
    #[default]
    Arrival,
    /// By falling weight of the token's first choice (V-MoE, arXiv 2106.05974, Algorithm 2, "batch
    /// prioritized routing"). The sort is stable.
    BatchPriority,
    /// By falling sum of the token's `k` weights, the alternative in the same paper.
    BatchPrioritySum,
}

/// How a capacity factor becomes a number of rows: each code base has its own rule.
///
/// `int` truncates, `round` rounds half to even. In recipes the names are in kebab case; snake case
/// is understood too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapacityRule {
    /// `max(min, min(T, int(T C / E)))`, min 4 unless given (Switch in Mesh TensorFlow).
    #[serde(alias = "switch_mesh")]
    SwitchMesh,
    /// `max(min, round(C T / E))`, min 4 unless given (flaxformer).
    Flaxformer,
    /// `int(T C / E)`, 0 becoming 4, then up to a multiple of 4 (lingvo).
    Lingvo,
    /// `max(ceil((T k / E) C), min)`, min 0 unless given (Megatron-LM).
    Megatron,
    /// `ceil(2 T / E)`, whatever the factor (GShard's paper).
    #[serde(alias = "gshard_paper")]
    GshardPaper,
    /// `min(T, int(T C / E))` (Expert Choice, arXiv 2202.09368).
    #[serde(alias = "expert_choice")]
    ExpertChoice,
    /// `max(int(T C / E), min)`, min 0 unless given.
    Floor,
    /// `round(k T C / E)` (V-MoE's paper, arXiv 2106.05974).
    #[serde(alias = "vmoe_round")]
    VmoeRound,
    /// `ceil(k T C / E)`, then up to a multiple of 4 (V-MoE's code).
    #[serde(alias = "vmoe_ceil4")]
    VmoeCeil4,
}

/// What a [`CapacityRule`] reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CapacityInput {
    /// Tokens of the group, `T`.
    pub tokens: usize,
    /// Experts, `E`.
    pub experts: usize,
    /// Choices of a token, `k`.
    pub top_k: usize,
    /// Capacity factor, `C`.
    pub factor: f64,
    /// Least capacity, for the rules that have one; `None` takes the rule's own.
    pub min_capacity: Option<usize>,
}

/// A capacity that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CapacityError {
    /// The rule, or the recipe, comes to less than one row.
    #[error("capacity must be at least 1, but comes to {got}")]
    BelowOne {
        /// What it came to, after the rule's rounding.
        got: f64,
    },
    /// The factor is negative or not finite.
    #[error("capacity factor must be finite and not negative, but is {factor}")]
    Factor {
        /// The factor.
        factor: f64,
    },
    /// A group without tokens, or a layer without experts, has no capacity.
    #[error(
        "capacity needs tokens and experts, but there are {tokens} tokens and {experts} experts"
    )]
    Empty {
        /// Tokens of the group.
        tokens: usize,
        /// Experts.
        experts: usize,
    },
}

impl CapacityRule {
    /// Rows an expert accepts from one group.
    ///
    /// # Errors
    ///
    /// If the rule comes to less than 1, the factor is negative or not finite, or there are no
    /// tokens or experts. V-MoE's check comes before its rounding up to a multiple of 4.
    pub fn capacity(self, input: &CapacityInput) -> Result<usize, CapacityError> {
        let CapacityInput { tokens, experts, factor, .. } = *input;
        if tokens == 0 || experts == 0 {
            return Err(CapacityError::Empty { tokens, experts });
        }
        if !factor.is_finite() || factor < 0.0 {
            return Err(CapacityError::Factor { factor });
        }
        let rows = self.rows(input);
        // Saturates for absurd factors, where a capacity beyond the tokens is no limit anyway.
        if rows < 1.0 { Err(CapacityError::BelowOne { got: rows }) } else { Ok(rows as usize) }
    }

    /// The formula, in the order of operations of the code it is from: rounding depends on it.
    fn rows(self, input: &CapacityInput) -> f64 {
        let [t, e, k] = [input.tokens, input.experts, input.top_k].map(|n| n as f64);
        let c = input.factor;
        let at_least = |default: usize| input.min_capacity.unwrap_or(default) as f64;
        match self {
            Self::SwitchMesh => (t * c / e).trunc().min(t).max(at_least(4)),
            Self::Flaxformer => (c * t / e).round_ties_even().max(at_least(4)),
            Self::Lingvo => match (t * c / e).trunc() {
                0.0 => 4.0,
                rows => up_to_multiple_of_4(rows),
            },
            Self::Megatron => (t * k / e * c).ceil().max(at_least(0)),
            Self::GshardPaper => (2.0 * t / e).ceil(),
            Self::ExpertChoice => (t * c / e).trunc().min(t),
            Self::Floor => (t * c / e).trunc().max(at_least(0)),
            Self::VmoeRound => (k * t * c / e).round_ties_even(),
            Self::VmoeCeil4 => up_to_multiple_of_4((k * t * c / e).ceil()),
        }
    }
}

fn up_to_multiple_of_4(rows: f64) -> f64 {
    (rows / 4.0).ceil() * 4.0
}

/// How many rows an expert accepts from a group.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Limit {
    /// All that come.
    #[default]
    Unlimited,
    /// This many, whatever the size of the group.
    Fixed(usize),
    /// In proportion to the size of the group.
    Factor {
        /// Capacity factor, `C`.
        factor: f64,
        /// The rule that turns it into rows.
        rule: CapacityRule,
        /// Least capacity; `None` takes the rule's own.
        #[serde(default)]
        min: Option<usize>,
    },
}

/// A limit, and the order in which it drops.
///
/// The default drops nothing. In a recipe:
///
/// ```toml
/// [capacity]
/// limit = { factor = { factor = 1.25, rule = "switch-mesh" } }  # or "unlimited", { fixed = 8 }
/// order = "batch-priority"                                      # or "arrival"
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapacityPolicy {
    /// How many rows an expert accepts.
    pub limit: Limit,
    /// Who goes without when it is full.
    pub order: DropOrder,
}

impl CapacityPolicy {
    /// Rows an expert accepts from a group of `tokens`, or `None` if there is no limit.
    ///
    /// # Errors
    ///
    /// If the limit comes to less than one row; see [`CapacityRule::capacity`].
    pub fn slots(
        &self,
        tokens: usize,
        experts: usize,
        top_k: usize,
    ) -> Result<Option<usize>, CapacityError> {
        match self.limit {
            Limit::Unlimited => Ok(None),
            Limit::Fixed(0) => Err(CapacityError::BelowOne { got: 0.0 }),
            Limit::Fixed(rows) => Ok(Some(rows)),
            Limit::Factor { factor, rule, min } => rule
                .capacity(&CapacityInput { tokens, experts, top_k, factor, min_capacity: min })
                .map(Some),
        }
    }
}
