//! What can be wrong with the arguments of a kernel.

/// An argument that does not fit; nothing was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A slice has another length than its axes ask for.
    #[error("{what} has {got} values, expected {expected}")]
    Length {
        /// The argument, with its axes.
        what: &'static str,
        /// Values that its axes ask for.
        expected: usize,
        /// Values it has.
        got: usize,
    },
    /// An optional matrix or bias is given where the shape has none, or the other way round.
    #[error("{what} is {}, and the shape says otherwise", if *.given { "given" } else { "missing" })]
    Presence {
        /// The argument, with its axes.
        what: &'static str,
        /// Whether it was given.
        given: bool,
    },
    /// An axis of no length.
    #[error("the number of {axis} is zero")]
    Empty {
        /// What the axis counts.
        axis: &'static str,
    },
    /// The product of axes, rounded up to whole panels, does not fit the address space.
    #[error("{what} of {axes:?} values is too large")]
    Overflow {
        /// The array.
        what: &'static str,
        /// Its axes.
        axes: [usize; 3],
    },
    /// The system refused the memory.
    #[error("no memory for {bytes} bytes of {what}")]
    Memory {
        /// The buffer.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The offsets do not begin at zero.
    #[error("offset_e starts at {start}, expected 0")]
    OffsetStart {
        /// The first offset.
        start: usize,
    },
    /// The rows of an expert end before they start.
    #[error("offset_e falls from {start} to {end} at expert {expert}")]
    OffsetFalls {
        /// The expert.
        expert: usize,
        /// Where its rows start.
        start: usize,
        /// Where they end.
        end: usize,
    },
    /// A row reads a token that is not there.
    #[error("row {row} reads token {token}, out of range: there are {tokens}")]
    Token {
        /// The row, counted over all experts.
        row: usize,
        /// The token it names.
        token: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A choice names an expert that is not there.
    #[error("choice {choice} is expert {expert}, out of range: there are {experts}")]
    Expert {
        /// The choice, counted over all tokens.
        choice: usize,
        /// The expert it names.
        expert: usize,
        /// Number of experts.
        experts: usize,
    },
    /// More choices than the kernel takes, or than there are experts.
    #[error("{got} choices per token, at most {most}")]
    Choices {
        /// Choices per token that were asked for.
        got: usize,
        /// The most possible.
        most: usize,
    },
    /// A target that is no column of the scores.
    #[error("row {row} has target {target}, out of range: there are {columns} columns")]
    Target {
        /// The row.
        row: usize,
        /// The column it names.
        target: i64,
        /// Columns of the scores.
        columns: usize,
    },
    /// More tokens than decoding takes.
    #[error("{got} tokens to decode, at most {most}: use `forward`")]
    Tokens {
        /// Tokens that were given.
        got: usize,
        /// The most possible.
        most: usize,
    },
    /// A hidden layer that no forward pass of this plan and bank has left, or that a backward pass
    /// has used.
    #[error("the saved hidden layer has {got} rows of this bank, the plan {expected}")]
    Saved {
        /// Rows of the plan.
        expected: usize,
        /// Rows of this bank that are saved.
        got: usize,
    },
    /// Weights that were never packed.
    #[error("the weights are not packed: call `Packed::repack` first")]
    NotPacked,
}

impl KernelError {
    /// Refuses a slice of another length than `expected`.
    pub(crate) fn check(
        what: &'static str,
        expected: usize,
        got: usize,
    ) -> Result<(), KernelError> {
        if expected == got { Ok(()) } else { Err(Self::Length { what, expected, got }) }
    }
}
