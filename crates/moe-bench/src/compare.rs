//! The comparison: every router on equal terms, one table, one report.
#![expect(clippy::print_stderr, reason = "progress goes to the terminal")]

use crate::cells::{Cell, CellEnd, Pool, Watch};
use crate::cli::CompareArgs;
use crate::environment::{device_name, environment, hardware_threads};
use crate::error::Misuse;
use crate::recipe::Recipe;
use crate::results::{Results, Row, SCHEMA};
use crate::subject::Subject;
use crate::summary::summarise;
use crate::terms::{is_causal, terms, unequal_sizes};
use crate::verdict::{default_reference, judge};
use crate::worker::unless_stopped;
use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use moe_routers::{Method, PAPERS};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A size of comparison.
#[derive(Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// Its recipe; router and seed are the comparison's.
    pub recipe: &'static str,
    /// Seeds unless the command line says otherwise.
    pub seeds: u64,
}

/// All sizes.
pub const PRESETS: &[Preset] = &[
    Preset { name: "quick", recipe: include_str!("../../../recipes/quick.toml"), seeds: 3 },
    Preset { name: "standard", recipe: include_str!("../../../recipes/standard.toml"), seeds: 6 },
    Preset { name: "vision", recipe: include_str!("../../../recipes/vision.toml"), seeds: 3 },
    Preset {
        name: "smoe-vae",
        recipe: include_str!("../../../recipes/smoe-vae/small.toml"),
        seeds: 3,
    },
    Preset { name: "masked", recipe: include_str!("../../../recipes/masked.toml"), seeds: 3 },
];

fn preset(name: &str) -> Result<&'static Preset, Misuse> {
    PRESETS.iter().find(|p| p.name == name).ok_or_else(|| {
        let choices: Vec<_> = PRESETS.iter().map(|p| p.name).collect();
        Misuse::new(format!("--preset {name}: choose one of {}", choices.join(", ")))
    })
}

/// Every method and preset that a comparison enters, as [`Cell::router`].
pub fn entered() -> Vec<String> {
    let names = PAPERS.iter().flat_map(|paper| {
        // A residual is compared on the plainest router.
        let on = if matches!(paper.method, Method::Residual(_)) { "smoe+" } else { "" };
        paper.compared.iter().map(move |preset| match *preset == paper.presets[0] {
            true => format!("{on}{}", paper.id),
            false => format!("{on}{}:{preset}", paper.id),
        })
    });
    names.collect()
}

/// A comparison ready to run.
#[derive(Debug)]
pub struct Comparison {
    preset: String,
    base: Recipe,
    reference: String,
    cells: Vec<Cell>,
    pool: Pool,
    out: PathBuf,
}

impl Comparison {
    /// Reads flags; refuses what cannot be compared before anything runs.
    ///
    /// # Errors
    /// An unknown preset or router, a bad setting, data that cannot be read, or an output directory
    /// of another comparison.
    pub fn new(args: &CompareArgs) -> Result<Self> {
        let preset = preset(&args.preset)?;
        let mut sets = args.sets.clone();
        sets.extend(args.data.iter().map(|data| format!("data.source='{data}'")));
        let base = Recipe::parse(preset.recipe, &sets)?;
        let routers = match args.routers.as_slice() {
            [] if base.vae.is_some() => crate::vae::COMPARED.map(str::to_owned).to_vec(),
            [] => entered(),
            given => given.to_vec(),
        };
        let reference = reference(args.reference.as_deref(), &routers)?;
        let out = args.out.clone().unwrap_or_else(|| default_out(preset.name));
        let cells = cells(&base, &routers, args.seeds.unwrap_or(preset.seeds), &out)?;
        for cell in &cells {
            cell.dir.refuse_other_recipe(&cell.recipe)?;
        }
        let hardware = hardware_threads();
        let jobs = args.jobs.map_or(hardware, usize::from).min(cells.len());
        let threads = args.machine.threads.map_or((hardware / jobs).max(1), usize::from);
        let (device, deterministic) =
            (device_name(args.machine.device), args.machine.deterministic);
        let pool = Pool { jobs, threads, device, deterministic };
        Ok(Self { preset: preset.name.into(), base, reference, cells, pool, out })
    }

    /// Directory of the comparison.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Runs what is not finished yet and writes `results.json` and `report.html`. Whether it was
    /// stopped before the end comes with the results.
    ///
    /// # Errors
    /// Data that cannot be read, or files that cannot be written. A run that fails is a row.
    pub fn run(&self, args: &CompareArgs, stop: &AtomicBool) -> Result<(Results, bool)> {
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot write to {}", self.out.display()))?;
        let base = self.base.clone();
        let data = unless_stopped(stop, move || Subject::open(&base))?;
        let mut terms = terms(&self.base, &data, &self.cells);
        let environment = environment(args.machine.device);
        let bars = Bars::new(&self.cells);
        let ends = self.pool.run(&self.cells, stop, &bars);
        bars.total.finish_and_clear();
        let mut rows = self.rows(&ends);
        terms.unequal.extend(unequal_sizes(&rows));
        let judgements = Some(judge(&rows, &self.reference, &|router| self.causal(router)));
        let summary = summarise(&rows, judgements.as_ref());
        slim(&mut rows);
        let (schema, preset) = (SCHEMA.into(), self.preset.clone());
        let results = Results { schema, environment, preset, terms, rows, summary, judgements };
        write(&self.out, &results)?;
        let stopped = stop.load(Ordering::Relaxed) && ends.contains(&CellEnd::Stopped);
        Ok((results, stopped))
    }

    /// Whether the losses of a router may be compared with others'.
    fn causal(&self, router: &str) -> bool {
        self.cells.iter().find(|cell| cell.router == router).is_some_and(is_causal)
    }

