//! The program's words, whose reader may leave: `moe papers | head` is no failure.

use serde::Serialize;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Prints `text` on standard output; a closed pipe ends it quietly.
///
/// # Errors
/// What else the operating system says.
pub(crate) fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// The same with the end of a line.
///
/// # Errors
/// As [`say`].
pub(crate) fn say_line(line: impl Display) -> io::Result<()> {
    say(&format!("{line}\n"))
}

/// The same of a value as JSON with indents.
///
/// # Errors
/// As [`say`], and a value that JSON cannot hold.
pub(crate) fn say_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(say_line(serde_json::to_string_pretty(value)?)?)
}

/// A line on standard error. If nobody hears it, there is nowhere to say so.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
