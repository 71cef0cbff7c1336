//! Sparse plans: which rows every expert reads, in compressed-row form keyed by expert.
//!
//! Axis letters: `g` groups, `t` tokens per group, `e` experts, `n` routed rows.

use super::PlanError;
use std::ops::Range;

/// The rows every expert reads, over all groups.
///
/// A row is a token sent to an expert with a weight. Rows are sorted by expert, then by group, then
/// by arrival in the expert's queue. A token counts over all groups: token `t` of group `g` is
/// `g * tokens + t`. Weights are any finite numbers; some papers combine with raw scores, which may
/// be negative.
#[derive(Debug, Clone, PartialEq)]
pub struct SparsePlan {
    pub(super) groups: usize,
    pub(super) tokens: usize,
    /// Where the rows of each expert start, and the end, `[e + 1]`.
    pub(super) offsets: Vec<usize>,
    pub(super) token_n: Vec<usize>,
    pub(super) weight_n: Vec<f64>,
}

impl SparsePlan {
    /// A plan of its parts: `offsets` `[e + 1]`, and the token and weight of every row, `[n]`.
    ///
    /// # Errors
    ///
    /// If there are no experts, `offsets` does not divide the rows, `weight_n` has another length
    /// than `token_n`, a token is out of range or given twice to an expert, the rows of an expert
    /// are not sorted by group, or a weight is not finite.
    pub fn from_parts(
        groups: usize,
        tokens: usize,
        offsets: Vec<usize>,
        token_n: Vec<usize>,
        weight_n: Vec<f64>,
    ) -> Result<Self, PlanError> {
        let plan = Self { groups, tokens, offsets, token_n, weight_n };
        plan.check_offsets()?;
        PlanError::check_shape("weight_n", &[plan.token_n.len()], &[plan.weight_n.len()])?;
        plan.check_rows()?;
        Ok(plan)
    }

    fn check_offsets(&self) -> Result<(), PlanError> {
        let (&[start, .., end], rows) = (self.offsets.as_slice(), self.token_n.len()) else {
            return Err(PlanError::NoExperts);
        };
        if start != 0 {
            return Err(PlanError::OffsetStart { start });
        }
        for (expert, span) in self.offsets.windows(2).enumerate() {
            if span[0] > span[1] {
                return Err(PlanError::OffsetFalls { expert, start: span[0], end: span[1] });
            }
        }
        if end != rows { Err(PlanError::OffsetEnd { end, rows }) } else { Ok(()) }
    }

    fn check_rows(&self) -> Result<(), PlanError> {
        // The expert that read each token last: experts come one after the other.
        let mut reader_t = vec![usize::MAX; self.all_tokens()];
        for expert in 0..self.experts() {
            let mut group = 0;
            for row in self.span(expert) {
                self.check_row(row, expert)?;
                let token = self.token_n[row];
                if token / self.tokens < group {
                    return Err(PlanError::GroupOrder { row, expert, token });
                }
                group = token / self.tokens;
                if std::mem::replace(&mut reader_t[token], expert) == expert {
                    return Err(PlanError::Twice { expert, token });
                }
            }
        }
        Ok(())
    }

    fn check_row(&self, row: usize, expert: usize) -> Result<(), PlanError> {
        let (token, weight, tokens) = (self.token_n[row], self.weight_n[row], self.all_tokens());
        if token >= tokens {
            return Err(PlanError::Token { row, expert, token, tokens });
        }
        if !weight.is_finite() {
            return Err(PlanError::Weight { row, expert, token, weight });
        }
        Ok(())
    }

    /// Number of groups, `g`.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Tokens per group, `t`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of all groups, `g * t`.
    pub fn all_tokens(&self) -> usize {
        self.groups * self.tokens
    }

    /// Number of experts, `e`.
    pub fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Where the rows of each expert start, and the end, `[e + 1]`.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// The token of every row, `[n]`, counted over all groups.
    pub fn token_n(&self) -> &[usize] {
        &self.token_n
    }

    /// The weight of every row, `[n]`.
    pub fn weight_n(&self) -> &[f64] {
        &self.weight_n
    }

