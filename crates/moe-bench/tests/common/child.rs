//! A child that is watched while it works.

use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, Output, Stdio};

/// `moe` on pipes.
pub(crate) fn start<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moe"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

pub(crate) fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The exit code, and what has to be in either stream.
#[track_caller]
pub(crate) fn assert_code(output: &Output, code: i32, parts: &[&str]) {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(output.status.code(), Some(code), "{}: {out}{err}", output.status);
    let said = |part: &&&str| out.contains(**part) || err.contains(**part);
    parts.iter().for_each(|part| assert!(said(&part), "no `{part}` in: {out}{err}"));
}
