//! What happens to the `moe` binary from outside: signals, full and read-only disks, no memory.

#[path = "common/child.rs"]
mod child;
mod common;

use child::{assert_code, send, start};
use common::{Place, moe, program, text};
use rustix::process::Signal;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

/// Runs of the recipe in a place.
trait Runs {
    fn train(&self, sets: &[&str]) -> Vec<String>;
    fn checkpoint(&self, step: u64) -> PathBuf;
    fn files(&self, step: u64) -> [Vec<u8>; 3];
    fn checkpoints(&self) -> Vec<String>;
}

impl Runs for Place {
    /// Words of `moe train` into `run`, with settings over the recipe.
    fn train(&self, sets: &[&str]) -> Vec<String> {
        let (recipe, out) = (self.show("tiny.toml"), self.show("run"));
        let words = ["train", &recipe, "--out", &out, "--threads", "1"];
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        words.into_iter().chain(sets).map(str::to_owned).collect()
    }

    fn checkpoint(&self, step: u64) -> PathBuf {
        self.path("run").join(format!("checkpoints/step-{step:06}"))
    }

    /// Every file of a checkpoint.
    fn files(&self, step: u64) -> [Vec<u8>; 3] {
        ["model.safetensors", "optimizer.safetensors", "state.json"]
            .map(|name| fs::read(self.checkpoint(step).join(name)).unwrap())
    }

    /// Checkpoints there are, whole or not.
    fn checkpoints(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("run/checkpoints")).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// `moe` under limits that a shell sets.
fn limited(limits: &str, args: &[String]) -> Output {
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    Command::new("sh").args(["-c", &script, program()]).args(args).output().unwrap()
}

/// Waits for a line of the child with `part` in it; returns it and keeps the pipe open.
fn wait_for(child: &mut Child, part: &str) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    // A reader that takes no more than it needs: what follows is read at the end.
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        let mut byte = [0];
        while !line.ends_with('\n') {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "no {part} before the end");
            line.push(byte[0].into());
        }
    }
    line
}

#[test]
fn a_signal_finishes_the_step_saves_and_is_no_failure() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let mut args = place.train(&["train.steps=100000"]);
        args.push("--worker".into());
        let mut child = start(&args);
        wait_for(&mut child, "\"step\"");
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        assert_code(&output, 0, &["stopped"]);
        let all = place.checkpoints();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_code(&moe(&["checkpoint", "verify", &place.show("run")]), 0, &["whole, step"]);
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::new();
    // One step takes long enough for both.
    let mut args = place.train(&["train.batch=20000"]);
    args.push("--worker".into());
    let mut child = start(&args);
    wait_for(&mut child, "ready");
    send(&child, Signal::INT);
    send(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    // Both may be pending together, and then the later handler runs first.
    assert!(matches!(output.status.code(), Some(130 | 143)), "{}", output.status);
    assert!(!place.path("run/checkpoints").exists(), "at once");
}

#[test]
fn a_second_process_is_kept_out_of_a_run() {
    let place = Place::new();
    let mut first = place.train(&["train.steps=100000000", "train.log_every=1000000"]);
    first.push("--worker".into());
    let mut child = start(&first);
    wait_for(&mut child, "ready");
    let mut second = place.train(&["train.steps=100000000", "train.log_every=1000000"]);
    second.push("--resume".into());
    assert_code(&moe(&second), 1, &["run: another process is writing this run", "--out"]);
    send(&child, Signal::KILL);
    child.wait().unwrap();
    // The lock went with its owner, however that ended.
    second.extend(["--set".into(), "train.stop_after=1".into()]);
    assert_code(&moe(&second), 0, &["stopped after step 1"]);
}

/// Waits until the child handles signals itself, as the system's table of it says.
fn wait_for_handlers(child: &Child) {
    let table = format!("/proc/{}/status", child.id());
    let caught = || {
        let text = fs::read_to_string(&table).unwrap();
        let mask = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() >> (15 - 1) & 1 == 1
    };
    while !caught() {
        std::thread::yield_now();
    }
}