    /// The rows of an expert, by number.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    pub fn span(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    /// The rows of an expert as `(token, weight)`.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    pub fn rows(&self, expert: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.span(expert).map(|row| (self.token_n[row], self.weight_n[row]))
    }

    /// Rows every expert reads, `[e]`.
    pub fn load(&self) -> Vec<usize> {
        (0..self.experts()).map(|expert| self.span(expert).len()).collect()
    }

    /// Rows every expert reads from one group, `[e]`.
    pub fn group_load(&self, group: usize) -> Vec<usize> {
        (0..self.experts()).map(|expert| self.group_rows(expert, group).count()).collect()
    }

    /// The rows of an expert from one group, as `(token, weight)` with the token counted in it.
    pub(super) fn group_rows(
        &self,
        expert: usize,
        group: usize,
    ) -> impl Iterator<Item = (usize, f64)> + '_ {
        let first = group * self.tokens;
        self.rows(expert)
            .filter(move |(token, _)| (first..first + self.tokens).contains(token))
            .map(move |(token, weight)| (token - first, weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two groups of two tokens, three experts: expert 0 reads tokens 1 and 2, expert 2 tokens 1,
    /// 3 and 2.
    fn plan() -> SparsePlan {
        let weight_n = vec![0.5, 1.0, 0.25, -2.0, 0.0];
        SparsePlan::from_parts(2, 2, vec![0, 2, 2, 5], vec![1, 2, 1, 3, 2], weight_n).unwrap()
    }

    #[test]
    fn accessors_by_hand() {
        let plan = plan();
        assert_eq!((plan.groups(), plan.tokens(), plan.all_tokens(), plan.experts()), (2, 2, 4, 3));
        assert_eq!(plan.offsets(), [0, 2, 2, 5]);
        assert_eq!(plan.token_n(), [1, 2, 1, 3, 2]);
        assert_eq!(plan.weight_n(), [0.5, 1.0, 0.25, -2.0, 0.0]);
        assert_eq!((plan.span(0), plan.span(1), plan.span(2)), (0..2, 2..2, 2..5));
        assert_eq!(plan.rows(2).collect::<Vec<_>>(), [(1, 0.25), (3, -2.0), (2, 0.0)]);
        assert_eq!(plan.rows(1).count(), 0);
        assert_eq!(plan.load(), [2, 0, 3]);
        assert_eq!((plan.group_load(0), plan.group_load(1)), (vec![1, 0, 1], vec![1, 0, 2]));
    }

    #[test]
    fn from_parts_refuses_each_broken_invariant() {
        let refused = |offsets: &[usize], token_n: &[usize], weight_n: &[f64]| {
            let parts = (offsets.to_vec(), token_n.to_vec(), weight_n.to_vec());
            SparsePlan::from_parts(2, 2, parts.0, parts.1, parts.2).unwrap_err()
        };
        assert_eq!(refused(&[], &[], &[]), PlanError::NoExperts);
        assert_eq!(refused(&[0], &[], &[]), PlanError::NoExperts);
        assert_eq!(refused(&[1, 1], &[0], &[1.0]), PlanError::OffsetStart { start: 1 });
        let falls = PlanError::OffsetFalls { expert: 1, start: 2, end: 1 };
        assert_eq!(refused(&[0, 2, 1, 2], &[0, 1], &[1.0, 1.0]), falls);
        assert_eq!(
            refused(&[0, 1], &[0, 1], &[1.0, 1.0]),
            PlanError::OffsetEnd { end: 1, rows: 2 }
        );
        assert_eq!(refused(&[0, 2], &[0], &[1.0]), PlanError::OffsetEnd { end: 2, rows: 1 });
        let shape = PlanError::Shape { what: "weight_n", expected: vec![1], got: vec![2] };
        assert_eq!(refused(&[0, 1], &[0], &[1.0, 1.0]), shape);
        let token = PlanError::Token { row: 1, expert: 1, token: 4, tokens: 4 };
        assert_eq!(refused(&[0, 1, 2], &[0, 4], &[1.0, 1.0]), token);
        let order = PlanError::GroupOrder { row: 2, expert: 1, token: 1 };
        assert_eq!(refused(&[0, 1, 3], &[0, 2, 1], &[1.0; 3]), order);
        let twice = PlanError::Twice { expert: 1, token: 0 };
        assert_eq!(refused(&[0, 1, 4], &[0, 0, 1, 0], &[1.0; 4]), twice);
        for weight in [f64::INFINITY, f64::NEG_INFINITY] {
            let error = PlanError::Weight { row: 1, expert: 0, token: 3, weight };
            assert_eq!(refused(&[0, 2], &[0, 3], &[1.0, weight]), error);
        }
        assert!(matches!(refused(&[0, 1], &[0], &[f64::NAN]), PlanError::Weight { .. }));
    }

    #[test]
    fn errors_name_the_culprit() {
        let weight = PlanError::Weight { row: 7, expert: 2, token: 5, weight: f64::NAN };
        let text = "row 7, expert 2 for token 5, has weight NaN, which is not finite";
        assert_eq!(weight.to_string(), text);
        let token = PlanError::Token { row: 7, expert: 2, token: 5, tokens: 4 };
        let text = "row 7 of expert 2 reads token 5, out of range: there are 4";
        assert_eq!(token.to_string(), text);
    }

    #[test]
    fn a_plan_may_be_empty_of_rows_and_of_tokens() {
        for (groups, tokens) in [(0, 0), (1, 0), (0, 3), (2, 3)] {
            let plan = SparsePlan::from_parts(groups, tokens, vec![0, 0], vec![], vec![]).unwrap();
            assert_eq!((plan.load(), plan.all_tokens()), (vec![0], groups * tokens));
        }
        let token = PlanError::Token { row: 0, expert: 0, token: 0, tokens: 0 };
        assert_eq!(SparsePlan::from_parts(1, 0, vec![0, 1], vec![0], vec![1.0]), Err(token));
    }
}
