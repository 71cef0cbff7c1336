//! What can be wrong with a plan.

/// A plan, or the choices it is made of, that broke one of its invariants.
///
/// Rows count over the whole plan, tokens over all groups.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// A plan without experts says nothing.
    #[error("a plan needs at least one expert")]
    NoExperts,
    /// A stack of no groups has neither tokens nor experts.
    #[error("a stack needs at least one group")]
    NoGroups,
    /// The first expert's rows do not start at 0.
    #[error("offsets: expert 0 starts at row {start}, not at row 0")]
    OffsetStart {
        /// Where they start.
        start: usize,
    },
    /// An expert's rows end before they start.
    #[error("offsets: expert {expert} starts at row {start} and ends at row {end}")]
    OffsetFalls {
        /// The expert.
        expert: usize,
        /// Its first row.
        start: usize,
        /// The row after its last.
        end: usize,
    },
    /// The last expert's rows do not end with the plan's.
    #[error("offsets: the last expert ends at row {end}, but there are {rows} rows")]
    OffsetEnd {
        /// Where they end.
        end: usize,
        /// Rows of the plan.
        rows: usize,
    },
    /// An array has another shape than the one it goes with.
    #[error("{what} has shape {got:?}, but {expected:?} was expected")]
    Shape {
        /// The array.
        what: &'static str,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A row names a token that does not exist.
    #[error("row {row} of expert {expert} reads token {token}, out of range: there are {tokens}")]
    Token {
        /// The row.
        row: usize,
        /// The expert that reads it.
        expert: usize,
        /// The token it names.
        token: usize,
        /// How many there are.
        tokens: usize,
    },
    /// A choice names an expert that does not exist.
    #[error("choice {rank} of token {token} is expert {expert}, out of range: there are {experts}")]
    Expert {
        /// The token.
        token: usize,
        /// The rank of the choice.
        rank: usize,
        /// The expert it names.
        expert: usize,
        /// How many there are.
        experts: usize,
    },
    /// One expert received the same token twice.
    #[error("expert {expert} reads token {token} twice")]
    Twice {
        /// The expert.
        expert: usize,
        /// The token.
        token: usize,
    },
    /// The rows of an expert are not sorted by group.
    #[error(
        "row {row} of expert {expert} reads token {token}, of a group before that of the row above"
    )]
    GroupOrder {
        /// The row.
        row: usize,
        /// The expert that reads it.
        expert: usize,
        /// The token it names.
        token: usize,
    },
    /// The slots of a soft plan do not divide evenly among its experts.
    #[error("{slots} slots do not divide among experts of {slots_per_expert} slots each")]
    Slots {
        /// Slots of the plan.
        slots: usize,
        /// Slots of an expert.
        slots_per_expert: usize,
    },
    /// A weight is infinite or NaN.
    #[error(
        "row {row}, expert {expert} for token {token}, has weight {weight}, which is not finite"
    )]
    Weight {
        /// The row.
        row: usize,
        /// The expert.
        expert: usize,
        /// The token.
        token: usize,
        /// The weight.
        weight: f64,
    },
}

impl PlanError {
    /// Refuses a shape other than the expected one.
    pub(crate) fn check_shape(
        what: &'static str,
        expected: &[usize],
        got: &[usize],
    ) -> Result<(), Self> {
        if expected == got {
            return Ok(());
        }
        Err(Self::Shape { what, expected: expected.to_vec(), got: got.to_vec() })
    }
}
