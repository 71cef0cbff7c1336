//! Commands whose reader has left: `moe eval RUN | head` is no failure, whatever is printed.

mod common;

use common::{Place, moe, program};
use std::process::{Command, Stdio};

/// What a command says on standard error, and its exit code, where nobody reads standard output.
fn unheard(args: &[String]) -> (String, Option<i32>) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(program());
    let child = command.args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    // With the command goes our end of the pipe.
    drop(command);
    let output = child.wait_with_output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

/// Words split at spaces, with the names of a place's files in the place of `@name`.
fn words(place: &Place, line: &str) -> Vec<String> {
    let word = |word: &str| match word.strip_prefix('@') {
        Some(name) => place.show(name),
        None => word.to_owned(),
    };
    line.split(' ').map(word).collect()
}

#[track_caller]
fn assert_quiet(place: &Place, line: &str) {
    let (said, code) = unheard(&words(place, line));
    assert!(!said.contains("panicked"), "{line}: {said}");
    assert_eq!(code, Some(0), "{line}: {said}");
}

#[test]
fn what_needs_no_run() {
    let place = Place::new();
    for line in ["papers", "papers smoe", "schema", "doctor", "data list", "--help", "--version"] {
        assert_quiet(&place, line);
    }
    assert_quiet(&place, "train @tiny.toml --dry-run");
    assert_quiet(&place, "train @tiny.toml --dry-run --json");
}

#[test]
fn what_reads_a_run() {
    let place = Place::new();
    assert_quiet(&place, "train @tiny.toml --out @run --threads 1");
    for line in [
        "eval @run --json",
        "eval @run --batches 2",
        "eval @run --batches 2 --routing-log @log.jsonl",
        "eval @run --batches 2 --sweep router.top_k=1,2",
        "eval @run --batches 2 --sweep router.top_k=1,2 --json",
        "robust @run --batches 2 --attacks characters --rates 0.1",
        "robust @run --batches 2 --attacks characters --rates 0.1 --json",
        "inspect @log.jsonl",
        "inspect @log.jsonl --json",
        "checkpoint verify @run",
    ] {
        assert_quiet(&place, line);
    }
}

#[test]
fn what_compares() {
    let place = Place::new();
    let sets = "--set model.width=8 --set model.heads=2 --set model.context=8 --set train.sequence=8 \
                --set train.batch=2 --set train.steps=2 --set train.eval_batches=1";
    let compare =
        "compare --routers dense,smoe --seeds 1 --jobs 1 --threads 1 --data @text.txt --out";
    assert_quiet(&place, &format!("{compare} @c {sets}"));
    assert_quiet(&place, &format!("{compare} @j {sets} --json"));
    assert_quiet(&place, "report @c --study @study.md");
}

/// An error is one all the same, also where nobody reads about it.
#[test]
fn what_fails_fails() {
    let place = Place::new();
    let (said, code) = unheard(&words(&place, "eval @none"));
    assert_eq!(code, Some(1), "{said}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(program());
    command.args(words(&place, "eval @none")).stdout(Stdio::null()).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(1));
    assert_eq!(moe(&words(&place, "eval @none")).status.code(), Some(1));
}
