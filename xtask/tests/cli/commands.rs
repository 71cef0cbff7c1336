//! The other commands, with a cargo that does as the test tells it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{Scene, fails_saying};
use assert_cmd::assert::Assert;

fn said(assert: &Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

/// A scene that is set up, with the files that `tidy` wants.
fn ready() -> Scene {
    let scene = Scene::new();
    let theirs = scene.libtorch("theirs", "2.11.0");
    scene.xtask(&["setup"]).env("LIBTORCH", &theirs).assert().success();
    for path in ["CHANGELOG.md", "docs/log.md"] {
        scene.write(&format!("checkout/{path}"), "# Log\n");
    }
    scene
}

#[test]
fn misuse_is_told_from_failure() {
    let scene = Scene::new();
    scene.xtask(&["--help"]).assert().code(0);
    for wrong in [&["polish"][..], &["setup", "--fast"], &["test", "--only", "some"], &[]] {
        scene.xtask(wrong).assert().code(1);
    }
}

#[test]
fn tidy_names_the_places() {
    let scene = ready();
    scene.xtask(&["tidy"]).assert().success();
    scene.write("checkout/crates/a/src/lib.rs", "//! A.\n\nfn a() {} \n");
    let assert = scene.xtask(&["tidy"]).assert().code(2);
    assert!(said(&assert).contains("crates/a/src/lib.rs:3: trailing whitespace\n"));
}

#[test]
fn test_counts_what_cargo_says() {
    let scene = ready();
    scene.cargo(
        "echo \"$* LIBTORCH=$LIBTORCH LD=$LD_LIBRARY_PATH DOC=$RUSTDOCFLAGS\"\n\
         [ $1 != test ] || echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured'",
    );
    let assert = scene.xtask(&["test"]).assert().success();
    let said = said(&assert);
    assert_eq!(said.lines().last(), Some("12 passed, 0 failed"));
    let link = scene.path("checkout/.libtorch").display().to_string();
    for line in [
        format!("fmt --all --check LIBTORCH={link} LD= DOC=\n"),
        format!(
            "test --no-fail-fast --doc --workspace --exclude xtask LIBTORCH={link} LD={link}/run DOC=\n"
        ),
        format!("doc --no-deps --workspace --exclude xtask LIBTORCH={link} LD= DOC=-D warnings\n"),
    ] {
        assert!(said.contains(&line), "{line:?} is not in:\n{said}");
    }
}

#[test]
fn test_goes_on_after_a_failure() {
    let scene = ready();
    scene.cargo(
        "[ $1 != fmt ] || exit 1\n\
         [ $1 != test ] || echo 'test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured'\n\
         [ $1 != test ]",
    );
    let assert = scene.xtask(&["test"]).assert().code(2);
    assert_eq!(said(&assert).lines().last(), Some("12 passed, 5 failed"));
}

#[test]
fn steps_without_libtorch_run_where_it_cannot_be_had() {
    let scene = Scene::new();
    scene.without("c++");
    let assert = scene.xtask(&["test", "--only", "fmt", "--only", "clippy"]).assert().code(2);
    let said = said(&assert);
    for line in ["fmt                ok", "setup          FAILED", "clippy        not run"] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    assert_eq!(said.lines().last(), Some("0 passed, 2 failed"));
    fails_saying(assert, &["error: no C++ compiler"]);
}

#[test]
fn doctor_names_every_problem_and_what_mends_it() {
    let scene = Scene::new();
    scene.without("c++");
    let assert = scene.xtask(&["doctor"]).env("RUSTFLAGS", "-D warnings").assert().code(2);
    let said = said(&assert);
    for part in [
        "rustc      PROBLEM: ",
        "cargo      PROBLEM: ",
        "C++        PROBLEM: no C++ compiler",
        "mend: apt-get install g++",
        "RUSTFLAGS  PROBLEM: ",
        "libtorch   PROBLEM: there is no ",
        "mend: cargo xtask setup\n",
        "verdict    not ready: 5 problems",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

#[test]
fn doctor_is_content_with_what_is_complete() {
    let scene = ready();
    scene.script("rustc", "echo 'rustc 1.95.0 (abc)'");
    scene.cargo("echo 'cargo 1.95.0 (abc)'");
    let assert = scene.xtask(&["doctor"]).assert().success();
    let said = said(&assert);
    assert!(said.contains("origin     LIBTORCH="), "{said}");
    assert!(said.contains("verdict    ready"), "{said}");
}

/// A scene whose cargo builds this program.
fn with_moe(body: &str) -> Scene {
    let scene = ready();
    scene.cargo("exit 0");
    scene.script("moe", body);
    let place = scene.path("checkout/target/release/moe");
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::rename(scene.path("bin/moe"), place).unwrap();
    scene
}

#[test]
fn bench_passes_arguments_and_status_on() {
    let scene = with_moe("echo \"$@\"; exit 7");
    let assert = scene.xtask(&["bench", "--device", "cpu"]).assert().code(7);
    assert_eq!(said(&assert), "compare --preset quick --device cpu\n");
    let times = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(times.starts_with("wall time: set-up "), "{times}");
    let assert = scene.xtask(&["bench", "--preset=full"]).assert().code(7);
    assert_eq!(said(&assert), "compare --preset=full\n");
}

#[test]
fn bench_tells_a_build_that_fails() {
    let scene = with_moe("exit 0");
    scene.cargo("exit 101");
    fails_saying(scene.xtask(&["bench"]).assert(), &["moe-bench does not build"]);
}

#[test]
fn bench_outlives_what_it_runs() {
    let scene = with_moe(
        "trap 'kill $!; echo stopped; exit 5' TERM\ntail -f /dev/null &\necho ready\nwait",
    );
    let mut command = scene.plain(&["bench"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    let kill = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(lines.next().as_deref(), Some("stopped"));
    assert_eq!(child.wait().unwrap().code(), Some(5));
}
