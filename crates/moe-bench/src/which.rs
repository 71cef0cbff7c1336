//! What of a run is evaluated: which checkpoint, on which part of the data.

use crate::error::Misuse;
use crate::run::RunDir;
use anyhow::Result;
use clap::ValueEnum;
use moe_data::Split;
use moe_train::checkpoint;
use std::path::PathBuf;
use std::str::FromStr;

/// One of the checkpoints of a run, as `newest`, `best` or a number of steps on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// That of the most steps.
    #[default]
    Newest,
    /// That of the evaluation with the lowest validation loss.
    Best,
    /// That after so many steps.
    Step(u64),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "newest" => Ok(Self::Newest),
            "best" => Ok(Self::Best),
            _ => text
                .parse()
                .map(Self::Step)
                .map_err(|_| "expected `newest`, `best` or a number of steps".to_owned()),
        }
    }
}

impl Which {
    /// Its directory.
    ///
    /// # Errors
    /// No such checkpoint; a newest one whose manifest cannot be read.
    pub(crate) fn of(self, run: &RunDir) -> Result<PathBuf> {
        let place = run.checkpoints();
        let all = checkpoint::all(&place)?;
        let Some((newest, newest_dir)) = all.last() else {
            return Err(Misuse::new(format!("{}: no checkpoint yet", place.display())).into());
        };
        let step = match self {
            Self::Newest => *newest,
            Self::Step(step) => step,
            Self::Best => match checkpoint::manifest(newest_dir)?.progress.best {
                Some(best) => best.step,
                None => {
                    let what = "no evaluation before its newest checkpoint, so none is the best";
                    return Err(Misuse::new(format!("{}: {what}", place.display())).into());
                }
            },
        };
        if let Some((_, dir)) = all.iter().find(|(other, _)| *other == step) {
            return Ok(dir.clone());
        }
        let steps: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
        let why = if self == Self::Best { ", the best one (train.keep_best keeps it)" } else { "" };
        let (place, steps) = (place.display(), steps.join(", "));
        Err(Misuse::new(format!("{place}: no checkpoint of step {step}{why}; there are {steps}"))
            .into())
    }
}

/// Part of the data to evaluate on.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SplitArg {
    /// The validation split.
    Valid,
    /// The test split.
    Test,
}

impl From<SplitArg> for Split {
    fn from(split: SplitArg) -> Self {
        match split {
            SplitArg::Valid => Self::Valid,
            SplitArg::Test => Self::Test,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_are_read() {
        let read = |text: &str| text.parse::<Which>();
        assert_eq!([read("newest"), read("best")], [Ok(Which::Newest), Ok(Which::Best)]);
        assert_eq!(read("40"), Ok(Which::Step(40)));
        assert!(read("-1").unwrap_err().starts_with("expected `newest`"));
    }
}
