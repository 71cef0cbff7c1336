//! The comparison: every router on equal terms, one table, one report.
use crate::cells::{Cell, CellEnd, Pool, Watch};
use crate::cli::CompareArgs;
use crate::environment::{device_name, environment, hardware_threads};
use crate::error::Misuse;
use crate::export;
use crate::files;
use crate::memory_cap::MemoryCap;
use crate::recipe::Recipe;
use crate::results::{Results, Row, SCHEMA};
use crate::reuse::{self, Shelf};
use crate::subject::Subject;
use crate::summary::summarise;
use crate::terms::{is_causal, terms, unequal_sizes};
use crate::verdict::{default_reference, judge};
use crate::worker::unless_stopped;
use anyhow::{Context, Result};
use moe_routers::{Method, PAPERS};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tch::Device;

/// A size of comparison.
#[derive(Debug)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// Its recipe; router and seed are the comparison's.
    pub recipe: &'static str,
    /// Seeds unless the command line says otherwise.
    pub seeds: u64,
    /// Routers unless the command line says otherwise; all that a comparison enters if empty.
    pub routers: &'static [&'static str],
}

macro_rules! preset {
    ($name:literal, $recipe:literal, $seeds:literal, $routers:expr) => {
        Preset {
            name: $name,
            recipe: include_str!(concat!("../../../recipes/", $recipe, ".toml")),
            seeds: $seeds,
            routers: &$routers,
        }
    };
}

/// All sizes. Those of a paper have its own settings, and its methods beside their baselines.
pub const PRESETS: &[Preset] = &[
    preset!("quick", "quick", 3, []),
    preset!("standard", "standard", 6, []),
    preset!("vision", "vision", 3, []),
    preset!("smoe-vae", "smoe-vae/small", 3, crate::vae::COMPARED),
    preset!("masked", "masked", 3, []),
    preset!("paper-ac-moe", "ac-moe/paper", 6, ["smoe", "ac-moe:lm"]),
    preset!("paper-ac-moe-vision", "ac-moe/vision-paper", 6, ["smoe", "ac-moe:swin"]),
    preset!(
        "paper-momentum",
        "momentum/paper",
        6,
        ["smoe", "smoe+momentum:reference", "smoe+momentum:adam", "smoe+momentum:robust"]
    ),
    preset!("paper-smoe-vae", "smoe-vae/paper", 6, crate::vae::COMPARED),
    preset!("paper-v-moe", "v-moe/paper", 6, ["dense", "v-moe:reference", "v-moe:reference_bpr"]),
    preset!("paper-vq-moe", "vq-moe/paper", 6, ["dense", "smoe", "vq-moe:reference"]),
    preset!("paper-x-moe", "x-moe/paper", 6, ["dense", "smoe", "x-moe:paper"]),
];

