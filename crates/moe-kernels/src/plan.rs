//! Which rows every expert reads: a plan sorted by expert, checked once.
//!
//! Axis letters: `e` experts, `n` routed rows, `t` tokens.

use std::ops::Range;

use crate::KernelError;

/// The rows of all experts. A row is a token sent to an expert with a weight; a token may have any
/// number of rows, none too.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    tokens: usize,
    offset_e: &'a [usize],
    token_n: &'a [u32],
    weight_n: &'a [f32],
}

impl<'a> Plan<'a> {
    /// A plan over `tokens` tokens: where the rows of each expert start, and the end, `[e + 1]`,
    /// and the token and weight of every row, `[n]`.
    ///
    /// # Errors
    ///
    /// If there are no experts, the offsets do not rise from zero to the number of rows, the two
    /// lists of rows differ in length, or a token is out of range.
    pub fn new(
        tokens: usize,
        offset_e: &'a [usize],
        token_n: &'a [u32],
        weight_n: &'a [f32],
    ) -> Result<Self, KernelError> {
        check_offsets(offset_e, token_n.len())?;
        KernelError::check("weight_n", token_n.len(), weight_n.len())?;
        let outside = |(_, token): &(usize, &u32)| **token as usize >= tokens;
        match token_n.iter().enumerate().find(outside) {
            Some((row, &token)) => Err(KernelError::Token { row, token: token as usize, tokens }),
            None => Ok(Self { tokens, offset_e, token_n, weight_n }),
        }
    }

    /// Number of tokens, `t`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of experts, `e`.
    pub fn experts(&self) -> usize {
        self.offset_e.len() - 1
    }

    /// Number of rows, `n`.
    pub fn rows(&self) -> usize {
        self.token_n.len()
    }

    /// The rows of an expert, by number.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    pub fn span(&self, expert: usize) -> Range<usize> {
        self.offset_e[expert]..self.offset_e[expert + 1]
    }

    /// The token of every row, `[n]`.
    pub fn token_n(&self) -> &'a [u32] {
        self.token_n
    }

    /// The weight of every row, `[n]`.
    pub fn weight_n(&self) -> &'a [f32] {
        self.weight_n
    }
}

fn check_offsets(offset_e: &[usize], rows: usize) -> Result<(), KernelError> {
    let &[start, .., end] = offset_e else {
        return Err(KernelError::Empty { axis: "experts" });
    };
    if start != 0 {
        return Err(KernelError::OffsetStart { start });
    }
    for (expert, span) in offset_e.windows(2).enumerate() {
        if span[0] > span[1] {
            return Err(KernelError::OffsetFalls { expert, start: span[0], end: span[1] });
        }
    }
    KernelError::check("token_n", end, rows)
}
