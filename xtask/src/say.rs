//! What this program prints. A reader may leave early, as in `cargo xtask tidy | head`: that is no failure.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// A line on standard output. What else than a closed pipe keeps it from there ends the program.
pub(crate) fn say(line: impl Display) {
    match write(&mut io::stdout().lock(), line) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            tell(format_args!("error: cannot write to standard output: {error}"));
            std::process::exit(crate::FAILURE.into());
        }
        _ => {}
    }
}

/// A line on standard error. If nobody hears it, there is nowhere to say so.
pub(crate) fn tell(line: impl Display) {
    let _ = write(&mut io::stderr().lock(), line);
}

/// In one piece, so that lines of two programs on one pipe do not mix.
fn write(out: &mut impl Write, line: impl Display) -> io::Result<()> {
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}