impl Preset {
    /// What it compares unless the command line says otherwise, and what does not fit `base`: name and reason.
    fn compared(&self, base: &Recipe) -> Result<(Vec<String>, Vec<String>), Misuse> {
        if !self.routers.is_empty() {
            return Ok((self.routers.iter().map(ToString::to_string).collect(), Vec::new()));
        }
        let (mut fit, mut left_out, mut first) = (Vec::new(), Vec::new(), None);
        for router in entered() {
            match Cell::new(base, &router, base.seed, Path::new("")) {
                Ok(_) => fit.push(router),
                Err(error) => {
                    left_out.push(format!("{router}: left out; {error}"));
                    first.get_or_insert(error);
                }
            }
        }
        // Where nothing fits, it is the recipe.
        if let (true, Some(error)) = (fit.is_empty(), first) {
            Err(error)
        } else {
            Ok((fit, left_out))
        }
    }
}

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
    /// Routers that do not fit the recipe and were not asked for, each with the reason.
    left_out: Vec<String>,
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
        let (routers, left_out) = match args.routers.as_slice() {
            [] => preset.compared(&base)?,
            given => (given.to_vec(), Vec::new()),
        };
        let reference = reference(args.reference.as_deref(), &routers)?;
        let out = place(args, preset.name)?;
        let mut cells = cells(&base, &routers, args.seeds.unwrap_or(preset.seeds), &out)?;
        only(&mut cells, &args.only)?;
        for cell in &cells {
            cell.dir.refuse_other_recipe(&cell.recipe)?;
        }
        let pool = pool(args, &base, cells.len())?;
        Ok(Self { preset: preset.name.into(), base, reference, cells, left_out, pool, out })
    }

    /// All runs of the comparison, finished or not.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Routers that do not fit the recipe and were not asked for, a line each with the reason.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Directory of the comparison.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Runs what is not finished yet and writes the results, as [`write()`] does. Whether it was
    /// stopped before the end comes with the results.
    ///
    /// # Errors
    /// Data that cannot be read, or files that cannot be written. A run that fails is a row.
    pub fn run(
        &self,
        args: &CompareArgs,
        stop: &AtomicBool,
        watch: &dyn Watch,
    ) -> Result<(Results, bool)> {
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot write to {}", self.out.display()))?;
        let base = self.base.clone();
        let data = unless_stopped(stop, move || Subject::open(&base, None))?;
        let mut terms = terms(&self.base, &data, &self.cells);
        let environment = environment(args.machine.device);
        let ends = self.pool.run(&self.cells, stop, watch);
        let mut rows = self.rows(&ends);
        terms.unequal.extend(self.left_out.iter().cloned());
        terms.unequal.extend(unequal_sizes(&rows));
        terms.unequal.extend(reuse::other_programs(&self.cells, &ends, &environment));
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

/// How the runs of a comparison of `cells` runs are carried out.
fn pool(args: &CompareArgs, base: &Recipe, cells: usize) -> Result<Pool> {
    let hardware = hardware_threads();
    let jobs = args.jobs.map_or(hardware, usize::from).min(cells);
    let share = match args.machine.device {
        Device::Cpu => MemoryCap::share(jobs),
        // Its driver maps more than the machine has.
        _ => MemoryCap::None,
    };
    Ok(Pool {
        jobs,
        threads: args.machine.threads.map_or((hardware / jobs).max(1), usize::from),
        device: device_name(args.machine.device),
        deterministic: args.machine.deterministic,
        memory: args.memory_cap.unwrap_or(share),
        shelf: Shelf::open(&args.reuse, base)?,
    })
}

/// The directory of the comparison: with `--resume` one that is there.
fn place(args: &CompareArgs, preset: &str) -> Result<PathBuf, Misuse> {
    let is_comparison = |dir: &PathBuf| dir.join("runs").is_dir();
    match &args.out {
        Some(out) if args.resume && !is_comparison(out) => {
            Err(Misuse::new(format!("--resume: {}: no comparison there", out.display())))
        }
        Some(out) => Ok(out.clone()),
        None if args.resume => {
            let of_preset = |dir: &PathBuf| dir.to_string_lossy().ends_with(&format!("-{preset}"));
            let entries = fs::read_dir("runs").into_iter().flatten().flatten();
            let dirs = entries.map(|entry| entry.path());
            // Names begin with the date.
            dirs.filter(|dir| of_preset(dir) && is_comparison(dir)).max().ok_or_else(|| {
                Misuse::new(format!(
                    "--resume: no comparison {preset} under runs/; name it by --out"
                ))
            })
        }
        None => Ok(default_out(preset)),
    }
}

/// Keeps from training what none of `patterns` asks for; no pattern asks for all.
fn only(cells: &mut [Cell], patterns: &[String]) -> Result<(), Misuse> {
    let names =
        |cell: &Cell| [cell.router.clone(), format!("{}:{}", cell.router, cell.recipe.seed)];
    let asks = |pattern: &String, cell: &Cell| names(cell).iter().any(|name| fits(pattern, name));
    if let Some(pattern) = patterns.iter().find(|p| !cells.iter().any(|cell| asks(p, cell))) {
        let runs: Vec<String> = cells.iter().map(|cell| names(cell)[1].clone()).collect();
        let runs = runs.join(", ");
        return Err(Misuse::new(format!("--only {pattern}: none of the runs: {runs}")));
    }
    for cell in cells.iter_mut().filter(|_| !patterns.is_empty()) {
        cell.asked = patterns.iter().any(|pattern| asks(pattern, cell));
    }
    Ok(())
}

/// Whether `text` is `pattern`, in which `*` stands for any letters.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices().any(|(at, _)| fits(tail, &rest[at..])) || fits(tail, "")
        }),
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
        CellEnd::Stopped | CellEnd::LeftOut => return None,
    };
    Some(Row { router: cell.router.clone(), seed: cell.recipe.seed, metrics, error })
}

