//! The cells of a comparison, and their scheduling: one process each, so that a crash is a row of
//! the table and memory is measured per router.

use crate::error::Misuse;
use crate::memory_cap::MemoryCap;
use crate::method::MethodRecipe;
use crate::recipe::Recipe;
use crate::results::Metrics;
use crate::reuse::{self, Shelf};
use crate::run::RunDir;
use crate::worker::Told;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One run of a comparison.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Router as `name` or `name:preset`, with `+residual` or `+residual:preset` behind it if not plain.
    pub router: String,
    /// What to train.
    pub recipe: Recipe,
    /// Where.
    pub dir: RunDir,
    /// Whether it may be trained now; else it counts only as far as it is finished.
    pub asked: bool,
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq)]
pub enum CellEnd {
    /// With measures.
    Finished(Box<Metrics>),
    /// With an error.
    Failed(String),
    /// Stopped by the user; a checkpoint is there.
    Stopped,
    /// Not finished, and not asked for.
    LeftOut,
}

/// What the scheduler reports while it works; called from several threads.
pub trait Watch: Sync {
    /// A cell starts or goes on after `done` steps.
    fn ready(&self, cell: &Cell, done: u64);
    /// A step was taken.
    fn step(&self, cell: &Cell, step: u64, loss: f64);
    /// A cell ended.
    fn end(&self, cell: &Cell, end: &CellEnd);
}

/// How cells run.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Runs at a time.
    pub jobs: usize,
    /// Threads of a run.
    pub threads: usize,
    /// `--device` of a run.
    pub device: String,
    /// `--deterministic` of a run.
    pub deterministic: bool,
    /// Memory that a run may ask for.
    pub memory: MemoryCap,
    /// Finished runs of other comparisons.
    pub shelf: Shelf,
}

impl fmt::Display for CellEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(metrics) => write!(f, "validation loss {:.4}", metrics.valid_loss),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Stopped => f.write_str("stopped"),
            Self::LeftOut => f.write_str("left out"),
        }
    }
}

/// Where a comparison in `out` keeps the run of a router and a seed.
pub fn run_dir(out: &Path, router: &str, seed: u64) -> PathBuf {
    out.join("runs").join(format!("{}-s{seed}", router.replace([':', '+'], "-")))
}

impl Cell {
    /// Router and seed, for people.
    pub fn name(&self) -> String {
        format!("{} seed {}", self.router, self.recipe.seed)
    }

    /// The cell of `router` and `seed` below `out`, refused if the settings do not fit the router. Where `base` has
    /// settings for this very method and preset, they are the cell's.
    ///
    /// # Errors
    /// An unknown router, or settings out of its range.
    pub fn new(base: &Recipe, router: &str, seed: u64, out: &Path) -> Result<Self, Misuse> {
        let (name, residual) = router.split_once('+').unwrap_or((router, ""));
        let own = MethodRecipe::named_or(name, &base.router);
        let mut recipe = Recipe { seed, router: own, ..base.clone() };
        if !residual.is_empty() {
            recipe.residual = MethodRecipe::named_or(residual, &base.residual);
        }
        recipe.check()?;
        let (recipe, dir) = (recipe.resolved()?, RunDir(run_dir(out, router, seed)));
        Ok(Self { router: router.into(), recipe, dir, asked: true })
    }
}

