//! The dashboard as a terminal of a given size would show it.

use super::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// The lines of a terminal, without what is empty at their ends.
fn shown(board: &Board, (width, height): (u16, u16), stopping: bool) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, board, Duration::from_secs(90), stopping)).unwrap();
    let buffer = terminal.backend().buffer();
    let symbols: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
    symbols.chunks(usize::from(width)).map(|line| line.concat().trim_end().to_owned()).collect()
}

fn comparison(routers: u64, seeds: u64) -> Board {
    let lanes = (0..seeds).flat_map(|seed| {
        (0..routers).map(move |router| Lane::new(&format!("router-{router}"), seed, 100))
    });
    Board::new("moe compare quick".into(), lanes.collect())
}

#[test]
fn a_comparison_in_every_state() {
    let mut board = comparison(3, 2);
    board.lanes[0].state = State::Finished(2.34567);
    board.lanes[1].state = State::Failed;
    board.lanes[2].state = State::Stopped;
    board.ready(3, 20);
    (21..=50).for_each(|step| board.step(3, step, 5.0 - step as f64 / 25.0));
    board.note("router-0 seed 0: validation loss 2.3457".into());
    board.note("router-1 seed 0: failed: \u{1b}[31mno memory".into());
    let want = [
        "moe compare quick: 1 of 6 finished, 1 running, 1 failed; stopping",
        "██████████████████████████58 %  1:30, about 12:30 left",
        "┌──────────────────────────────────────────────────────────────────────────────┐",
        "│router                   seed 0    seed 1                                     │",
        "│router-0                 ✓ 2.346    50 %                                      │",
        "│router-1                 ✗ failed  ·                                          │",
        "│router-2                 ■ stopped ·                                          │",
        "└──────────────────────────────────────────────────────────────────────────────┘",
        "router-0 seed 1: step 50/100, loss 3.0000",
        "█▇▇▇▇▆▆▆▆▅▅▅▅▄▄▄▄▃▃▃▃▂▂▂▂▁▁▁▁",
        "────────────────────────────────────────────────────────────────────────────────",
        "router-0 seed 0: validation loss 2.3457",
        "router-1 seed 0: failed: [31mno memory",
    ];
    let found = shown(&board, (80, 16), true);
    assert_eq!(found[..want.len()], want, "{}", found.join("\n"));
}

#[test]
fn a_run_of_its_own_is_a_large_curve() {
    let mut board = Board::new("moe train tiny".into(), vec![Lane::new("smoe", 7, 40)]);
    board.ready(0, 0);
    (1..=10).for_each(|step| board.step(0, step, 10.0 - step as f64));
    let found = shown(&board, (60, 20), false);
    assert!(found[1].contains("25 %  1:30, about 4:30 left"), "{}", found.join("\n"));
    assert_eq!(found[2], "smoe seed 7: step 10/40, loss 0.0000");
    assert_eq!(
        (found[3].as_str(), found[9].as_str()),
        ("▇▂", "█████████▅"),
        "{}",
        found.join("\n")
    );
}

/// More routers than lines: those around the running one are shown.
#[test]
fn a_long_grid_follows_the_runs_and_a_small_terminal_is_no_panic() {
    let mut board = comparison(40, 1);
    board.ready(30, 0);
    let found = shown(&board, (60, 20), false).join("\n");
    assert!(found.contains("router-30  ") && found.contains("router-31 "), "{found}");
    assert!(!found.contains("router-0 "), "{found}");
    for size in [(1, 1), (5, 3), (20, 6), (200, 60)] {
        shown(&board, size, false);
    }
}

#[test]
fn losses_that_are_no_numbers_draw_nothing() {
    assert_eq!(heights(&[f64::NAN, f64::INFINITY], 10), [0; 0]);
    assert_eq!(heights(&[2.0, 2.0], 10), [100, 100]);
    assert_eq!(heights(&[4.0, 2.0, 0.0, 0.0], 2), [1000, 100]);
}

#[test]
fn times_are_clocks() {
    let shown = [0, 59, 723, 3723].map(|seconds| clock(Duration::from_secs(seconds)));
    assert_eq!(shown, ["0:00", "0:59", "12:03", "1:02:03"]);
}