/// All routers at the first seed, then all at the second: a comparison that is stopped early has
/// compared something. Where one of them names its residual, that of `base` is for those that name it.
fn cells(base: &Recipe, routers: &[String], seeds: u64, out: &Path) -> Result<Vec<Cell>, Misuse> {
    let mut cells: Vec<Cell> = Vec::new();
    let with_residual = |router: &String| router.contains('+');
    let mut plain = base.clone();
    if routers.iter().any(with_residual) {
        plain.residual = Recipe::default().residual;
    }
    for seed in (0..seeds).map(|s| base.seed + s) {
        for router in routers {
            if cells.iter().any(|c| c.router == *router && c.recipe.seed == seed) {
                return Err(Misuse::new(format!("--routers: {router} is there twice")));
            }
            let base = if with_residual(router) { base } else { &plain };
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

/// Writes the results in every form: `results.{json,csv,md,parquet}`, `curves.csv` and `report.html`.
///
/// # Errors
/// The file system's.
pub fn write(out: &Path, results: &Results) -> Result<()> {
    let json = serde_json::to_string_pretty(results)? + "\n";
    let robust = crate::robust::Overview::read(out)?;
    let html = crate::report::html_with(results, robust.as_ref())?;
    let page = [("results.json", json.into_bytes()), ("report.html", html.into_bytes())];
    for (name, bytes) in page.into_iter().chain(export::files(results)?) {
        files::replace(&out.join(name), &bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::MethodRecipe;

    #[test]
    fn stars_stand_for_any_letters() {
        for (pattern, text, want) in [
            ("smoe", "smoe", true),
            ("smoe", "smoe:0", false),
            ("smoe*", "smoe", true),
            ("smoe*", "smoe:plain:3", true),
            ("*:0", "smoe:plain:0", true),
            ("*:0", "smoe:10", false),
            ("*moe:*:1", "smoe:plain:1", true),
            ("*moe:*:1", "smoe:1", false),
            ("*", "", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, text), want, "{pattern} {text}");
        }
    }

    /// What every preset compares can be run, and a paper's own method has the paper's settings.
    #[test]
    fn presets_compare_what_they_say() {
        for preset in PRESETS {
            let base = Recipe::parse(preset.recipe, &[]).unwrap();
            let (routers, left_out) = preset.compared(&base).unwrap();
            assert_eq!(left_out.is_empty(), preset.name != "vision", "{left_out:?}");
            let cells = cells(&base, &routers, 1, Path::new("out")).unwrap();
            let bare = |mut method: MethodRecipe| {
                method.settings.remove("preset");
                method
            };
            let own = |of: &Recipe| [&of.router, &of.residual].map(|own| bare(own.clone()));
            let recipe = base.resolved().unwrap();
            let found = cells.iter().any(|cell| own(&cell.recipe) == own(&recipe));
            assert!(found || !preset.name.starts_with("paper-"), "{}: {recipe:?}", preset.name);
        }
    }

    #[test]
    fn the_recipes_residual_is_for_those_that_name_it() {
        let base = Recipe::parse("residual = { name = \"momentum\", mu = 0.9 }", &[]).unwrap();
        let residuals = |routers: &[&str]| {
            let routers: Vec<String> = routers.iter().map(ToString::to_string).collect();
            let cells = cells(&base, &routers, 1, Path::new("out")).unwrap();
            let of = |cell: &Cell| {
                let residual = &cell.recipe.residual;
                (residual.name.clone(), residual.settings.get("mu").cloned())
            };
            cells.iter().map(of).collect::<Vec<_>>()
        };
        let momentum = |mu: f64| ("momentum".to_owned(), Some(mu.into()));
        assert_eq!(residuals(&["smoe"]), [momentum(0.9)]);
        let both = residuals(&["smoe", "smoe+momentum", "smoe+momentum:robust"]);
        assert_eq!(both[0].0, "plain");
        assert_eq!(both[1..], [momentum(0.9), momentum(0.2)]);
    }

    #[test]
    fn runs_are_asked_for_by_router_and_seed() {
        let routers = ["dense", "smoe", "smoe:plain"].map(str::to_owned);
        let all = cells(&Recipe::default(), &routers, 2, Path::new("out")).unwrap();
        let asked = |patterns: &[&str]| {
            let mut cells = all.clone();
            let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
            only(&mut cells, &patterns).map(|()| {
                let asked = cells.iter().filter(|cell| cell.asked);
                asked
                    .map(|cell| format!("{}:{}", cell.router, cell.recipe.seed))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(asked(&[]).unwrap().len(), 6);
        assert_eq!(asked(&["smoe"]).unwrap(), ["smoe:0", "smoe:1"]);
        assert_eq!(asked(&["*:1", "dense:0"]).unwrap().len(), 4);
        assert_eq!(asked(&["smoe:plain:1"]).unwrap(), ["smoe:plain:1"]);
        let error = asked(&["dense", "sme"]).unwrap_err().to_string();
        assert!(error.contains("--only sme: none of the runs: dense:0, smoe:0"), "{error}");
    }
}
