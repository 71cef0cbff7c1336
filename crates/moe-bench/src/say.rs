//! Standard output whose reader may leave: `moe papers | head` is no failure.

use std::io::{self, ErrorKind, Write};

/// Prints `text`; a closed pipe ends it quietly.
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
