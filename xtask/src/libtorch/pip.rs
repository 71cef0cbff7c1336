//! Downloads by pip, so that the user's index, proxy and certificate settings hold.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{PipeReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;

use super::VERSION;
use super::wheels::{PLATFORMS, PYTHON_VERSION, Wheel, total_size};
use crate::env::Env;
use crate::pipe;
use crate::problem::problem;
use crate::progress;

/// How often the bar looks at what has arrived.
const LOOK: Duration = Duration::from_millis(100);

/// How much of pip's output an error shows.
const SHOWN_LINES: usize = 12;

/// A way to start pip: a program and its first arguments.
pub(crate) type Pip = Vec<&'static str>;

/// Finds a pip that starts.
pub(crate) fn find(env: &Env) -> Option<Pip> {
    let ways = [vec![env.python(), "-m", "pip"], vec!["pip3"], vec!["pip"]];
    ways.into_iter().find(|way| version(way).is_some())
}

/// The first words of `pip --version`, if it starts.
pub(crate) fn version(pip: &Pip) -> Option<String> {
    let output = command(pip).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words: Vec<_> = text.split_whitespace().take(2).collect();
    output.status.success().then(|| words.join(" "))
}

/// What is downloaded, as messages say it.
#[derive(Debug, Clone)]
pub(crate) struct What {
    /// Name and version.
    pub(crate) name: String,
    /// The ways that need no pip, one a line.
    pub(crate) by_hand: String,
}

/// Downloads wheels into a directory.
pub(crate) fn download(env: &Env, what: &What, wheels: &[Wheel], dir: &Path) -> Result<()> {
    let Some(pip) = find(env) else {
        return problem(
            format!("no pip: neither `{} -m pip` nor pip3 nor pip starts", env.python()),
            format!("apt-get install python3-pip   (Debian, Ubuntu)\n{}", what.by_hand),
        );
    };
    // pip downloads to its own temporary directory first; here its growth can be seen, and it goes
    // with ours.
    let temporary = dir.join("tmp");
    fs::create_dir(&temporary).context("making a directory for pip")?;
    let mut command = download_command(&pip, wheels, dir);
    command.env("TMPDIR", &temporary);
    let (mut child, reader) =
        pipe::start(command).with_context(|| format!("starting {}", pip.join(" ")))?;
    let bar = progress::bytes(&format!("downloading {}", what.name), total_size(wheels));
    let said = watch(reader, dir, &bar);
    bar.finish_and_clear();
    if child.wait()?.success() { Ok(()) } else { explain(&pip, what, &said) }
}

fn command(pip: &Pip) -> Command {
    let mut command = Command::new(pip[0]);
    command.args(&pip[1..]).stdin(Stdio::null());
    command
}

fn download_command(pip: &Pip, wheels: &[Wheel], dir: &Path) -> Command {
    let mut command = command(pip);
    command.args(["download", "--no-deps", "--only-binary=:all:", "--no-input"]);
    // The cache of libtorch is enough; pip's own would keep the same bytes a second time.
    command.args(["--no-cache-dir", "--progress-bar=off", "--python-version", PYTHON_VERSION]);
    command.args(PLATFORMS.iter().flat_map(|platform| ["--platform", platform]));
    command.arg("-d").arg(dir).args(wheels.iter().map(|wheel| wheel.requirement));
    command
}

/// Moves the bar until the command has ended; returns what it said.
fn watch(reader: PipeReader, dir: &Path, bar: &ProgressBar) -> String {
    let (sender, output) = mpsc::channel();
    thread::spawn(move || sender.send(read_all(reader)));
    loop {
        match output.recv_timeout(LOOK) {
            Ok(said) => return said,
            Err(RecvTimeoutError::Timeout) => bar.set_position(arrived(dir)),
            Err(RecvTimeoutError::Disconnected) => return String::new(),
        }
    }
}

fn read_all(mut reader: PipeReader) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is worth showing; the exit status tells of the failure.
    let _ = reader.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The bytes that have arrived. pip copies a file once it is complete: both count once.
fn arrived(dir: &Path) -> u64 {
    let mut largest = BTreeMap::new();
    gather(dir, &mut largest);
    largest.values().sum()
}

fn gather(dir: &Path, largest: &mut BTreeMap<OsString, u64>) {
    // Files come and go while this looks: what cannot be read is not there.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(found) if found.is_dir() => gather(&entry.path(), largest),
            Ok(found) => {
                let size = largest.entry(entry.file_name()).or_default();
                *size = found.len().max(*size);
            }
            Err(_) => {}
        }
    }
}

fn explain(pip: &Pip, what: &What, said: &str) -> Result<()> {
    if said.contains("No space left on device") {
        return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
    }
    let again = format!(
        "cargo xtask setup   (once the network answers; pip's index and proxy: `{} config list`)",
        pip.join(" ")
    );
    problem(
        format!("pip could not download {}; its last lines:\n{}", what.name, last_lines(said)),
        format!("{again}\n{}", what.by_hand),
    )
}

fn last_lines(said: &str) -> String {
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    shown.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// libtorch, as it is downloaded.
pub(crate) fn libtorch() -> What {
    let by_hand = format!(
        "LIBTORCH=/path/to/libtorch cargo xtask setup   (a libtorch {VERSION} that is here already)\n\
         LIBTORCH_USE_PYTORCH=1 cargo xtask setup   (a Python with torch {VERSION})"
    );
    What { name: format!("libtorch {VERSION}"), by_hand }
}

#[cfg(test)]
mod tests {
    use super::super::wheels::WHEELS;
    use super::*;

    #[test]
    fn pip_is_asked_for_the_pinned_wheels() {
        let command = download_command(&vec!["python3", "-m", "pip"], &WHEELS, Path::new("/to"));
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(args[..3], ["-m", "pip", "download"]);
        assert_eq!(args[args.len() - 5..][..3], ["-d", "/to", "torch===2.11.0"]);
        assert!(args.contains(&"manylinux_2_28_x86_64"));
    }

    #[test]
    fn a_file_counts_once_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::write(dir.path().join("tmp/a.whl"), "whole").unwrap();
        fs::write(dir.path().join("a.whl"), "who").unwrap();
        fs::write(dir.path().join("b.whl"), "b").unwrap();
        assert_eq!(arrived(dir.path()), 6);
    }

    #[test]
    fn a_failure_shows_the_last_lines() {
        let said: String = (0..40).map(|line| format!("line {line}\n\n")).collect();
        let error = explain(&vec!["pip3"], &libtorch(), &said).unwrap_err().to_string();
        assert!(!error.contains("line 27\n") && error.contains("    line 28\n"), "{error}");
        assert!(error.contains("    line 39\n  mend: cargo xtask setup"), "{error}");
        assert!(error.contains("mend: LIBTORCH=/path/to/libtorch cargo xtask setup"), "{error}");
    }

    #[test]
    fn a_full_disk_is_known_by_what_pip_says() {
        let said = "OSError: [Errno 28] No space left on device";
        let error = explain(&vec!["pip3"], &libtorch(), said).unwrap_err();
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        assert_eq!(kind, Some(std::io::ErrorKind::StorageFull));
    }
}
