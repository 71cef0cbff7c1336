//! Candidates in processes of their own: another program, or this one with settings that would mix with
//! the parent's (allocator, thread pools, peak memory).
//!
//! Both sides speak JSON, one message a line: the child says once that it is ready or what it lacks, then
//! one answer for each line that it reads. It ends when its standard input does.

use crate::error::Misuse;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

/// The first message of a child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hello {
    /// It can run; what it is, with versions.
    Ready(String),
    /// It cannot; what is not there.
    Missing(String),
}

/// The answer to a round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Time of the round.
    pub seconds: f64,
    /// Forward, backward and update of a training step.
    #[serde(default)]
    pub phases: Option<[f64; 3]>,
    /// Cross-entropy of a training step's batch.
    #[serde(default)]
    pub loss: Option<f64>,
    /// Largest resident set of the process so far.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
}

/// A child that waits for its next round.
#[derive(Debug)]
pub struct Server {
    name: String,
    /// What the child said it is.
    pub about: String,
    child: Child,
    /// Dropped first when it is time to end.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Reads standard error, so that no child waits for room in it.
    complaint: Option<JoinHandle<String>>,
}

/// A child, or what it lacks.
#[derive(Debug)]
pub enum Started {
    /// It answers.
    Ready(Server),
    /// It said what is not there.
    Missing(String),
}

impl Server {
    /// Starts `command` and waits for its first message.
    ///
    /// # Errors
    /// A program that cannot be started, or that ends without a message.
    pub fn start(name: &str, command: &mut Command) -> Result<Started> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // It was the user who named the program.
        let refused = |program: &OsStr, error| {
            Misuse::new(format!("{name}: {} cannot be started: {error}", program.display()))
        };
        let mut child = command.spawn().map_err(|e| refused(command.get_program(), e))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("piped above"));
        let stdout = BufReader::new(stdout);
        let stderr = child.stderr.take().expect("piped above");
        let complaint = Some(std::thread::spawn(|| read_all(stderr)));
        let about = String::new();
        let mut server = Self { name: name.into(), about, child, stdin, stdout, complaint };
        match server.listen()? {
            Hello::Ready(about) => {
                server.about = about;
                Ok(Started::Ready(server))
            }
            Hello::Missing(what) => Ok(Started::Missing(what)),
        }
    }

    /// One round.
    ///
    /// # Errors
    /// In the child's words, if it ended.
    pub fn round(&mut self) -> Result<Answer> {
        let sent = self.stdin.as_mut().map(|stdin| stdin.write_all(b"\"round\"\n"));
        // A child that is gone says why on standard error.
        if sent.is_some_and(|sent| sent.is_err()) {
            return self.gone();
        }
        self.listen()
    }

    fn listen<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let mut line = String::new();
        // What libraries print on the way is none of ours.
        while self.stdout.read_line(&mut line).unwrap_or(0) > 0 {
            if let Ok(message) = serde_json::from_str(&line) {
                return Ok(message);
            }
            line.clear();
        }
        self.gone()
    }

    fn gone<T>(&mut self) -> Result<T> {
        self.stdin = None;
        let status = self.child.wait().with_context(|| format!("{}: lost", self.name))?;
        let words = self.complaint.take().and_then(|complaint| complaint.join().ok());
        let words = words.unwrap_or_default();
        let last = words.trim().lines().rev().take(3).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
        bail!("{}: ended with {status}: {last}", self.name)
    }
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is all there is.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        // End of input ends the child; one that does not listen is not waited for.
        self.stdin = None;
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The child's side: says `hello`, then answers each line of standard input with `round`.
///
/// # Errors
/// Those of `round`, or a parent that is gone.
pub fn serve(hello: &Hello, mut round: impl FnMut() -> Result<Answer>) -> Result<()> {
    say(hello)?;
    for line in std::io::stdin().lines() {
        line?;
        say(&round()?)?;
    }
    Ok(())
}

fn say(message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    let mut stdout = std::io::stdout();
    stdout.write_all(line.as_bytes())?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Started> {
        Server::start("it", Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn a_child_answers_and_says_why_it_ended() {
        let script = r#"echo warming; echo '{"ready": "it 1.0"}'; read _; echo '{"seconds": 1.5}'
            read _; echo 'first' >&2; echo 'out of luck' >&2; exit 3"#;
        let Started::Ready(mut server) = shell(script).unwrap() else { panic!("it is ready") };
        assert_eq!(server.about, "it 1.0");
        assert_eq!(server.round().unwrap(), Answer { seconds: 1.5, ..Answer::default() });
        let error = server.round().unwrap_err().to_string();
        assert!(error.contains("it: ended with") && error.contains("out of luck"), "{error}");
    }

    #[test]
    fn what_a_child_lacks_is_no_error() {
        let started = shell(r#"echo '{"missing": "a module"}'"#).unwrap();
        assert!(matches!(started, Started::Missing(what) if what == "a module"));
        assert!(shell("echo nothing; exit 1").unwrap_err().to_string().contains("ended with"));
        let absent = Server::start("it", &mut Command::new("/nowhere/program"));
        let error = absent.unwrap_err();
        assert!(error.is::<Misuse>() && error.to_string().starts_with("it: /"), "{error}");
        assert!(error.to_string().contains("cannot be started: No such file"), "{error}");
    }
}
