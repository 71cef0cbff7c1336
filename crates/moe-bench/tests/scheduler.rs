//! The runs of a comparison: which of them are trained, what they may take, what happens when one dies, and what a
//! terminal shows of it.

#[path = "common/child.rs"]
mod child;
mod common;

use child::{assert_code, send, start};
use common::{Place, moe};
use moe_bench::dashboard::Dashboard;
use moe_bench::dashboard::board::{Board, Lane};
use moe_bench::dashboard::screen::Screen;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const SMALL: [&str; 8] = [
    "model.width=8",
    "model.heads=2",
    "model.layers=2",
    "model.context=8",
    "model.active_hidden=16",
    "train.sequence=8",
    "train.batch=2",
    "train.eval_batches=1",
];

/// Words of a comparison of the dense control and `smoe` into `out`, one run at a time.
fn compare(place: &Place, out: &str, more: &[&str], sets: &[&str]) -> Vec<String> {
    let (out, data) = (place.show(out), place.show("text.txt"));
    let words = ["compare", "--routers", "dense,smoe", "--jobs", "1", "--threads", "1"];
    let places = ["--out", &out, "--data", &data];
    let sets = SMALL.iter().chain(sets).flat_map(|set| ["--set", set]);
    let words = words.iter().chain(&places).chain(more).copied().chain(sets);
    words.map(str::to_owned).collect()
}

/// Router and seed of the rows of a comparison.
fn rows(place: &Place, out: &str) -> Vec<String> {
    let text = fs::read_to_string(place.path(out).join("results.json")).unwrap();
    let results: Value = serde_json::from_str(&text).unwrap();
    let rows = results["rows"].as_array().unwrap();
    rows.iter().map(|row| format!("{}:{}", row["router"].as_str().unwrap(), row["seed"])).collect()
}

fn failure(place: &Place, out: &str) -> String {
    let text = fs::read_to_string(place.path(out).join("results.json")).unwrap();
    let results: Value = serde_json::from_str(&text).unwrap();
    results["rows"][0]["error"].as_str().unwrap().to_owned()
}

/// Only what is asked for is trained; another comparison takes it over and trains the rest.
#[test]
fn runs_are_asked_for_resumed_and_reused() {
    let place = Place::new();
    let steps = ["train.steps=3"];
    let two = ["--seeds", "2"];
    let run = |out: &str, more: &[&str]| moe(&compare(&place, out, &[&two, more].concat(), &steps));
    assert_code(&run("a", &["--only", "smoe:1"]), 0, &["1/1"]);
    assert_eq!(rows(&place, "a"), ["smoe:1"]);
    assert_code(&run("a", &["--resume", "--only", "d*:0,smoe:0"]), 0, &[]);
    assert_eq!(rows(&place, "a"), ["dense:0", "smoe:0", "smoe:1"]);

    let reuse = ["--reuse", &place.show("a")];
    assert_code(&run("b", &reuse), 0, &["2/2"]);
    assert_eq!(rows(&place, "b"), ["dense:0", "dense:1", "smoe:0", "smoe:1"]);
    let trained = |run: &str| place.path("b/runs").join(run).join("checkpoints").exists();
    assert_eq!(
        ["dense-s0", "dense-s1", "smoe-s0", "smoe-s1"].map(trained),
        [false, true, false, false]
    );
    let log = |out: &str| fs::read(place.path(out).join("runs/smoe-s1/metrics.jsonl")).unwrap();
    assert!(log("a") == log("b"));
    // Other settings are another run.
    let other =
        compare(&place, "c", &[&two[..], &reuse].concat(), &["train.steps=3", "train.lr=0.01"]);
    assert_code(&moe(&other), 0, &[]);
    assert!(place.path("c/runs/smoe-s1/checkpoints").exists());

    assert_code(&run("d", &["--only", "nope"]), 1, &["--only nope: none of the runs", "smoe:1"]);
    assert_code(&run("d", &["--resume"]), 1, &["--resume", "no comparison there"]);
    assert_code(&run("d", &["--reuse", "/nowhere"]), 1, &["--reuse /nowhere: no comparison"]);
    assert_code(&run("d", &["--memory-cap", "much"]), 1, &["expected `none` or bytes"]);
    assert!(!place.path("d").exists());
}

#[test]
fn a_run_that_asks_for_too_much_memory_is_a_row_that_names_the_cap() {
    let place = Place::new();
    let cap = ["--memory-cap", "1200M", "--seeds", "1", "--only", "smoe"];
    let sets = ["train.batch=1000000", "train.steps=1"];
    let output = moe(&compare(&place, "out", &cap, &sets));
    assert_code(&output, 2, &["1 of 1 runs failed"]);
    let error = failure(&place, "out");
    for part in ["out of memory", "train.batch = 1000000", "--memory-cap was 1258291200 bytes"] {
        assert!(error.contains(part), "no {part} in: {error}");
    }
}

/// The processes that `parent` started.
fn children(parent: &Child) -> Vec<Pid> {
    let status = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
        let (pid, of): (i32, u32) = (field("Pid:")?, field("PPid:")? as u32);
        Pid::from_raw(pid).filter(|_| of == parent.id())
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| status(entry.unwrap())).collect()
}

fn wait_until_it_trains(run: &Path) {
    let log = run.join("metrics.jsonl");
    while !fs::read_to_string(&log).is_ok_and(|lines| lines.contains("\"train\"")) {
        std::thread::yield_now();
    }
}

