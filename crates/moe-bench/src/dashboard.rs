//! The terminal dashboard of `moe train` and `moe compare`: a grid of runs, an estimate over all of them, the losses
//! of those that run, and the last notes.
//!
//! It reads no keys and leaves the terminal in its usual mode, so that Ctrl-C is the signal it always is. It is for
//! terminals alone: where standard output goes to a file or a pipe, nothing of it is written.

pub mod board;
pub mod screen;
mod view;

use crate::cells::{Cell, CellEnd, Watch};
use crate::run::Event;
use board::{Board, State};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use screen::Screen;
use std::io::{self, IsTerminal, Stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two looks at the board.
const TICK: Duration = Duration::from_millis(200);

/// A dashboard on the screen; the terminal is as it was before when it is dropped.
#[derive(Debug)]
pub struct Dashboard {
    board: Arc<Mutex<Board>>,
    ended: Arc<AtomicBool>,
    screen: Screen,
    drawer: Option<JoinHandle<()>>,
}

/// Whether a dashboard can be drawn and was not declined.
pub fn wanted(declined: bool) -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
    !declined && !dumb && io::stdout().is_terminal()
}

impl Dashboard {
    /// Takes the screen over and draws `board` until it is dropped; `stop` is shown when it is set.
    ///
    /// # Errors
    /// A terminal that cannot be written.
    pub fn start(board: Board, screen: Screen, stop: Arc<AtomicBool>) -> io::Result<Self> {
        screen.enter()?;
        let board = Arc::new(Mutex::new(board));
        let ended = Arc::new(AtomicBool::new(false));
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        let (seen, over, shown) = (Arc::clone(&board), Arc::clone(&ended), screen.clone());
        let drawer = std::thread::spawn(move || draw(terminal, &seen, (&over, &stop), &shown));
        Ok(Self { board, ended, screen, drawer: Some(drawer) })
    }

    /// Shows what happens in a run of its own.
    pub fn event(&self, event: &Event<'_>) {
        let mut board = self.board();
        match event {
            Event::Ready { done, last } => {
                board.lanes[0].steps = *last;
                board.ready(0, *done);
            }
            Event::Step(report) => board.step(0, report.step, report.loss),
            Event::Eval(line) => {
                let accuracy = line.report.measures.get("accuracy");
                let accuracy = accuracy.map_or(String::new(), |a| format!(", accuracy {a:.4}"));
                let loss = line.report.loss;
                board.note(format!("step {}: validation loss {loss:.4}{accuracy}", line.step));
            }
            Event::Note(line) => board.note((*line).to_owned()),
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().expect("no panic holds the board")
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(drawer) = self.drawer.take() {
            drawer.thread().unpark();
            // A drawer that panicked has said so.
            let _ = drawer.join();
        }
        self.screen.restore();
    }
}

impl Watch for Dashboard {
    fn ready(&self, cell: &Cell, done: u64) {
        let mut board = self.board();
        let lane = board.lane(&cell.router, cell.recipe.seed);
        board.ready(lane, done);
    }

    fn step(&self, cell: &Cell, step: u64, loss: f64) {
        let mut board = self.board();
        let lane = board.lane(&cell.router, cell.recipe.seed);
        board.step(lane, step, loss);
    }

    fn end(&self, cell: &Cell, end: &CellEnd) {
        let mut board = self.board();
        let lane = board.lane(&cell.router, cell.recipe.seed);
        board.lanes[lane].state = match end {
            CellEnd::Finished(metrics) => State::Finished(metrics.valid_loss),
            CellEnd::Failed(_) => State::Failed,
            CellEnd::Stopped => State::Stopped,
            CellEnd::LeftOut => State::LeftOut,
        };
        if *end != CellEnd::LeftOut {
            board.note(format!("{}: {end}", cell.name()));
        }
    }
}

/// Draws until the end, or until the terminal is gone: what is shown is in files too.
fn draw(
    mut terminal: Terminal<CrosstermBackend<Stdout>>,
    board: &Mutex<Board>,
    (ended, stop): (&AtomicBool, &AtomicBool),
    screen: &Screen,
) {
    let begun = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let shown = screen.while_on(|| {
            let board = board.lock().expect("no panic holds the board").clone();
            let stopping = stop.load(Ordering::Relaxed);
            terminal.draw(|frame| view::draw(frame, &board, begun.elapsed(), stopping)).is_ok()
        });
        if !shown {
            return;
        }
        std::thread::park_timeout(TICK);
    }
}
