//! Which attacks at which levels a command asks for.

use crate::cli::RobustArgs;
use crate::error::Misuse;
use crate::subject::Subject;
use crate::which::SplitArg;
use moe_data::corrupt::{ImageCorruption, TextAttack};
use moe_train::ImageAttack;
use std::fmt;

/// The name of all corruptions of pictures.
pub(super) const CORRUPTIONS: &str = "corruptions";

/// What is done to the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Attack {
    /// To a text before it is cut into tokens; the level is a rate.
    Text(TextAttack),
    /// To pictures; the level is a severity.
    Corruption(ImageCorruption),
    /// To pictures, by what the model says of them; the level is a budget.
    Gradient(&'static str),
}

/// An attack at a level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cell {
    pub(super) attack: Attack,
    pub(super) level: f64,
}

impl Attack {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text(attack) => attack.name(),
            Self::Corruption(corruption) => corruption.name(),
            Self::Gradient(name) => name,
        }
    }

    /// Every attack that these data can be put to.
    fn all(subject: &Subject) -> Vec<Self> {
        if matches!(subject, Subject::Text(_)) {
            TextAttack::ALL.map(Self::Text).to_vec()
        } else if matches!(subject, Subject::Images(..)) {
            let corruptions = ImageCorruption::ALL.map(Self::Corruption);
            corruptions.into_iter().chain(ImageAttack::NAMES.map(Self::Gradient)).collect()
        } else {
            Vec::new()
        }
    }

    fn levels(self, args: &RobustArgs) -> Vec<f64> {
        match self {
            Self::Text(_) => args.rates.clone(),
            Self::Corruption(_) => {
                args.severities.iter().map(|&severity| f64::from(severity)).collect()
            }
            Self::Gradient(_) => args.budgets.iter().map(|&budget| f64::from(budget)).collect(),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.attack.name(), self.level)
    }
}

/// The cells of a command, attack by attack; none where other sets are asked for and no attack.
///
/// # Errors
/// An attack that these data know nothing of, or a rate that is no share.
pub(super) fn cells(args: &RobustArgs, subject: &Subject) -> Result<Vec<Cell>, Misuse> {
    if let Some(rate) = args.rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return Err(Misuse::new(format!("--rates {rate}: a rate lies in 0..=1")));
    }
    if args.corrupted.is_some() && !matches!(args.split, SplitArg::Test) {
        return Err(Misuse::new("--corrupted: published sets are of the test split: --split test"));
    }
    let all = Attack::all(subject);
    if all.is_empty() {
        return Err(Misuse::new("moe robust: knows language models and image classifiers alone"));
    }
    let wanted = |name: &String| {
        let group = |attack: &Attack| {
            *name == attack.name() || name == CORRUPTIONS && matches!(attack, Attack::Corruption(_))
        };
        let found: Vec<Attack> = all.iter().copied().filter(group).collect();
        let names: Vec<_> = all.iter().map(|attack| attack.name()).collect();
        let unknown =
            || Misuse::new(format!("--attacks {name}: these data know {}", names.join(", ")));
        if found.is_empty() { Err(unknown()) } else { Ok(found) }
    };
    let asked: Vec<Vec<Attack>> = args.attacks.iter().map(wanted).collect::<Result<_, _>>()?;
    let attacks = match asked.is_empty() {
        true if args.flag_of_sets().is_some() => Vec::new(),
        true => all.clone(),
        false => asked.concat(),
    };
    let of =
        |attack: Attack| attack.levels(args).into_iter().map(move |level| Cell { attack, level });
    Ok(attacks.into_iter().flat_map(of).collect())
}
