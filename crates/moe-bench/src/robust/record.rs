//! `robustness.json` of a run.
//!
//! Axis letters: `l` sparse layers, `k` corruptions, `s` severities.

use super::cells::Cell;
use crate::cli::RobustArgs;
use crate::run::Prepared;
use anyhow::{Context, Result};
use moe_core::metrics::CorruptionError;
use moe_data::Split;
use moe_data::corrupt::ImageCorruption;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// Version of the layout; raised when a field changes its meaning.
pub(super) const SCHEMA: &str = "moe.robustness/1";

/// Name of the file.
pub(super) const FILE: &str = "robustness.json";

/// What a run made of damaged data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Robustness {
    /// Always `moe.robustness/1`.
    pub schema: String,
    /// Steps that the weights have seen.
    pub step: u64,
    /// `valid` or `test`.
    pub split: String,
    /// At most this many batches; absent for the whole split.
    pub batches: Option<usize>,
    /// Seed of the damage.
    pub seed: u64,
    /// `tokens` or `images`: what a score is a mean over.
    pub unit: String,
    /// On clean data.
    pub clean: Score,
    /// Under attack.
    pub rows: Vec<Row>,
    /// What was asked for and not run.
    pub not_run: Vec<NotRun>,
    /// On hard pictures of some of the classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hard: Vec<HardSet>,
    /// On pictures of no class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<UnknownSet>,
    /// Corruption error against another model, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mce: Option<MeanCorruption>,
}

/// How well a model does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean cross-entropy, nats.
    pub loss: f64,
    /// `exp(loss)`, of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Share of images that get their label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Targets that these are means over.
    pub targets: usize,
}

/// One attack at one level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the attack.
    pub attack: String,
    /// Rate, severity or budget.
    pub level: f64,
    /// Under attack.
    pub score: Score,
    /// The same data clean, where they are not all that `clean` of the run saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<Score>,
    /// Share of the places that the attack changed: words or letters; of attacks on images, share of the
    /// predictions that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<f64>,
    /// Share of tokens whose set of experts is another, `[l]`; empty where a router decides nothing.
    pub flip_rate_l: Vec<f64>,
    /// Mean intersection over union of the sets of experts, `[l]`.
    pub iou_l: Vec<f64>,
    /// Tokens of a layer that were compared.
    pub compared: usize,
    /// How tokens found each other: `position`, `unchanged tokens`, or `not: other images`.
    pub aligned: String,
}

/// What was not run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotRun {
    /// Name of the attack.
    pub attack: String,
    /// Its level.
    pub level: f64,
    /// Why.
    pub reason: String,
}

/// Accuracy on pictures of some of the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HardSet {
    /// Name of the directory.
    pub name: String,
    /// Classes that it has pictures of.
    pub classes: usize,
    /// Share of pictures whose label has the largest logit among these classes.
    pub accuracy_among: f64,
    /// Among all classes of the run.
    pub score: Score,
}

/// How well `-max softmax` tells pictures of no class from the images of the split; see
/// [`moe_core::metrics::Detection`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnknownSet {
    /// Name of the directory.
    pub name: String,
    /// Its pictures, the positive class.
    pub images: usize,
    /// Images of the split beside them.
    pub known: usize,
    /// Area under the ROC curve.
    pub auroc: f64,
    /// Average precision.
    pub aupr: f64,
    /// Share of the split's images taken for unknown where about 95 % of the unknown ones are found.
    pub fpr95: f64,
}

/// Corruption errors as shares of another model's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeanCorruption {
    /// The other run.
    pub against: String,
    /// Corruptions that both have, `[k]`.
    pub corruption_k: Vec<String>,
    /// Severities summed over.
    pub severities: Vec<f64>,
    /// Error over the other's error, `[k]`.
    pub ce_k: Vec<f64>,
    /// Their mean; over fewer than 15 corruptions it is no published mCE.
    pub mce: f64,
}

