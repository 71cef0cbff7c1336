//! The board as widgets: a pure function of board, time and size of the terminal.

use super::board::{Board, Lane, State};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Gauge, Paragraph, Row, Sparkline, Table};
use std::time::Duration;

/// Runs in progress that are shown with their losses.
const RUNNING: usize = 4;
/// Lines of notes.
const NOTES: u16 = 4;
/// Characters of a router's name in the grid, and of one of its runs.
const NAME: u16 = 24;
const RUN: u16 = 9;

/// Draws all of it. `elapsed` is the time since the dashboard began.
pub(super) fn draw(frame: &mut Frame<'_>, board: &Board, elapsed: Duration, stopping: bool) {
    let running: Vec<&Lane> =
        board.lanes.iter().filter(|lane| lane.state == State::Running).take(RUNNING).collect();
    let single = board.lanes.len() == 1;
    let rows = if single { 0 } else { routers(board).len() as u16 + 3 };
    let height = if single { 8 } else { 2 * running.len() as u16 };
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Max(rows),
        Constraint::Length(height),
        Constraint::Length(NOTES + 1),
        Constraint::Fill(1),
    ]);
    let [title, total, grid, losses, notes, _] = areas.areas(frame.area());
    frame.render_widget(heading(board, stopping), title);
    frame.render_widget(progress(board, elapsed), total);
    if !single {
        frame.render_widget(table(board, grid.height), grid);
    }
    let places = Layout::vertical(running.iter().map(|_| Constraint::Fill(1))).split(losses);
    for (lane, place) in running.iter().zip(places.iter()) {
        curve(frame, lane, *place);
    }
    frame.render_widget(last_notes(board), notes);
}

fn heading(board: &Board, stopping: bool) -> Line<'static> {
    let count = |is: fn(State) -> bool| board.count(is);
    let finished = count(|state| matches!(state, State::Finished(_)));
    let (running, failed) =
        (count(|state| state == State::Running), count(|state| state == State::Failed));
    let mut text = format!("{}: {finished} of {} finished", board.title, board.lanes.len());
    text += &format!(", {running} running");
    if failed > 0 {
        text += &format!(", {failed} failed");
    }
    if stopping {
        text += "; stopping";
    }
    Line::styled(text, Modifier::BOLD)
}

fn progress(board: &Board, elapsed: Duration) -> Gauge<'static> {
    let left = board.left_after(elapsed);
    let left = left.map_or(String::new(), |left| format!(", about {} left", clock(left)));
    let share = board.share().clamp(0.0, 1.0);
    let label = format!("{:.0} %  {}{left}", 100.0 * share, clock(elapsed));
    // Colours that are told apart by lightness, too.
    Gauge::default().ratio(share).label(label).gauge_style(Style::new().fg(Color::Blue))
}

/// Routers in the order in which they appear.
fn routers(board: &Board) -> Vec<&str> {
    let mut routers: Vec<&str> = Vec::new();
    for lane in &board.lanes {
        if !routers.contains(&lane.router.as_str()) {
            routers.push(&lane.router);
        }
    }
    routers
}

/// A line per router, a column per seed; the part of it around the first run in progress.
fn table(board: &Board, height: u16) -> Table<'static> {
    let mut seeds: Vec<u64> = board.lanes.iter().map(|lane| lane.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let routers = routers(board);
    let room = usize::from(height.saturating_sub(3));
    let running = board.lanes.iter().find(|lane| lane.state == State::Running);
    let at = running.and_then(|lane| routers.iter().position(|router| *router == lane.router));
    let first = at.unwrap_or(0).saturating_sub(room / 2).min(routers.len().saturating_sub(room));
    let line = |router: &&str| {
        let runs = seeds.iter().map(|seed| {
            let lane = board.lanes.iter().find(|l| l.router == **router && l.seed == *seed);
            lane.map_or(Cell::default(), cell)
        });
        Row::new(std::iter::once(Cell::from((*router).to_owned())).chain(runs))
    };
    let header = seeds.iter().map(|seed| format!("seed {seed}"));
    let header = Row::new(std::iter::once("router".to_owned()).chain(header)).bold();
    let widths = std::iter::once(NAME).chain(seeds.iter().map(|_| RUN));
    Table::new(routers.iter().skip(first).take(room).map(line), widths)
        .header(header)
        .block(Block::bordered())
}

/// A run in the grid, told apart by its sign and not by colour alone.
fn cell(lane: &Lane) -> Cell<'static> {
    let (text, color) = match lane.state {
        State::Waiting => ("·".to_owned(), Color::DarkGray),
        State::Running => (format!("{:>3} %", 100 * lane.done / lane.steps.max(1)), Color::Blue),
        State::Finished(loss) => (format!("✓ {loss:.3}"), Color::Reset),
        State::Failed => ("✗ failed".to_owned(), Color::Red),
        State::Stopped => ("■ stopped".to_owned(), Color::Yellow),
        State::LeftOut => ("–".to_owned(), Color::DarkGray),
    };
    Cell::from(text).style(Style::new().fg(color))
}

/// Losses of a run, newest at the right.
fn curve(frame: &mut Frame<'_>, lane: &Lane, place: Rect) {
    let last = lane.losses.last().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    let title =
        format!("{} seed {}: step {}/{}{last}", lane.router, lane.seed, lane.done, lane.steps);
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(place);
    frame.render_widget(Span::raw(title), head);
    let heights = heights(&lane.losses, usize::from(body.width));
    let line = Sparkline::default().data(heights).max(SCALE).style(Style::new().fg(Color::Blue));
    frame.render_widget(line, body);
}

/// Steps of a sparkline from its foot to its top.
const SCALE: u64 = 1000;

/// The whole curve in `width` columns: means of equal parts, from the least to the largest of them.
fn heights(losses: &[f64], width: usize) -> Vec<u64> {
    let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    let part = finite.len().div_ceil(width.max(1)).max(1);
    let means: Vec<f64> =
        finite.chunks(part).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let span = means.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    // A foot, so that the least loss is seen.
    let height = |mean: f64| 0.1 + 0.9 * (mean - low) / span.max(f64::MIN_POSITIVE);
    means.into_iter().map(|mean| (height(mean) * SCALE as f64) as u64).collect()
}

fn last_notes(board: &Board) -> Paragraph<'static> {
    let first = board.notes.len().saturating_sub(usize::from(NOTES));
    // Words from outside: what would drive the terminal is left out.
    let plain =
        |note: &String| note.chars().filter(|letter| !letter.is_control()).collect::<String>();
    let lines: Vec<Line<'static>> =
        board.notes.iter().skip(first).map(|note| Line::raw(plain(note))).collect();
    Paragraph::new(lines).block(Block::new().borders(Borders::TOP))
}

/// `12:03`, or `1:02:03` from an hour on.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests;
