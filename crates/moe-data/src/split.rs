//! The three parts of a corpus, and one value for each of them.

use std::fmt;

/// A part of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// What a model is fitted to; the only part that vocabularies and unigram floors look at.
    Train,
    /// Held-out text for choices made during development.
    Valid,
    /// Held-out text for the number that is reported.
    Test,
}

impl Split {
    /// Every split, in the order in which a corpus lists them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// The name in reports and in file names: `train`, `valid` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One value for each split.
#[derive(Clone, Debug)]
pub(crate) struct BySplit<T> {
    pub(crate) train: T,
    pub(crate) valid: T,
    pub(crate) test: T,
}

impl<T> BySplit<T> {
    /// Makes the values in the order of [`Split::ALL`]; the first error ends it.
    pub(crate) fn try_from_fn<E>(mut make: impl FnMut(Split) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self {
            train: make(Split::Train)?,
            valid: make(Split::Valid)?,
            test: make(Split::Test)?,
        })
    }

    pub(crate) fn get_mut(&mut self, split: Split) -> &mut T {
        match split {
            Split::Train => &mut self.train,
            Split::Valid => &mut self.valid,
            Split::Test => &mut self.test,
        }
    }

    pub(crate) fn get(&self, split: Split) -> &T {
        match split {
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        }
    }
}