#[test]
fn reading_data_is_stopped_in_training_evaluation_and_comparison() {
    let place = Place::new();
    // Splitting this into words takes far longer than a look at the flag.
    fs::write(place.path("long.txt"), text().repeat(10_000)).unwrap();
    let slow = format!("data={{ source = '{}', tokenizer = 'word' }}", place.show("long.txt"));
    let stop_while_reading = |args: &[String]| {
        let child = start(args);
        wait_for_handlers(&child);
        send(&child, Signal::TERM);
        let output = child.wait_with_output().unwrap();
        assert_code(&output, 0, &["stopped while reading the data"]);
    };
    stop_while_reading(&place.train(&[&slow]));
    assert!(!place.path("run").exists(), "nothing was written");
    let (out, routers) = (place.show("cmp"), ["--routers", "dense", "--set", &slow]);
    let compare = [&["compare", "--out", &out][..], &routers].concat();
    stop_while_reading(&compare.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let words = ["data.tokenizer='word'", "train.stop_after=1"];
    assert_code(&moe(&place.train(&words)), 0, &["stopped after step 1"]);
    let eval = ["eval", &place.show("run"), "--set", &slow];
    stop_while_reading(&eval.map(str::to_owned));
}

#[test]
fn a_comparison_is_stopped_and_its_runs_with_it() {
    let place = Place::new();
    let (out, text) = (place.show("cmp"), place.show("text.txt"));
    let words = ["compare", "--routers", "dense,smoe", "--seeds", "1", "--jobs", "1"];
    let sets = ["model.width=16", "train.sequence=8", "train.eval_batches=1", "train.steps=100000"];
    let sets = sets.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>();
    let child = start(&[&words[..], &["--out", &out, "--data", &text], &sets].concat());
    let log = place.path("cmp/runs/dense-s0/metrics.jsonl");
    while !fs::read_to_string(&log).is_ok_and(|lines| lines.contains("\"train\"")) {
        std::thread::yield_now();
    }
    send(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_code(&output, 0, &["stopped; finished runs are kept"]);
    assert_code(&moe(&["checkpoint", "verify", &place.show("cmp/runs/dense-s0")]), 0, &["whole"]);
    assert!(!place.path("cmp/runs/smoe-s0").exists(), "no run starts after a stop");
}

#[test]
fn a_full_disk_is_named_and_the_checkpoint_before_stands() {
    let place = Place::new();
    assert_code(&moe(&place.train(&["train.stop_after=3"])), 0, &[]);
    let before = place.files(3);
    // Files of at most 10 KiB; dash counts in half KiB.
    let mut args = place.train(&[]);
    args.push("--resume".into());
    let output = limited("trap '' XFSZ; ulimit -f 20", &args);
    assert_code(&output, 2, &["model.safetensors", "File too large"]);
    assert_eq!(place.checkpoints(), ["step-000003"], "nothing half-written is left");
    assert!(place.files(3) == before);
    assert_code(&moe(&args), 0, &["validation loss"]);
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let place = Place::new();
    let mut args = place.train(&[]);
    args[3] = "/proc/moe-run".into();
    assert_code(&moe(&args), 2, &["cannot write the run to /proc/moe-run"]);
    fs::create_dir(place.path("run")).unwrap();
    std::os::unix::fs::symlink("/dev/full", place.path("run/recipe.toml.partial")).unwrap();
    let mut args = place.train(&[]);
    args.push("--resume".into());
    assert_code(&moe(&args), 2, &["recipe.toml", "No space left on device"]);
}

#[test]
fn too_little_memory_says_what_to_lower_and_the_checkpoint_stands() {
    let place = Place::new();
    // The evaluation and the checkpoint at step 0 need little, the first step gigabytes.
    let sets = ["train.batch=1000000", "capacity.factor=1.25"];
    assert_code(&moe(&place.train(&[&sets[..], &["train.stop_after=0"]].concat())), 0, &[]);
    let before = place.files(0);
    let mut args = place.train(&sets);
    args.push("--resume".into());
    let output = limited("ulimit -v 2500000", &args);
    let parts = ["train.batch = 1000000", "train.sequence = 8", "1.25", "lower train.batch"];
    assert_code(&output, 2, &parts);
    assert_code(&output, 2, &["out of memory", "router smoe", "the last checkpoint stands"]);
    assert!(place.files(0) == before);
}

#[test]
fn a_resumed_run_keeps_its_recipe() {
    let place = Place::new();
    assert_code(&moe(&place.train(&["train.stop_after=2"])), 0, &[]);
    let resume = |sets: &[&str]| {
        let mut args = place.train(sets);
        args.push("--resume".into());
        moe(&args)
    };
    let output = resume(&["train.lr=0.5", "router.top_k=1"]);
    assert_code(&output, 1, &["train.lr = 0.5, was 0.003", "router.top_k = 1, was 2"]);
    assert_code(&resume(&["train.stop_after=4", "train.log_every=2"]), 0, &["after step 4"]);
    let keep = ["train.keep_last=1", "train.keep_best=true"];
    assert_code(&resume(&keep), 0, &["validation loss"]);
    let best = place.checkpoints().len();
    assert!((1..=2).contains(&best), "{:?}", place.checkpoints());
}

#[test]
fn damage_is_found_without_a_model() {
    let place = Place::new();
    assert_code(&moe(&place.train(&["train.checkpoint_every=3"])), 0, &[]);
    let verify = |dir: &Path| moe(&["checkpoint".as_ref(), "verify".as_ref(), dir.as_os_str()]);
    assert_code(&verify(&place.path("run")), 0, &["step-000003: whole", "step-000006: whole"]);
    fs::write(place.checkpoint(3).join("optimizer.safetensors"), "short").unwrap();
    let parts = ["optimizer.safetensors: damaged", "1 of 2 checkpoints are damaged"];
    assert_code(&verify(&place.path("run")), 2, &parts);
    assert_code(&verify(&place.checkpoint(6)), 0, &["whole, step 6"]);
    assert_code(&verify(&place.path("text.txt")), 1, &["no checkpoint here"]);
}

/// What an interrupted save left is said and cleared at the next start.
#[test]
fn the_next_start_names_what_was_half_written() {
    let place = Place::new();
    assert_code(&moe(&place.train(&["train.stop_after=2"])), 0, &[]);
    let half = place.path("run/checkpoints/step-000004.partial");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.safetensors"), "half").unwrap();
    let mut args = place.train(&[]);
    args.push("--resume".into());
    assert_code(&moe(&args), 0, &["step-000004.partial: half-written", "validation loss"]);
    assert_eq!(place.checkpoints(), ["step-000002", "step-000006"]);
}

#[test]
fn deterministic_mode_changes_no_byte_on_a_cpu() {
    let (plain, strict) = (Place::new(), Place::new());
    assert_code(&moe(&plain.train(&[])), 0, &[]);
    let mut args = strict.train(&[]);
    args.push("--deterministic".into());
    assert_code(&moe(&args), 0, &[]);
    assert!(plain.files(6)[..2] == strict.files(6)[..2]);
}
