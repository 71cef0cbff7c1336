//! Why a metric is not defined.

/// Values of which a metric is not defined.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MetricError {
    /// There is nothing to measure.
    #[error("{what} are empty: bad shape")]
    Empty {
        /// The array.
        what: &'static str,
    },
    /// A value is outside its domain.
    #[error("value {index} of {what} is {value}, out of range")]
    Range {
        /// The array.
        what: &'static str,
        /// Where, in row-major order.
        index: usize,
        /// The value.
        value: f64,
    },
    /// A value is infinite or NaN.
    #[error("value {index} of {what} is {value}, not finite")]
    NotFinite {
        /// The array.
        what: &'static str,
        /// Where, in row-major order.
        index: usize,
        /// The value.
        value: f64,
    },
    /// No expert received anything.
    #[error("the total load is zero")]
    NoLoad,
    /// The padding does not fit the tokens.
    #[error("padding_t has shape [{got}], but there are {tokens} tokens")]
    PaddingShape {
        /// Entries of the padding.
        got: usize,
        /// Tokens.
        tokens: usize,
    },
    /// Every token is padding.
    #[error("every token is padding")]
    AllPadding,
}

impl MetricError {
    pub(crate) fn check_not_empty(what: &'static str, len: usize) -> Result<(), Self> {
        if len == 0 { Err(Self::Empty { what }) } else { Ok(()) }
    }

    pub(crate) fn check_finite<'a>(
        what: &'static str,
        values: impl IntoIterator<Item = &'a f64>,
    ) -> Result<(), Self> {
        match values.into_iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((index, &value)) => Err(Self::NotFinite { what, index, value }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_range<'a>(
        what: &'static str,
        values: impl IntoIterator<Item = &'a f64>,
        max: f64,
    ) -> Result<(), Self> {
        match values.into_iter().enumerate().find(|(_, value)| !(0.0..=max).contains(*value)) {
            Some((index, &value)) => Err(Self::Range { what, index, value }),
            None => Ok(()),
        }
    }
}
