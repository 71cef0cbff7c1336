//! Pictures that a run on images was not made for: hard ones of some of its classes (ImageNet-A, ImageNet-R) and
//! ones of no class (ImageNet-O).
//!
//! They are other images than those of the split, so no route has a clean counterpart that it could flip from.
//!
//! Axis letters: `b` images of a batch, `n` images, `u` images of no class, `v` classes.

use super::record::{HardSet, UnknownSet};
use super::routes::{evaluate, evaluate_seeing};
use super::{Clean, Study};
use crate::cli::RobustArgs;
use crate::error::Misuse;
use crate::run::Prepared;
use crate::subject::Subject;
use anyhow::Result;
use moe_core::metrics::{Detection, MetricError, right_among, unknown_score};
use moe_data::corrupt::published::{read_folder, read_unknown};
use moe_data::{DataError, ImageSet, Images, Split};
use moe_routers::convert::to_host;
use ndarray::{ArrayView1, ArrayView2};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The pictures of a directory.
struct Pictures {
    flag: &'static str,
    name: String,
    set: ImageSet,
}

/// What the flags ask for, read before anything is evaluated.
#[derive(Default)]
pub(super) struct Sets {
    hard: Vec<Pictures>,
    unknown: Vec<Pictures>,
}

type Reader = fn(&Path, &Images) -> Result<ImageSet, DataError>;

impl Sets {
    /// Reads the directories of `--hard` and `--unknown`.
    ///
    /// # Errors
    /// A run on anything but images, two directories of one name, and what a directory is refused for.
    pub(super) fn read(args: &RobustArgs, subject: &Subject) -> Result<Self, Misuse> {
        let Some(flag) = args.flag_of_sets() else { return Ok(Self::default()) };
        let Subject::Images(images, _) = subject else {
            return Err(Misuse::new(format!("{flag}: expected a run on labelled images")));
        };
        Ok(Self {
            hard: pictures(("--hard", &args.hard), (images, args.seed), read_folder)?,
            unknown: pictures(("--unknown", &args.unknown), (images, args.seed), read_unknown)?,
        })
    }
}

fn pictures(
    (flag, dirs): (&'static str, &[PathBuf]),
    (images, seed): (&Images, u64),
    read: Reader,
) -> Result<Vec<Pictures>, Misuse> {
    let mut found: Vec<Pictures> = Vec::new();
    for dir in dirs {
        let name = name(dir);
        // Results go by these names.
        if found.iter().any(|other| other.name == name) {
            let what = format!("two directories are called {name}; expected different names");
            return Err(Misuse::new(format!("{flag}: {what}")));
        }
        // Folder by folder a batch would hold one class, whose experts run out of room, and `--batches` few.
        let set = read(dir, images).and_then(|set| set.shuffled(seed));
        let set = set.map_err(|error| refused(flag, error))?;
        found.push(Pictures { flag, name, set });
    }
    Ok(found)
}

fn refused(flag: &str, error: DataError) -> Misuse {
    Misuse::new(format!("{flag}: {:#}", anyhow::Error::new(error)))
}

/// The last part of a path, also of one that ends in dots.
fn name(dir: &Path) -> String {
    let whole = dir.canonicalize();
    let dir = whole.as_deref().unwrap_or(dir);
    dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned()
}

/// The clean evaluation, and how unknown each image is to the model, `[n]`, if that is asked for.
pub(super) fn evaluate_clean(
    prepared: &Prepared,
    part: (Split, Option<usize>),
    sets: &Sets,
) -> Result<(Clean, Vec<f64>)> {
    if sets.unknown.is_empty() {
        return Ok((evaluate(prepared, part)?, Vec::new()));
    }
    unknown_scores(prepared, part)
}

fn unknown_scores(prepared: &Prepared, part: (Split, Option<usize>)) -> Result<(Clean, Vec<f64>)> {
    let (clean, score_b) = by_batch(prepared, part, |_, logits_bv| unknown_score(logits_bv))?;
    let score_b: Vec<_> = score_b.into_iter().collect::<Result<_, MetricError>>()?;
    Ok((clean, score_b.into_iter().flatten().collect()))
}

/// Evaluates, and makes something of every batch: of the number of its first image and of its logits `[b, v]`.
fn by_batch<T>(
    prepared: &Prepared,
    part: (Split, Option<usize>),
    make: impl Fn(usize, ArrayView2<'_, f64>) -> T,
) -> Result<(Clean, Vec<T>)> {
    let made = RefCell::new((0, Vec::new()));
    let clean = evaluate_seeing(prepared, part, &|logits_bv| {
        let (seen, all) = &mut *made.borrow_mut();
        let logits_bv = to_host(logits_bv);
        all.push(make(*seen, logits_bv.view()));
        *seen += logits_bv.nrows();
    })?;
    Ok((clean, made.into_inner().1))
}

impl Study<'_> {
    /// Accuracy on every set of hard pictures, and how every set of unknown ones stands out.
    pub(super) fn sets(&self, sets: Sets) -> Result<(Vec<HardSet>, Vec<UnknownSet>)> {
        let hard = sets.hard.into_iter().map(|set| self.hard(set)).collect::<Result<_>>()?;
        let unknown = sets.unknown.into_iter().map(|set| self.unknown(set));
        Ok((hard, unknown.collect::<Result<_>>()?))
    }

    /// This run on pictures in the place of its split.
    fn on(&self, Pictures { flag, set, .. }: Pictures) -> Result<Prepared> {
        let Subject::Images(images, vision) = self.prepared.subject() else {
            unreachable!("pictures are of a run on pictures")
        };
        let images = images.with_split(self.split, set).map_err(|error| refused(flag, error))?;
        self.prepared.with_subject(Subject::Images(Arc::new(images), vision.clone()))
    }

    fn hard(&self, set: Pictures) -> Result<HardSet> {
        let label_n: Vec<usize> = set.set.labels().iter().map(|&label| label as usize).collect();
        let mut classes = label_n.clone();
        classes.sort_unstable();
        classes.dedup();
        let name = set.name.clone();
        let part = (self.split, self.args.batches);
        let (Clean { score, .. }, right_b) = by_batch(&self.on(set)?, part, |from, logits_bv| {
            right_among(logits_bv, &label_n[from..][..logits_bv.nrows()], &classes)
        })?;
        let right: usize = right_b.into_iter().sum::<Result<_, _>>()?;
        let accuracy_among = right as f64 / score.targets as f64;
        Ok(HardSet { name, classes: classes.len(), accuracy_among, score })
    }

    fn unknown(&self, set: Pictures) -> Result<UnknownSet> {
        let name = set.name.clone();
        let (_, unknown_u) = unknown_scores(&self.on(set)?, (self.split, self.args.batches))?;
        let known_n = ArrayView1::from(&self.known_n);
        let Detection { auroc, aupr, fpr95 } =
            Detection::of(ArrayView1::from(&unknown_u), known_n)?;
        let (images, known) = (unknown_u.len(), known_n.len());
        Ok(UnknownSet { name, images, known, auroc, aupr, fpr95 })
    }
}
