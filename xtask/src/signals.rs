//! Runs a child to its end, however the user interrupts it.

use std::io::{self, IsTerminal};
use std::process::{Command, ExitStatus};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Runs a command and outlives it: what would end this program ends the child, in the child's own
/// time.
pub(crate) fn run_to_end(command: &mut Command) -> io::Result<ExitStatus> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);
    let forwarder = thread::spawn(move || {
        signals.forever().filter(|signal| !child_has(*signal)).for_each(|signal| send(pid, signal));
    });
    let status = child.wait();
    handle.close();
    // It cannot fail but by a panic, which has been printed.
    let _ = forwarder.join();
    status
}

/// A terminal sends what is typed to the child as well; a second signal may mean "at once" to it.
fn child_has(signal: i32) -> bool {
    let on_terminal =
        io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal();
    signal != SIGTERM && on_terminal
}

fn send(pid: Pid, signal: i32) {
    let signal = match signal {
        SIGINT => Signal::INT,
        SIGHUP => Signal::HUP,
        _ => Signal::TERM,
    };
    // The child may have ended meanwhile, which is what is wanted.
    let _ = kill_process(pid, signal);
}

/// The exit code of a child, as a shell would give it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_a_shell() {
        let code =
            |script: &str| exit_code(run_to_end(Command::new("sh").args(["-c", script])).unwrap());
        assert_eq!(code("exit 7"), 7);
        assert_eq!(code("kill -KILL $$"), 137);
    }
}
