//! The lines that the doctor prints.

use crate::problem::Problem;

/// What was found, in the order it was looked for.
#[derive(Debug, Default)]
pub(crate) struct Report {
    lines: Vec<String>,
    problems: usize,
}

impl Report {
    /// Something found, or found missing where it is not needed.
    pub(crate) fn found(&mut self, name: &str, what: impl AsRef<str>) {
        self.lines.push(format!("{name:10} {}", what.as_ref()));
    }

    /// Something needed that is missing or wrong.
    pub(crate) fn problem(&mut self, name: &str, problem: &Problem) {
        self.problems += 1;
        self.found(name, format!("PROBLEM: {problem}"));
    }

    /// Either of the two.
    pub(crate) fn either(&mut self, name: &str, looked: Result<String, Problem>) {
        match looked {
            Ok(what) => self.found(name, what),
            Err(problem) => self.problem(name, &problem),
        }
    }

    /// The number of problems so far.
    pub(crate) fn problems(&self) -> usize {
        self.problems
    }

    /// All lines and the verdict.
    pub(crate) fn text(&self) -> String {
        let verdict = match self.problems {
            0 => "ready: `cargo xtask test` and `cargo xtask bench` have what they need".to_owned(),
            1 => "not ready: 1 problem".to_owned(),
            count => format!("not ready: {count} problems"),
        };
        format!("{}\n{:10} {verdict}\n", self.lines.join("\n"), "verdict")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_what_mends_it() {
        let mut report = Report::default();
        report.either("C++", Err(Problem::new("no compiler", "apt-get install g++")));
        report.either("cargo", Ok("1.95.0".to_owned()));
        assert_eq!(
            report.text(),
            "C++        PROBLEM: no compiler\n  mend: apt-get install g++\n\
             cargo      1.95.0\nverdict    not ready: 1 problem\n"
        );
    }

    #[test]
    fn no_problem_is_ready() {
        assert!(Report::default().text().contains("verdict    ready"));
    }
}
