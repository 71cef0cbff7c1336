//! What a log may not say.

/// Why a decision was not taken into account.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LogError {
    /// Two lists of a token differ in length.
    #[error("{what}: {got} values, expected {expected}")]
    Length {
        /// The list.
        what: &'static str,
        /// Its length.
        got: usize,
        /// One per chosen expert, or at most one per expert.
        expected: usize,
    },
    /// An expert that the layer does not have.
    #[error("experts: {expert}, expected numbers below {below}")]
    Expert {
        /// The index.
        expert: usize,
        /// The number of experts.
        below: usize,
    },
    /// A token chose one expert twice.
    #[error("experts: {expert_k:?}, expected each expert once")]
    ExpertTwice {
        /// The choices.
        expert_k: Vec<usize>,
    },
    /// A number is NaN or infinite.
    #[error("{what}: expected finite numbers")]
    NotFinite {
        /// The list.
        what: &'static str,
    },
    /// The gate is no distribution.
    #[error("probs: sum {sum}, expected values of at least 0 that sum to 1")]
    Gate {
        /// Sum of the probabilities.
        sum: f64,
    },
    /// More labels than a table can hold.
    #[error("label: more than {most} different ones, expected a class of the token")]
    Labels {
        /// The most that are counted.
        most: usize,
    },
    /// A step that was over.
    #[error("step: {step} after {now}, expected steps that do not fall")]
    StepBack {
        /// The step of this decision.
        step: u64,
        /// The latest step.
        now: u64,
    },
    /// The same token twice in a layer of a step.
    #[error("token: {token} is there twice in layer {layer} of step {step}")]
    Twice {
        /// The step.
        step: u64,
        /// The layer.
        layer: String,
        /// The token.
        token: u64,
    },
    /// No decisions at all.
    #[error("no routing decisions, expected at least one")]
    Empty,
}
