//! `moe robust DIR`: what a trained model makes of damaged data, and how many of its routes change.
//!
//! A run is evaluated clean and under every attack at every level (a rate for text, a severity for pictures, a
//! budget for attacks through gradients), and on pictures of other sets. The rows go to `robustness.json` in the run's directory as they come,
//! and rows that are there already are kept, so an interrupted command goes on where it stopped. For the
//! directory of a comparison every run gets its file, and the comparison a table per router over seeds.

mod cells;
mod comparison;
mod images;
mod record;
mod routes;
mod sets;
mod table;
mod text;

pub use comparison::{Entry, Overview};
pub use record::{HardSet, MeanCorruption, NotRun, Robustness, Row, Score, UnknownSet};

use crate::cli::RobustArgs;
use crate::error::Misuse;
use crate::run::{Prepared, load};
use crate::say::{say, say_json};
use crate::subject::Subject;
use crate::which::Which;
use crate::worker::stop_flag;
use anyhow::Result;
use cells::{Cell, cells};
use indicatif::{ProgressBar, ProgressStyle};
use moe_data::Split;
use record::FILE;
use sets::Sets;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

/// `moe robust`.
///
/// # Errors
/// No run there, an attack that its data know nothing of, a value out of its range, pictures that cannot be read,
/// or a stop.
pub fn run(args: &RobustArgs) -> Result<()> {
    if args.against.is_some() && !args.corrupts() {
        return Err(Misuse::new("--against: compares corruptions; name some with --attacks").into());
    }
    let stop = stop_flag(|| {})?;
    let device = args.machine.ready()?;
    if args.dir.join("results.json").exists() {
        return comparison::run(args, device, &stop);
    }
    let found = of_run(args, (&args.dir, args.against.as_deref()), device, &stop)?;
    match args.json {
        true => say_json(&found)?,
        false => {
            let path = args.dir.join(FILE);
            say(&format!("{}\n{}\n", table::of_run(&found), path.display()))?;
        }
    }
    Ok(())
}

/// What there is to know of one run while it is attacked.
struct Study<'a> {
    args: &'a RobustArgs,
    dir: &'a Path,
    prepared: Prepared,
    split: Split,
    clean: Clean,
    /// How unknown each image of the clean evaluation is, `[n]`; empty unless that is asked for.
    known_n: Vec<f64>,
}

/// The clean evaluation.
struct Clean {
    score: Score,
    routes: routes::Routes,
}

/// A row, or why there is none.
type Outcome = Result<Row, String>;

/// Attacks one run, and measures its corruption error against another one if that is given.
fn of_run(
    args: &RobustArgs,
    (dir, against): (&Path, Option<&Path>),
    device: Device,
    stop: &Arc<AtomicBool>,
) -> Result<Robustness> {
    let prepared = load((dir, Which::Newest), &[], device, stop)?;
    let cells = cells(args, prepared.subject())?;
    let sets = Sets::read(args, prepared.subject())?;
    let baseline = against.map(|dir| baseline(args, dir, device, stop)).transpose()?;
    let split = args.split.into();
    let (clean, known_n) = sets::evaluate_clean(&prepared, (split, args.batches), &sets)?;
    let mut found = Robustness::new(args, &prepared, clean.score.clone());
    found.keep_rows(Robustness::read(dir)?, &cells);
    let study = Study { args, dir, prepared, split, clean, known_n };
    let bar = bar(dir, cells.len());
    for cell in &cells {
        bar.set_message(cell.to_string());
        if !found.has(cell) {
            match study.attack(cell)? {
                Ok(row) => found.rows.push(row),
                Err(reason) => found.not_run.push(NotRun::new(cell, reason)),
            }
            found.write(dir)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (hard, unknown) = study.sets(sets)?;
    found.put_sets(hard, unknown);
    if let Some((name, baseline)) = baseline {
        found.mce = Some(found.against(name, &baseline)?);
    }
    found.write(dir)?;
    Ok(found)
}

/// The name of a run, and its rows under the corruptions that `args` asks for.
fn baseline(
    args: &RobustArgs,
    dir: &Path,
    device: Device,
    stop: &Arc<AtomicBool>,
) -> Result<(String, Robustness)> {
    let mut args = args.clone();
    args.attacks.retain(|name| !moe_train::ImageAttack::NAMES.contains(&name.as_str()));
    (args.hard, args.unknown) = (Vec::new(), Vec::new());
    if args.attacks.is_empty() {
        args.attacks.push(cells::CORRUPTIONS.into());
    }
    Ok((dir.display().to_string(), of_run(&args, (dir, None), device, stop)?))
}

impl Study<'_> {
    /// One attack at one level.
    fn attack(&self, cell: &Cell) -> Result<Outcome> {
        match (self.prepared.subject(), &cell.attack) {
            (Subject::Text(stream), cells::Attack::Text(attack)) => {
                self.attack_text(stream, (*attack, cell.level))
            }
            (Subject::Images(images, _), cells::Attack::Corruption(corruption)) => {
                self.corrupt(images, (*corruption, cell.level as usize))
            }
            (Subject::Images(..), cells::Attack::Gradient(name)) => {
                self.attack_images(name, cell.level as u32)
            }
            _ => Err(Misuse::new(format!("--attacks {cell}: not for these data")).into()),
        }
    }
}

fn bar(dir: &Path, cells: usize) -> ProgressBar {
    let style = "{prefix} {bar:24} {pos}/{len}  {elapsed_precise}, about {eta_precise} left  {msg}";
    let name = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    ProgressBar::new(cells as u64)
        .with_style(ProgressStyle::with_template(style).expect("a valid template"))
        .with_prefix(name)
}
