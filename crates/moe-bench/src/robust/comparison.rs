//! Every run of a comparison under attack, and a table per router over its seeds: `robustness.json` and
//! `robustness.md` beside `results.json`.

use super::record::{FILE, Robustness, Row};
use super::{of_run, table};
use crate::cells::run_dir;
use crate::cli::RobustArgs;
use crate::results::Results;
use crate::say::{say, say_json};
use crate::summary::DENSE;
use anyhow::{Context, Result};
use moe_core::stats::{Interval, Summary, bca_interval, resampled_means};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

/// Version of the layout; raised when a field changes its meaning.
const SCHEMA: &str = "moe.robustness-comparison/1";

/// Confidence of the intervals.
const CONFIDENCE: f64 = 0.95;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 10_000;

/// A comparison under attack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// Always `moe.robustness-comparison/1`.
    pub schema: String,
    /// `perplexity` or `accuracy`: what `score` is where an entry has no measure of its own.
    pub measure: String,
    /// `valid` or `test`.
    pub split: String,
    /// At most this many batches of each run; absent for the whole split.
    pub batches: Option<usize>,
    /// One entry per router, attack and level; the clean score has the attack `clean` and level 0.
    pub entries: Vec<Entry>,
    /// What was not run, a line each.
    pub not_run: Vec<String>,
}

impl Overview {
    /// What a comparison's directory has, if `moe robust` was there.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let unreadable =
            || format!("cannot read {}; remove it or run moe robust again", path.display());
        let text = fs::read_to_string(&path).with_context(unreadable)?;
        serde_json::from_str(&text).with_context(unreadable).map(Some)
    }
}

/// One router under one attack at one level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The router.
    pub router: String,
    /// The attack, `clean`, `mce` (the mean corruption error against the dense control), or `hard` or `unknown`
    /// and the name of a set.
    pub attack: String,
    /// Rate, severity or budget.
    pub level: f64,
    /// What `score` is on pictures of another set, which has level 0; absent under attacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure: Option<String>,
    /// Seeds, in the order of the scores.
    pub seeds: Vec<u64>,
    /// Of every seed.
    pub scores: Vec<f64>,
    /// Over the seeds.
    pub score: Summary,
    /// Of the mean, by the bootstrap (BCa); absent for one seed.
    pub interval: Option<Interval>,
    /// Mean over layers of the share of tokens that go to other experts, over the seeds; absent where a router
    /// decides nothing.
    pub flips: Option<Summary>,
}

/// One run's contribution to an entry.
struct Point {
    router: String,
    seed: u64,
    attack: String,
    level: f64,
    measure: Option<&'static str>,
    score: f64,
    flips: Option<f64>,
}

impl Point {
    /// Whether both go into one entry.
    fn is_like(&self, other: &Self) -> bool {
        let key = |point: &Self| (point.level, point.measure);
        self.router == other.router && self.attack == other.attack && key(self) == key(other)
    }
}

/// Attacks every finished run of the comparison in `args.dir`.
pub(super) fn run(args: &RobustArgs, device: Device, stop: &Arc<AtomicBool>) -> Result<()> {
    let path = args.dir.join("results.json");
    let json =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let results: Results =
        serde_json::from_str(&json).with_context(|| format!("cannot read {}", path.display()))?;
    let mut found = Vec::new();
    for row in results.rows.iter().filter(|row| row.metrics.is_some()) {
        let dir = run_dir(&args.dir, &row.router, row.seed);
        let against = against(args, &results, (&row.router, row.seed));
        let of = || format!("{} seed {}", row.router, row.seed);
        let run = of_run(args, (&dir, against.as_deref()), device, stop).with_context(of)?;
        found.push((row.router.clone(), row.seed, run));
    }
    let overview = overview(&found)?;
    let markdown = table::of_comparison(&overview);
    write(&args.dir, &overview, &markdown)?;
    // The report takes the new table up.
    crate::compare::write(&args.dir, &results)?;
    match args.json {
        true => say_json(&overview)?,
        false => say(&format!("{markdown}\n{}\n", args.dir.join(FILE).display()))?,
    }
    Ok(())
}

/// The run asked for, or the dense control of the same seed; never the run itself.
fn against(args: &RobustArgs, results: &Results, (router, seed): (&str, u64)) -> Option<PathBuf> {
    let dense = |row: &&crate::results::Row| {
        row.router == DENSE && row.seed == seed && row.metrics.is_some()
    };
    let control = results.rows.iter().find(dense).filter(|_| router != DENSE && args.corrupts());
    // Text has no corruption error.
    let control = control.filter(|_| results.terms.tokenizer.starts_with("patches"));
    let dense = control.map(|_| run_dir(&args.dir, DENSE, seed));
    args.against.clone().or(dense)
}

