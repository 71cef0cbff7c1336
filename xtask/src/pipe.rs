//! Both streams of a child through one pipe, so that their lines keep their order.

use std::io::{self, PipeReader};
use std::process::{Child, Command};

/// Starts a command; what it says on standard output and standard error comes from the reader.
pub(crate) fn start(mut command: Command) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // The command is dropped here, and with it our ends of the pipe: the reader would else never
    // see the end.
    Ok((child, reader))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn both_streams_come_in_order() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; echo three; exit 3"]);
        let (mut child, mut reader) = start(command).unwrap();
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "one\ntwo\nthree\n");
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
