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
    /// Two arrays do not fit each other, or one has not the shape it must have.
    #[error("{what}: shape {got:?}, expected {expected:?}")]
    Shape {
        /// The array.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// An index, label or count is outside its domain.
    #[error("value {index} of {what} is {value}, out of range 0..{below}")]
    Index {
        /// The array.
        what: &'static str,
        /// Where, in row-major order.
        index: usize,
        /// The value.
        value: usize,
        /// The first value that is too large.
        below: usize,
    },
    /// A setting is outside its domain.
    #[error("{key}: {value} is not {allowed}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        allowed: &'static str,
    },
    /// An array that these settings need is not there.
    #[error("{what} is missing")]
    Missing {
        /// The array.
        what: &'static str,
    },
    /// An iterative solver stopped before it was done.
    #[error("{what} did not converge")]
    NotConverged {
        /// What was solved.
        what: &'static str,
    },
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

    pub(crate) fn check_shape(
        what: &'static str,
        got: &[usize],
        expected: &[usize],
    ) -> Result<(), Self> {
        if got == expected {
            return Ok(());
        }
        Err(Self::Shape { what, got: got.to_vec(), expected: expected.to_vec() })
    }

    pub(crate) fn check_below<'a>(
        what: &'static str,
        values: impl IntoIterator<Item = &'a usize>,
        below: usize,
    ) -> Result<(), Self> {
        match values.into_iter().enumerate().find(|(_, value)| **value >= below) {
            Some((index, &value)) => Err(Self::Index { what, index, value, below }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_setting(
        key: &'static str,
        value: f64,
        allowed: &'static str,
        holds: bool,
    ) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::Setting { key, value, allowed }) }
    }
}
