//! The C++ compiler, which torch-sys needs.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::env::Env;
use crate::problem::{Problem, problem};

/// A compiler that starts.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// How it is called.
    pub(crate) name: String,
    /// The first line of what `--version` says.
    pub(crate) version: String,
}

/// Finds the compiler that torch-sys will call: `$CXX`, or `c++`.
pub(crate) fn find(env: &Env) -> Result<Compiler, Problem> {
    match env.get("CXX").map(|cxx| cxx.to_string_lossy()) {
        Some(cxx) => probe(&cxx).ok_or_else(|| {
            Problem::new(
                format!("CXX={cxx} does not start"),
                format!("env -u CXX {AGAIN}   (takes c++)"),
            )
        }),
        None => probe("c++").ok_or_else(none),
    }
}

/// Fails if there is no compiler.
pub(crate) fn require(env: &Env) -> Result<()> {
    match find(env) {
        Ok(_) => Ok(()),
        Err(Problem { what, mend }) => problem(what, mend),
    }
}

/// The first line of what `rustc --version` says.
pub(crate) fn rust_version() -> Result<String> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("--version")
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

const AGAIN: &str = "cargo xtask setup";

fn none() -> Problem {
    match probe("g++") {
        Some(_) => Problem::new("g++ is there, but not as c++", format!("CXX=g++ {AGAIN}")),
        None => Problem::new(
            "no C++ compiler: c++ is not in PATH, and torch-sys needs one",
            "apt-get install g++   (Debian, Ubuntu)\ndnf install gcc-c++   (Fedora)",
        ),
    }
}

/// `CXX` may hold a wrapper and arguments, as in `ccache g++`.
fn probe(name: &str) -> Option<Compiler> {
    let mut words = name.split_whitespace();
    let output = Command::new(words.next()?)
        .args(words)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next().unwrap_or_default().to_owned();
    output.status.success().then(|| Compiler { name: name.to_owned(), version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_does_not_start_is_named() {
        let problem = find(&Env::from([("CXX", "/no/such/compiler")])).unwrap_err();
        assert_eq!(problem.what, "CXX=/no/such/compiler does not start");
    }

    #[test]
    fn a_wrapper_with_arguments_is_a_compiler() {
        let compiler = probe("env -u NOTHING true").map(|compiler| compiler.name);
        assert_eq!(compiler.as_deref(), Some("env -u NOTHING true"));
    }
}
