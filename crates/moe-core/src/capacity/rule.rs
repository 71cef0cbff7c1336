//! The rules by which a capacity factor becomes a number of rows.
//!
//! Axis letters in formulas: `T` tokens of a group, `E` experts, `k` choices of a token, `C` the
//! capacity factor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a capacity factor becomes a number of rows: each code base has its own rule.
///
/// `int` truncates, `round` rounds half to even. In recipes the names are in kebab case; snake case
/// is understood too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use CapacityRule::*;

    fn input(tokens: usize, experts: usize, top_k: usize, factor: f64) -> CapacityInput {
        CapacityInput { tokens, experts, top_k, factor, min_capacity: None }
    }

    #[test]
    fn every_rule_by_hand() {
        // T C / E first, then what the rule makes of it.
        let table = [
            (SwitchMesh, input(50, 8, 1, 1.25), 7),   // 7.8125 cut
            (SwitchMesh, input(50, 8, 1, 0.25), 4),   // 1.5625 cut, raised to 4
            (SwitchMesh, input(6, 1, 1, 2.0), 6),     // 12, but only 6 tokens
            (SwitchMesh, input(3, 1, 1, 1.0), 4),     // 3 tokens, raised to 4 all the same
            (Flaxformer, input(50, 8, 1, 1.25), 8),   // 7.8125 rounded
            (Flaxformer, input(52, 8, 1, 1.0), 6),    // 6.5 to even
            (Flaxformer, input(60, 8, 1, 1.0), 8),    // 7.5 to even
            (Flaxformer, input(8, 8, 1, 1.0), 4),     // 1, raised to 4
            (Flaxformer, input(10, 1, 1, 2.0), 20),   // beyond the tokens: no upper bound
            (Lingvo, input(50, 8, 1, 2.0), 12),       // 12.5 cut, a multiple of 4
            (Lingvo, input(50, 8, 1, 1.5), 12),       // 9.375 cut to 9, up to 12
            (Lingvo, input(3, 8, 1, 1.0), 4),         // 0.375 cut to 0, becomes 4
            (Megatron, input(50, 8, 1, 1.0), 7),      // 6.25 up
            (Megatron, input(50, 8, 2, 1.0), 13),     // 12.5 up
            (Megatron, input(50, 8, 2, 1.5), 19),     // 18.75 up
            (Megatron, input(48, 8, 2, 1.0), 12),     // 12
            (GshardPaper, input(50, 8, 1, 9.0), 13),  // 2 T / E = 12.5 up, C unused
            (ExpertChoice, input(50, 8, 1, 2.0), 12), // 12.5 cut
            (ExpertChoice, input(4, 2, 1, 4.0), 4),   // 8, but only 4 tokens
            (Floor, input(50, 8, 1, 1.0), 6),         // 6.25 cut
            (Floor, input(8, 8, 1, 1.0), 1),          // 1, no minimum
            (VmoeRound, input(392, 32, 2, 1.05), 26), // k T C / E = 25.725 rounded
            (VmoeRound, input(5, 2, 1, 1.0), 2),      // 2.5 to even
            (VmoeRound, input(7, 2, 1, 1.0), 4),      // 3.5 to even
            (VmoeRound, input(5, 4, 2, 1.0), 2),      // 2.5 to even: k counts
            (VmoeCeil4, input(392, 32, 2, 1.05), 28), // 25.725 up to 26, up to 28
            (VmoeCeil4, input(16, 4, 1, 1.0), 4),     // 4
            (VmoeCeil4, input(4, 32, 1, 1.0), 4),     // 0.125 up to 1, up to 4
        ];
        for (rule, input, rows) in table {
            assert_eq!(rule.capacity(&input), Ok(rows), "{rule:?} of {input:?}");
        }
    }

    #[test]
    fn a_given_minimum_counts_where_the_rule_has_one() {
        let least = |rule: CapacityRule, min_capacity| {
            // T C / E = 2
            rule.capacity(&CapacityInput { min_capacity, ..input(16, 8, 1, 1.0) }).unwrap()
        };
        for rule in [SwitchMesh, Flaxformer, Megatron, Floor] {
            assert_eq!((least(rule, Some(1)), least(rule, Some(3))), (2, 3), "{rule:?}");
        }
        for rule in [Lingvo, GshardPaper, ExpertChoice, VmoeRound, VmoeCeil4] {
            assert_eq!(least(rule, Some(9)), least(rule, None), "{rule:?}");
        }
    }

    #[test]
    fn below_one_is_refused() {
        // T C / E = 0.375, which these rules round down; twice that is 0.75, below 1 only when cut.
        for rule in [ExpertChoice, Floor, VmoeRound] {
            let error = rule.capacity(&input(3, 8, 1, 1.0)).unwrap_err();
            assert_eq!(error, CapacityError::BelowOne { got: 0.0 }, "{rule:?}");
        }
        for rule in [SwitchMesh, Flaxformer, Lingvo, Megatron, GshardPaper, VmoeCeil4] {
            assert!(rule.capacity(&input(3, 8, 1, 1.0)).is_ok(), "{rule:?}");
        }
        let error = Megatron.capacity(&input(3, 8, 0, 1.0)).unwrap_err().to_string();
        assert_eq!(error, "capacity must be at least 1, but comes to 0");
        let none = CapacityInput { min_capacity: Some(0), ..input(3, 8, 1, 1.0) };
        assert!(SwitchMesh.capacity(&none).is_err());
    }

    #[test]
    fn absurd_inputs_are_refused() {
        for factor in [-1.0, f64::NAN, f64::INFINITY] {
            let error = SwitchMesh.capacity(&input(8, 2, 1, factor)).unwrap_err().to_string();
            assert!(error.starts_with("capacity factor"), "{error}");
        }
        assert_eq!(SwitchMesh.capacity(&input(8, 2, 1, 0.0)), Ok(4));
        for (tokens, experts) in [(0, 2), (8, 0)] {
            let error = SwitchMesh.capacity(&input(tokens, experts, 1, 1.0)).unwrap_err();
            assert_eq!(error, CapacityError::Empty { tokens, experts });
        }
    }

    #[test]
    fn rules_read_both_spellings_and_write_one() {
        let kebab = r#"["switch-mesh","flaxformer","lingvo","megatron","gshard-paper","expert-choice","floor","vmoe-round","vmoe-ceil4"]"#;
        let rules: Vec<CapacityRule> = serde_json::from_str(kebab).unwrap();
        assert_eq!(serde_json::to_string(&rules).unwrap(), kebab);
        let snake: Vec<CapacityRule> = serde_json::from_str(&kebab.replace('-', "_")).unwrap();
        assert_eq!(snake, rules);
    }
}