    /// Rows of the cells that ended, router by router.
    fn rows(&self, ends: &[CellEnd]) -> Vec<Row> {
        let ended = self.cells.iter().zip(ends);
        let mut rows: Vec<Row> = ended.filter_map(|(cell, end)| row(cell, end)).collect();
        let place = |row: &Row| self.cells.iter().position(|cell| cell.router == row.router);
        rows.sort_by_key(|row| (place(row), row.seed));
        rows
    }
}

/// Takes out what is summarised, or would be shown for one seed alone: every run's `result.json` has it.
fn slim(rows: &mut [Row]) {
    let mut mapped = BTreeSet::new();
    for row in rows {
        let Some(routing) = row.metrics.as_mut().and_then(|m| m.routing.as_mut()) else { continue };
        routing.first_lt.clear();
        if routing.map.is_some() && !mapped.insert(row.router.clone()) {
            routing.map = None;
        }
    }
}

/// The router that verdicts refer to: the one asked for, which has to be among those compared.
fn reference(asked: Option<&str>, routers: &[String]) -> Result<String, Misuse> {
    let names: Vec<&str> = routers.iter().map(String::as_str).collect();
    match asked.or_else(|| default_reference(&names)) {
        Some(name) if names.contains(&name) => Ok(name.into()),
        name => Err(Misuse::new(format!(
            "--reference {}: choose one of the routers compared: {}",
            name.unwrap_or_default(),
            names.join(", ")
        ))),
    }
}

fn row(cell: &Cell, end: &CellEnd) -> Option<Row> {
    let (metrics, error) = match end {
        CellEnd::Finished(metrics) => (Some((**metrics).clone()), None),
        CellEnd::Failed(error) => (None, Some(error.clone())),
        CellEnd::Stopped => return None,
    };
    Some(Row { router: cell.router.clone(), seed: cell.recipe.seed, metrics, error })
}

/// All routers at the first seed, then all at the second: a comparison that is stopped early has
/// compared something.
fn cells(base: &Recipe, routers: &[String], seeds: u64, out: &Path) -> Result<Vec<Cell>, Misuse> {
    let mut cells: Vec<Cell> = Vec::new();
    for seed in (0..seeds).map(|s| base.seed + s) {
        for router in routers {
            if cells.iter().any(|c| c.router == *router && c.recipe.seed == seed) {
                return Err(Misuse::new(format!("--routers: {router} is there twice")));
            }
            cells.push(Cell::new(base, router, seed, out)?);
        }
    }
    Ok(cells)
}

/// `runs/<date>-<name>`.
pub fn default_out(name: &str) -> PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H%M%S").to_string();
    Path::new("runs").join(format!("{now}-{name}"))
}

/// Writes `results.json` and `report.html`.
///
/// # Errors
/// The file system's.
pub fn write(out: &Path, results: &Results) -> Result<()> {
    let json = serde_json::to_string_pretty(results)? + "\n";
    let robust = crate::robust::Overview::read(out)?;
    let html = crate::report::html_with(results, robust.as_ref())?;
    for (name, text) in [("results.json", json), ("report.html", html)] {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Progress of all cells: one bar over all steps with an estimate, one line per running cell.
struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    running: Mutex<HashMap<PathBuf, (ProgressBar, u64)>>,
    plain: bool,
}

impl Bars {
    fn new(cells: &[Cell]) -> Self {
        let all = MultiProgress::new();
        let steps = cells.iter().map(|cell| cell.recipe.train.steps).sum();
        let total = all.add(ProgressBar::new(steps));
        let style = "{bar:32} {percent:>3}%  {elapsed_precise}, about {eta_precise} left  {msg}";
        total.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        total.set_message(format!("{} runs", cells.len()));
        total.enable_steady_tick(std::time::Duration::from_secs(1));
        let plain = all.is_hidden();
        Self { all, total, running: Mutex::default(), plain }
    }

    fn name(cell: &Cell) -> String {
        format!("{} seed {}", cell.router, cell.recipe.seed)
    }
}

impl Watch for Bars {
    fn ready(&self, cell: &Cell, done: u64) {
        let bar = self.all.add(ProgressBar::new(cell.recipe.train.steps));
        let style = "  {prefix:28} {pos:>6}/{len} steps  {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        bar.set_prefix(Self::name(cell));
        bar.set_position(done);
        self.total.inc(done);
        let mut running = self.running.lock().expect("no panic holds the bars");
        running.insert(cell.dir.0.clone(), (bar, done));
    }

    fn step(&self, cell: &Cell, step: u64, loss: f64) {
        let mut running = self.running.lock().expect("no panic holds the bars");
        if let Some((bar, at)) = running.get_mut(&cell.dir.0) {
            self.total.inc(step.saturating_sub(*at));
            *at = step;
            bar.set_position(step);
            bar.set_message(format!("loss {loss:.3}"));
        }
    }

    fn end(&self, cell: &Cell, end: &CellEnd) {
        let line = match end {
            CellEnd::Finished(metrics) => {
                format!("{}: validation loss {:.4}", Self::name(cell), metrics.valid_loss)
            }
            CellEnd::Failed(error) => format!("{}: failed: {error}", Self::name(cell)),
            CellEnd::Stopped => format!("{}: stopped", Self::name(cell)),
        };
        if let Some((bar, _)) =
            self.running.lock().expect("no panic holds the bars").remove(&cell.dir.0)
        {
            bar.finish_and_clear();
        }
        if self.plain {
            eprintln!("{line}");
        } else {
            // A terminal that is gone takes no lines; the results are in files.
            let _ = self.all.println(line);
        }
    }
}