#[test]
fn a_run_that_is_killed_is_a_row_and_the_next_one_starts() {
    let place = Place::new();
    let words = compare(&place, "out", &["--seeds", "1"], &["train.steps=100000"]);
    let parent = start(&words);
    wait_until_it_trains(&place.path("out/runs/dense-s0"));
    for pid in children(&parent) {
        kill_process(pid, Signal::KILL).unwrap();
    }
    wait_until_it_trains(&place.path("out/runs/smoe-s0"));
    send(&parent, Signal::TERM);
    assert_code(&parent.wait_with_output().unwrap(), 0, &["stopped; finished runs are kept"]);
    assert_eq!(rows(&place, "out"), ["dense:0"]);
    let error = failure(&place, "out");
    assert!(error.contains("signal: 9"), "{error}");
}

/// A terminal of 80 x 24, and the program on it.
fn on_a_terminal(args: &[String]) -> (File, Child) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_moe"));
    program.args(args);
    on_a_terminal_of_its_own(program)
}

/// A terminal of 80 x 24, and a child on it.
fn on_a_terminal_of_its_own(mut command: Command) -> (File, Child) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let end = || OpenOptions::new().read(true).write(true).open(&name).unwrap();
    command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
    (File::from(master), command.spawn().unwrap())
}

/// A word of a run in progress; only what changes is drawn, so that spaces need not come.
const RUNNING: &str = "step";

/// What the terminal is told from here on, until `part` comes, or until nobody holds it any more.
fn told(terminal: &mut File, part: Option<&str>) -> String {
    let mut bytes = Vec::new();
    let mut some = [0; 4096];
    let seen =
        |bytes: &[u8]| part.is_some_and(|part| String::from_utf8_lossy(bytes).contains(part));
    while !seen(&bytes) {
        // The last holder's end is an error on a terminal.
        match terminal.read(&mut some) {
            Ok(count) if count > 0 => bytes.extend(&some[..count]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";
const SHOW: &str = "\u{1b}[?25h";

#[test]
fn a_terminal_gets_a_dashboard_and_is_given_back_at_a_signal() {
    let place = Place::new();
    let words = compare(&place, "out", &["--seeds", "1"], &["train.steps=100000"]);
    let (mut terminal, mut child) = on_a_terminal(&words);
    let before = told(&mut terminal, Some(RUNNING));
    assert!(before.contains(ENTER) && !before.contains(LEAVE), "{before:?}");
    send(&child, Signal::INT);
    let after = told(&mut terminal, None);
    assert_eq!(child.wait().unwrap().code(), Some(0), "{after}");
    let (_, end) = after.split_once(LEAVE).expect("the screen is given back");
    assert!(after.contains(SHOW) && end.contains("stopped; finished runs are kept"), "{after:?}");
    assert!(!end.contains(ENTER), "{after:?}");
}

#[test]
fn a_second_signal_gives_the_terminal_back_and_an_error_too() {
    let place = Place::new();
    let tiny = place.show("tiny.toml");
    let train = |out: &str, set: &str| {
        let out = place.show(out);
        ["train", &tiny, "--out", &out, "--threads", "1", "--set", set].map(str::to_owned)
    };
    // One step takes long enough for both signals.
    let (mut terminal, mut child) = on_a_terminal(&train("long", "train.batch=20000"));
    told(&mut terminal, Some(RUNNING));
    send(&child, Signal::INT);
    send(&child, Signal::TERM);
    let after = told(&mut terminal, None);
    assert!(matches!(child.wait().unwrap().code(), Some(130 | 143)));
    assert!(after.contains(LEAVE) && after.contains(SHOW), "{after:?}");

    let (mut terminal, mut child) = on_a_terminal(&train("nan", "train.lr=1e30"));
    let all = told(&mut terminal, None);
    assert_eq!(child.wait().unwrap().code(), Some(2));
    let (_, end) = all.split_once(LEAVE).expect("the screen is given back");
    assert!(all.contains(ENTER) && end.contains("lower train.lr"), "{all:?}");
}

/// Tells a test that it is the child.
const CHILD: &str = "MOE_TEST_PANICS";
const WORDS: &str = "this is why";

/// A dashboard as runs have it: its drawer goes on while another thread panics, and it is dropped on the way.
fn panic_under_a_dashboard() -> ! {
    let stop = Arc::new(AtomicBool::new(false));
    let board = Board::new("moe train".into(), vec![Lane::new("smoe", 1, 10)]);
    let _dashboard = Dashboard::start(board, Screen::default(), stop).unwrap();
    panic!("{WORDS}");
}

#[test]
fn a_panic_is_told_on_the_screen_that_stays() {
    if std::env::var_os(CHILD).is_some() {
        panic_under_a_dashboard();
    }
    let mut itself = Command::new(std::env::current_exe().unwrap());
    let name = "a_panic_is_told_on_the_screen_that_stays";
    itself.args([name, "--exact", "--nocapture"]).env(CHILD, "1");
    let (mut terminal, mut child) = on_a_terminal_of_its_own(itself);
    let all = told(&mut terminal, None);
    assert!(!child.wait().unwrap().success(), "{all:?}");
    let (before, after) = all.split_once(LEAVE).expect("the screen is given back");
    assert!(before.contains(ENTER) && !before.contains(WORDS), "{all:?}");
    assert!(after.contains(WORDS) && !after.contains(LEAVE) && !after.contains(ENTER), "{all:?}");
}

#[test]
fn bars_are_there_for_who_wants_them() {
    let place = Place::new();
    let words = compare(&place, "out", &["--seeds", "1", "--no-tui"], &["train.steps=2"]);
    let (mut terminal, mut child) = on_a_terminal(&words);
    let all = told(&mut terminal, None);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!all.contains(ENTER) && all.contains("valid"), "{all:?}");
    // Nothing of a dashboard goes into a pipe.
    let piped = moe(&compare(&place, "out", &["--seeds", "1"], &["train.steps=2"]));
    assert!(!String::from_utf8_lossy(&piped.stdout).contains('\u{1b}'));
}