impl Robustness {
    /// Of the clean evaluation alone.
    pub(super) fn new(args: &RobustArgs, prepared: &Prepared, clean: Score) -> Self {
        Self {
            schema: SCHEMA.into(),
            step: prepared.steps_taken(),
            split: Split::from(args.split).name().into(),
            batches: args.batches,
            seed: args.seed,
            unit: prepared.subject().unit().into(),
            clean,
            rows: Vec::new(),
            not_run: Vec::new(),
            hard: Vec::new(),
            unknown: Vec::new(),
            mce: None,
        }
    }

    /// The file in a run's directory, if there is one.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let unreadable = || format!("cannot read {}; remove it to begin anew", path.display());
        let text = fs::read_to_string(&path).with_context(unreadable)?;
        serde_json::from_str(&text).with_context(unreadable).map(Some)
    }

    /// Takes over rows that were measured before on the same terms. Cells that were not run get another try.
    pub(super) fn keep_rows(&mut self, before: Option<Self>, cells: &[Cell]) {
        let Some(before) = before.filter(|before| before.terms() == self.terms()) else { return };
        let asked = |other: &NotRun| cells.iter().any(|cell| other.is(cell));
        self.not_run = before.not_run.into_iter().filter(|other| !asked(other)).collect();
        self.rows = before.rows;
        (self.hard, self.unknown) = (before.hard, before.unknown);
        self.mce = before.mce;
    }

    /// Adds what other sets gave, in the place of what earlier commands found on sets of their names.
    pub(super) fn put_sets(&mut self, hard: Vec<HardSet>, unknown: Vec<UnknownSet>) {
        self.hard.retain(|old| hard.iter().all(|new| new.name != old.name));
        self.hard.extend(hard);
        self.unknown.retain(|old| unknown.iter().all(|new| new.name != old.name));
        self.unknown.extend(unknown);
    }

    /// What has to be equal for rows to stand side by side.
    fn terms(&self) -> impl PartialEq + '_ {
        let Self { schema, step, split, batches, seed, clean, .. } = self;
        (schema, step, split, batches, seed, clean)
    }

    pub(super) fn has(&self, cell: &Cell) -> bool {
        self.rows.iter().any(|row| row.attack == cell.attack.name() && row.level == cell.level)
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let json = serde_json::to_string_pretty(self)? + "\n";
        // Beside it and renamed: a reader never sees half a file.
        let scratch = dir.join(format!("{FILE}.part"));
        let written = fs::write(&scratch, json).and_then(|()| fs::rename(&scratch, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// The error rate under an attack at a level.
    fn error(&self, attack: &str, level: f64) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.attack == attack && row.level == level)?;
        Some(1.0 - row.score.accuracy?)
    }

    /// Corruption errors against another run, over the corruptions that both have at all severities of this one.
    pub(super) fn against(&self, name: String, other: &Self) -> Result<MeanCorruption> {
        let names = ImageCorruption::ALL.map(ImageCorruption::name);
        let rows = self.rows.iter().filter(|row| names.contains(&row.attack.as_str()));
        let mut severities: Vec<f64> = rows.map(|row| row.level).collect();
        severities.sort_by(f64::total_cmp);
        severities.dedup();
        let errors = |of: &Self, attack: &str| -> Option<Vec<f64>> {
            severities.iter().map(|&level| of.error(attack, level)).collect()
        };
        let both = |attack: &&str| Some((errors(self, attack)?, errors(other, attack)?));
        let (mut corruption_k, mut mine, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for (attack, (my_s, their_s)) in names.iter().filter_map(|a| Some((a, both(a)?))) {
            corruption_k.push((*attack).to_owned());
            mine.extend(my_s);
            theirs.extend(their_s);
        }
        let shape = (corruption_k.len(), severities.len());
        let [mine_ks, theirs_ks] = [mine, theirs]
            .map(|v| Array2::from_shape_vec(shape, v).expect("as many as the shape says"));
        let error = CorruptionError::of(mine_ks.view(), theirs_ks.view())
            .with_context(|| format!("no corruption error against {name}"))?;
        let CorruptionError { ce_k, mce } = error;
        Ok(MeanCorruption { against: name, corruption_k, severities, ce_k, mce })
    }
}

impl NotRun {
    pub(super) fn new(cell: &Cell, reason: String) -> Self {
        Self { attack: cell.attack.name().into(), level: cell.level, reason }
    }

    fn is(&self, cell: &Cell) -> bool {
        self.attack == cell.attack.name() && self.level == cell.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(errors: &[(&str, f64, f64)]) -> Robustness {
        let score = |error: f64| Score {
            loss: 1.0,
            perplexity: None,
            accuracy: Some(1.0 - error),
            targets: 8,
        };
        let row = |&(attack, level, error): &(&str, f64, f64)| Row {
            attack: attack.into(),
            level,
            score: score(error),
            clean: None,
            changed: None,
            flip_rate_l: vec![0.5],
            iou_l: vec![0.5],
            compared: 4,
            aligned: "position".into(),
        };
        Robustness {
            schema: SCHEMA.into(),
            step: 1,
            split: "test".into(),
            batches: None,
            seed: 0,
            unit: "images".into(),
            clean: score(0.125),
            rows: errors.iter().map(row).collect(),
            not_run: Vec::new(),
            hard: Vec::new(),
            unknown: Vec::new(),
            mce: None,
        }
    }

    /// fog: (0.25 + 0.5) / (0.5 + 0.5); snow: (0.5 + 0.5) / (0.25 + 0.25); frost is not in both, and attacks
    /// through gradients do not count.
    #[test]
    fn the_mean_corruption_error_by_hand() {
        let mine = found(&[
            ("fog", 1.0, 0.25),
            ("fog", 2.0, 0.5),
            ("snow", 1.0, 0.5),
            ("snow", 2.0, 0.5),
            ("frost", 1.0, 0.5),
            ("fgsm", 1.0, 1.0),
        ]);
        let other = found(&[
            ("fog", 1.0, 0.5),
            ("fog", 2.0, 0.5),
            ("snow", 1.0, 0.25),
            ("snow", 2.0, 0.25),
        ]);
        let got = mine.against("dense".into(), &other).unwrap();
        assert_eq!(got.corruption_k, ["snow", "fog"]);
        assert_eq!((got.ce_k, got.mce, got.severities), (vec![2.0, 0.75], 1.375, vec![1.0, 2.0]));
        assert!(mine.against("none".into(), &found(&[])).is_err());
    }

    #[test]
    fn rows_on_other_terms_are_not_kept() {
        let before = found(&[("fog", 1.0, 0.25)]);
        let mut now = found(&[]);
        now.keep_rows(Some(before.clone()), &[]);
        assert_eq!(now.rows, before.rows);
        let mut later = Robustness { step: 2, ..found(&[]) };
        later.keep_rows(Some(before), &[]);
        assert!(later.rows.is_empty());
    }

    /// A set that is measured again is there once; others stay, also through a command that measures none.
    #[test]
    fn sets_are_replaced_by_name() {
        let set = |name: &str, accuracy_among| HardSet {
            name: name.into(),
            classes: 2,
            accuracy_among,
            score: found(&[]).clean,
        };
        let mut before = found(&[]);
        before.put_sets(vec![set("a", 0.5), set("r", 0.25)], Vec::new());
        let mut now = found(&[]);
        now.keep_rows(Some(before), &[]);
        now.put_sets(vec![set("a", 0.75)], Vec::new());
        assert_eq!(now.hard, [set("r", 0.25), set("a", 0.75)]);
    }

    #[test]
    fn the_file_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Robustness::read(dir.path()).unwrap(), None);
        let found = found(&[("fog", 1.0, 0.1)]);
        found.write(dir.path()).unwrap();
        assert_eq!(Robustness::read(dir.path()).unwrap(), Some(found));
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = Robustness::read(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("robustness.json; remove it to begin anew"), "{error}");
    }
}