fn overview(found: &[(String, u64, Robustness)]) -> Result<Overview> {
    let (_, _, first) = found.first().context("no finished run in this comparison")?;
    let text = first.clean.perplexity.is_some();
    let points: Vec<Point> = found.iter().flat_map(points).collect();
    let mut entries: Vec<Entry> = Vec::new();
    for (place, point) in points.iter().enumerate() {
        if !points[..place].iter().any(|other| other.is_like(point)) {
            let like = points.iter().filter(|other| other.is_like(point));
            entries.push(entry(&like.collect::<Vec<_>>())?);
        }
    }
    let mut not_run: Vec<String> = found
        .iter()
        .flat_map(|(router, seed, run)| {
            let line = move |other: &super::NotRun| {
                format!("{router} seed {seed}: {} {}: {}", other.attack, other.level, other.reason)
            };
            run.not_run.iter().map(line)
        })
        .collect();
    not_run.dedup();
    Ok(Overview {
        schema: SCHEMA.into(),
        measure: if text { "perplexity" } else { "accuracy" }.into(),
        split: first.split.clone(),
        batches: first.batches,
        entries,
        not_run,
    })
}

/// Clean, under every attack, the corruption error, and other sets.
fn points((router, seed, run): &(String, u64, Robustness)) -> Vec<Point> {
    let point = |attack: &str, level, score, flips| Point {
        router: router.clone(),
        seed: *seed,
        attack: attack.to_owned(),
        level,
        measure: None,
        score,
        flips,
    };
    let score = |score: &super::Score| score.perplexity.or(score.accuracy).unwrap_or(score.loss);
    let clean = point("clean", 0.0, score(&run.clean), None);
    let attacked =
        run.rows.iter().map(|row| point(&row.attack, row.level, score(&row.score), flips(row)));
    let mce = run.mce.as_ref().map(|mce| point("mce", 0.0, mce.mce, None));
    let sets = of_sets(run).into_iter().map(|(set, measure, score)| Point {
        measure: Some(measure),
        ..point(&set, 0.0, score, None)
    });
    [clean].into_iter().chain(attacked).chain(mce).chain(sets).collect()
}

/// Every measure on another set: the set, the measure's name, and its value.
fn of_sets(run: &Robustness) -> Vec<(String, &'static str, f64)> {
    let hard = run.hard.iter().flat_map(|set| {
        let all = set.score.accuracy.unwrap_or_default();
        let measures = [("accuracy among its classes", set.accuracy_among), ("among all", all)];
        measures.map(|(name, value)| (format!("hard {}", set.name), name, value))
    });
    let unknown = run.unknown.iter().flat_map(|set| {
        let measures = [("AUROC", set.auroc), ("AUPR", set.aupr), ("FPR95", set.fpr95)];
        measures.map(|(name, value)| (format!("unknown {}", set.name), name, value))
    });
    hard.chain(unknown).collect()
}

fn flips(row: &Row) -> Option<f64> {
    let layers = row.flip_rate_l.len();
    (layers > 0).then(|| row.flip_rate_l.iter().sum::<f64>() / layers as f64)
}

/// At least one point of one router, attack and level.
fn entry(points: &[&Point]) -> Result<Entry> {
    let scores: Vec<f64> = points.iter().map(|point| point.score).collect();
    let flips: Vec<f64> = points.iter().filter_map(|point| point.flips).collect();
    let (router, attack) = (points[0].router.clone(), points[0].attack.clone());
    let of = || format!("{router} under {attack}");
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let means = resampled_means(&scores, RESAMPLES, &mut || generator.next_u64());
    let interval = match scores.len() {
        1 => None,
        _ => Some(bca_interval(&scores, &means, CONFIDENCE).with_context(of)?),
    };
    Ok(Entry {
        level: points[0].level,
        measure: points[0].measure.map(str::to_owned),
        seeds: points.iter().map(|point| point.seed).collect(),
        score: Summary::of(&scores).with_context(of)?,
        interval,
        flips: (flips.len() == points.len()).then(|| Summary::of(&flips)).transpose()?,
        scores,
        router,
        attack,
    })
}

fn write(dir: &Path, overview: &Overview, markdown: &str) -> Result<()> {
    let json = serde_json::to_string_pretty(overview)? + "\n";
    for (name, text) in [(FILE, json.as_str()), ("robustness.md", markdown)] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_means_over_seeds() {
        let point = |seed, score, flips| Point {
            router: "smoe".into(),
            seed,
            attack: "fog".into(),
            level: 2.0,
            measure: None,
            score,
            flips,
        };
        let (a, b) = (point(0, 0.5, Some(0.25)), point(1, 0.75, Some(0.75)));
        let both = entry(&[&a, &b]).unwrap();
        assert_eq!((both.score.mean, both.score.n, both.seeds), (0.625, 2, vec![0, 1]));
        assert_eq!(both.flips.unwrap().mean, 0.5);
        let interval = both.interval.unwrap();
        assert!(0.5 <= interval.low && interval.low < interval.high && interval.high <= 0.75);
        // A seed without decisions takes the flips away rather than flattering the others.
        let c = point(2, 0.5, None);
        assert!(entry(&[&a, &c]).unwrap().flips.is_none());
        assert!(entry(&[&a]).unwrap().interval.is_none());
    }
}
