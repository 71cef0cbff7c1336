//! Capacity: how many rows an expert accepts from a group, and who goes without when it is full.
//!
//! Axis letters in formulas: `T` tokens of a group, `E` experts, `k` choices of a token, `C` the
//! capacity factor.

mod rule;

pub use rule::{CapacityError, CapacityInput, CapacityRule};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who keeps a place when an expert is full.
///
/// In the first three orders all first choices queue before all second choices, and the order says
/// in which sequence the tokens are visited; the last two do not look at the rank of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
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
    /// Earlier tokens first, with all their choices (Megatron-LM, drop policy `position`).
    Position,
    /// By falling weight of the choice itself (Megatron-LM, drop policy `probs`). The sort is stable.
    Gate,
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

#[cfg(test)]
mod tests {
    use super::*;
    use CapacityRule::*;

    #[test]
    fn policies_by_hand() {
        let slots = |limit| CapacityPolicy { limit, ..Default::default() }.slots(16, 4, 2);
        assert_eq!(CapacityPolicy::default().slots(16, 4, 2), Ok(None));
        assert_eq!(slots(Limit::Fixed(3)), Ok(Some(3)));
        assert!(slots(Limit::Fixed(0)).unwrap_err().to_string().contains("capacity"));
        // 16 * 2 * 1.5 / 4 = 12; 16 * 0.5 / 4 = 2, raised to 5
        let limit = |factor, rule, min| Limit::Factor { factor, rule, min };
        assert_eq!(slots(limit(1.5, VmoeRound, None)), Ok(Some(12)));
        assert_eq!(slots(limit(0.5, Floor, Some(5))), Ok(Some(5)));
        assert!(slots(limit(0.1, Floor, None)).is_err());
    }

    #[test]
    fn policies_are_read_by_name() {
        let read = serde_json::from_str::<CapacityPolicy>;
        assert_eq!(read("{}").unwrap(), CapacityPolicy::default());
        let policy = read(
            r#"{"limit": {"factor": {"factor": 1.25, "rule": "switch-mesh"}}, "order": "batch-priority-sum"}"#,
        );
        let limit = Limit::Factor { factor: 1.25, rule: SwitchMesh, min: None };
        assert_eq!(policy.unwrap(), CapacityPolicy { limit, order: DropOrder::BatchPrioritySum });
        assert_eq!(read(r#"{"limit": {"fixed": 8}}"#).unwrap().limit, Limit::Fixed(8));
        assert_eq!(read(r#"{"limit": "unlimited"}"#).unwrap().limit, Limit::Unlimited);
        assert!(read(r#"{"limits": "unlimited"}"#).unwrap_err().to_string().contains("limits"));
        assert!(
            read(r#"{"limit": {"factor": {"factor": 1, "rule": "floor", "max": 1}}}"#).is_err()
        );
    }
}