impl Pool {
    /// Runs `cells` in order, `jobs` at a time; ends come back in the order of the cells. After
    /// `stop` is set no cell starts, and the running ones stop at their next step.
    pub fn run(&self, cells: &[Cell], stop: &AtomicBool, watch: &dyn Watch) -> Vec<CellEnd> {
        let queue: Mutex<VecDeque<usize>> = Mutex::new((0..cells.len()).collect());
        let ends = Mutex::new(vec![CellEnd::Stopped; cells.len()]);
        let next = || queue.lock().expect("no panic holds the queue").pop_front();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    while let Some(index) = next().filter(|_| !stop.load(Ordering::Relaxed)) {
                        let end = self.run_one(&cells[index], stop, watch);
                        watch.end(&cells[index], &end);
                        ends.lock().expect("no panic holds the ends")[index] = end;
                    }
                });
            }
        });
        ends.into_inner().expect("no panic holds the ends")
    }

    fn run_one(&self, cell: &Cell, stop: &AtomicBool, watch: &dyn Watch) -> CellEnd {
        let ended = self.finished(cell).and_then(|found| match found {
            Some(metrics) => {
                watch.ready(cell, cell.recipe.train.steps);
                Ok(CellEnd::Finished(Box::new(metrics)))
            }
            None if !cell.asked => Ok(CellEnd::LeftOut),
            None => follow(self.start(cell)?, cell, stop, watch),
        });
        match ended.unwrap_or_else(|error| CellEnd::Failed(format!("{error:#}"))) {
            CellEnd::Failed(error) => CellEnd::Failed(self.name_cap(error)),
            end => end,
        }
    }

    /// The measures of a run that need not be trained: it is finished, here or in another comparison.
    fn finished(&self, cell: &Cell) -> Result<Option<Metrics>> {
        if !cell.dir.result().exists() {
            self.shelf.take(&self.key(cell), &cell.dir)?;
        }
        Ok(cell.dir.finished(&cell.recipe))
    }

    /// What a run is besides its directory.
    fn key(&self, cell: &Cell) -> String {
        let how = format!("{} {} {}", self.threads, self.device, self.deterministic);
        self.shelf.key(&cell.recipe, &how)
    }

    /// The limit stands beside an error that it may have caused.
    fn name_cap(&self, error: String) -> String {
        match self.memory {
            MemoryCap::Bytes(bytes) if error.contains("out of memory") => {
                format!("{error} (--memory-cap was {bytes} bytes)")
            }
            _ => error,
        }
    }

    fn start(&self, cell: &Cell) -> Result<Child> {
        fs::create_dir_all(&cell.dir.0)
            .and_then(|()| fs::write(cell.dir.recipe(), cell.recipe.to_toml()))
            .with_context(|| format!("cannot write {}", cell.dir.0.display()))?;
        reuse::begin(&cell.dir, &self.key(cell))?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let (threads, memory) = (self.threads.to_string(), self.memory.to_string());
        let child = Command::new(program)
            .arg("train")
            .arg(cell.dir.recipe())
            .arg("--out")
            .arg(&cell.dir.0)
            .args(["--resume", "--worker", "--threads", &threads, "--device", &self.device])
            .args(["--memory-cap", &memory])
            .args(self.deterministic.then_some("--deterministic"))
            .env("RAYON_NUM_THREADS", &threads)
            .env("OMP_NUM_THREADS", &threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        child.context("cannot start a run")
    }
}

/// Listens to a child until it ends.
fn follow(mut child: Child, cell: &Cell, stop: &AtomicBool, watch: &dyn Watch) -> Result<CellEnd> {
    let (stdin, ended) = (Mutex::new(child.stdin.take()), AtomicBool::new(false));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut last = None;
    let complaint = std::thread::scope(|scope| {
        scope.spawn(|| close_on_stop(&stdin, stop, &ended));
        let complaint = scope.spawn(|| {
            let mut text = String::new();
            stderr.map(|mut pipe| pipe.read_to_string(&mut text));
            text
        });
        for line in stdout.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
            last = listen(&line.unwrap_or_default(), cell, watch).or(last.take());
        }
        ended.store(true, Ordering::Relaxed);
        complaint.join().unwrap_or_default()
    });
    let status = child.wait().context("cannot wait for a run")?;
    Ok(match last {
        Some(Told::Finished) if status.success() => match cell.dir.finished(&cell.recipe) {
            Some(metrics) => CellEnd::Finished(Box::new(metrics)),
            None => CellEnd::Failed(format!("{} is unreadable", cell.dir.result().display())),
        },
        Some(Told::Stopped { .. }) if status.success() => CellEnd::Stopped,
        _ if stop.load(Ordering::Relaxed) => CellEnd::Stopped,
        _ => CellEnd::Failed(format!("{status}: {}", complaint.trim())),
    })
}

/// Passes an event on; returns it if it says how the run ended.
fn listen(line: &str, cell: &Cell, watch: &dyn Watch) -> Option<Told> {
    match serde_json::from_str(line).ok()? {
        Told::Ready { done } => watch.ready(cell, done),
        Told::Step { step, loss } => watch.step(cell, step, loss),
        end => return Some(end),
    }
    None
}

/// Closes the child's standard input when `stop` is set, which tells it to stop.
fn close_on_stop<T>(stdin: &Mutex<Option<T>>, stop: &AtomicBool, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        if stop.load(Ordering::Relaxed) {
            stdin.lock().expect("no panic holds the pipe").take();
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
