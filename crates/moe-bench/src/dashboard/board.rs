//! What the dashboard knows: one lane per run, and notes. No terminal and no clock in here.

use crate::cells::Cell;
use std::collections::VecDeque;
use std::time::Duration;

/// Notes that are kept.
const NOTES: usize = 50;

/// State of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    /// It has not begun.
    Waiting,
    /// It takes steps.
    Running,
    /// All steps are taken; the last validation loss.
    Finished(f64),
    /// It ended with an error.
    Failed,
    /// The user stopped it.
    Stopped,
    /// It was not asked for.
    LeftOut,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Router, or the recipe's name.
    pub router: String,
    /// Seed.
    pub seed: u64,
    /// Steps it will have at its end.
    pub steps: u64,
    /// Steps it has.
    pub done: u64,
    /// Steps that earlier sessions took.
    pub before: u64,
    /// Loss of every step of this session.
    pub losses: Vec<f64>,
    /// Where it is.
    pub state: State,
}

/// All runs.
#[derive(Debug, Clone)]
pub struct Board {
    /// What runs, in a few words.
    pub title: String,
    /// In the order in which they run.
    pub lanes: Vec<Lane>,
    /// The last notes, oldest first.
    pub notes: VecDeque<String>,
}

impl Lane {
    /// A run that waits.
    pub fn new(router: &str, seed: u64, steps: u64) -> Self {
        let (router, losses) = (router.to_owned(), Vec::new());
        Self { router, seed, steps, done: 0, before: 0, losses, state: State::Waiting }
    }

    /// Whether it will take no more steps.
    pub fn is_over(&self) -> bool {
        !matches!(self.state, State::Waiting | State::Running)
    }
}

impl Board {
    /// Runs that wait.
    pub fn new(title: String, lanes: Vec<Lane>) -> Self {
        Self { title, lanes, notes: VecDeque::new() }
    }

    /// The runs of a comparison.
    pub fn of_cells(title: String, cells: &[Cell]) -> Self {
        let lane = |cell: &Cell| Lane::new(&cell.router, cell.recipe.seed, cell.recipe.train.steps);
        Self::new(title, cells.iter().map(lane).collect())
    }

    /// Place of a run.
    pub(super) fn lane(&self, router: &str, seed: u64) -> usize {
        let place = self.lanes.iter().position(|lane| lane.router == router && lane.seed == seed);
        place.expect("the board was made of all runs")
    }

    /// A run begins after `done` steps of earlier sessions.
    pub fn ready(&mut self, lane: usize, done: u64) {
        let lane = &mut self.lanes[lane];
        (lane.done, lane.before, lane.state) = (done, done, State::Running);
    }

    /// A run took a step.
    pub fn step(&mut self, lane: usize, step: u64, loss: f64) {
        let lane = &mut self.lanes[lane];
        lane.done = step;
        lane.losses.push(loss);
    }

    /// Something to read.
    pub fn note(&mut self, note: String) {
        self.notes.push_back(note);
        if self.notes.len() > NOTES {
            self.notes.pop_front();
        }
    }

    /// Runs in a state.
    pub fn count(&self, is: impl Fn(State) -> bool) -> usize {
        self.lanes.iter().filter(|lane| is(lane.state)).count()
    }

    /// Share of all steps that will not be taken any more: done, or given up with their run.
    pub fn share(&self) -> f64 {
        let all: u64 = self.lanes.iter().map(|lane| lane.steps).sum();
        1.0 - self.left() as f64 / all.max(1) as f64
    }

    /// Time that is left, at the pace of this session's `elapsed`; none before its first step.
    pub fn left_after(&self, elapsed: Duration) -> Option<Duration> {
        let taken: u64 = self.lanes.iter().map(|lane| lane.done.saturating_sub(lane.before)).sum();
        let left = elapsed.as_secs_f64() / taken as f64 * self.left() as f64;
        Duration::try_from_secs_f64(left).ok().filter(|_| taken > 0)
    }

    fn left(&self) -> u64 {
        let open = self.lanes.iter().filter(|lane| !lane.is_over());
        open.map(|lane| lane.steps.saturating_sub(lane.done)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let lane = |router: &str, seed| Lane::new(router, seed, 100);
        Board::new("test".into(), vec![lane("a", 0), lane("b", 0), lane("a", 1), lane("b", 1)])
    }

    /// Steps 20 to 60 in 10 s, so 40 steps; 40 and twice 100 are left of 400: 60 s.
    #[test]
    fn the_estimate_is_over_the_grid_at_this_sessions_pace() {
        let mut board = board();
        let elapsed = Duration::from_secs(10);
        assert_eq!(board.left_after(elapsed), None);
        board.ready(0, 20);
        board.step(0, 60, 2.0);
        board.lanes[1].state = State::Failed;
        assert_eq!(board.left_after(elapsed), Some(Duration::from_secs(60)));
        assert_eq!(board.share(), 160.0 / 400.0);
        board.lanes.iter_mut().for_each(|lane| lane.state = State::Finished(1.0));
        assert_eq!((board.left_after(elapsed), board.share()), (Some(Duration::ZERO), 1.0));
    }

    #[test]
    fn notes_are_the_last_ones() {
        let mut board = board();
        (0..200).for_each(|n| board.note(n.to_string()));
        assert_eq!(board.notes.len(), NOTES);
        assert_eq!(board.notes.back().unwrap(), "199");
    }
}
