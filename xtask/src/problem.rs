//! Errors that name the command that mends them.

use std::fmt;

/// What is wrong, and the command (or change) that mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What is missing or wrong, in one sentence.
    pub(crate) what: String,
    /// A command to type; several lines for several ways out.
    pub(crate) mend: String,
}

impl Problem {
    /// A problem and the way out of it.
    pub(crate) fn new(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), mend: mend.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.what)?;
        self.mend.lines().try_for_each(|line| write!(out, "\n  mend: {line}"))
    }
}

impl std::error::Error for Problem {}

/// Fails with a problem and the way out of it.
pub(crate) fn problem<T>(what: impl Into<String>, mend: impl Into<String>) -> anyhow::Result<T> {
    Err(Problem::new(what, mend).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_out_has_its_line() {
        let shown =
            Problem::new("no pip", "apt-get install python3-pip\nLIBTORCH=/x cargo xtask setup");
        assert_eq!(
            shown.to_string(),
            "no pip\n  mend: apt-get install python3-pip\n  mend: LIBTORCH=/x cargo xtask setup"
        );
    }
}
