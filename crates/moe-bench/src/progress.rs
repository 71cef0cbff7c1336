//! Progress of a comparison as bars: for terminals without a dashboard, and for logs.

use crate::cells::{Cell, CellEnd, Watch};
use crate::say::note;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

/// Progress of all cells: one bar over all steps with an estimate, one line per running cell.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    running: Mutex<HashMap<PathBuf, (ProgressBar, u64)>>,
    plain: bool,
}

impl Bars {
    /// The bars of a comparison before its first run.
    pub fn new(cells: &[Cell]) -> Self {
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
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.total.finish_and_clear();
    }
}

impl Watch for Bars {
    fn ready(&self, cell: &Cell, done: u64) {
        let bar = self.all.add(ProgressBar::new(cell.recipe.train.steps));
        let style = "  {prefix:28} {pos:>6}/{len} steps  {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        bar.set_prefix(cell.name());
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
        if *end == CellEnd::LeftOut {
            return self.total.inc(cell.recipe.train.steps);
        }
        let line = format!("{}: {end}", cell.name());
        if let Some((bar, _)) =
            self.running.lock().expect("no panic holds the bars").remove(&cell.dir.0)
        {
            bar.finish_and_clear();
        }
        if self.plain {
            note(line);
        } else {
            // A terminal that is gone takes no lines; the results are in files.
            let _ = self.all.println(line);
        }
    }
}
