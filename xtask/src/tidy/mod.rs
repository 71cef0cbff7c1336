//! `cargo xtask tidy`: the conventions of the workspace, each a function from the tree of files to
//! what breaks it.

mod commands;
mod edges;
mod leftovers;
mod shape;
mod tree;
mod unsafety;

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::cli;
use crate::say::say;
use tree::Tree;

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Relative to the checkout.
    path: String,
    /// Counted from one.
    line: usize,
    /// What is wrong there.
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// A rule: its findings in a tree.
type Rule = fn(&Tree) -> Vec<Finding>;

const RULES: [Rule; 10] = [
    edges::crate_edges,
    edges::workspace_lints,
    shape::module_docs,
    shape::file_length,
    shape::paper_length,
    shape::whitespace,
    leftovers::left_overs,
    leftovers::sleeping_tests,
    commands::required_files,
    unsafety::unsafe_places,
];

/// Prints what breaks the conventions; true if nothing does.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let findings = findings(&Tree::read(root)?);
    for finding in &findings {
        say(finding);
    }
    match findings.len() {
        0 => say("tidy: nothing to find fault with"),
        1 => say("tidy: 1 place to put in order, named above"),
        count => say(format_args!("tidy: {count} places to put in order, named above")),
    }
    Ok(findings.is_empty())
}

fn findings(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<_> = RULES.iter().flat_map(|rule| rule(tree)).collect();
    findings.extend(commands::known_commands(tree, &cli::command_names()));
    findings.sort();
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_its_place() {
        let finding = Finding::new("crates/a/src/lib.rs", 12, "trailing whitespace");
        assert_eq!(finding.to_string(), "crates/a/src/lib.rs:12: trailing whitespace");
    }

    #[test]
    fn findings_of_all_rules_are_sorted() {
        let tree = Tree::of(&[("crates/b/src/lib.rs", "fn b() {}\n"), ("README.md", "end")]);
        let places: Vec<_> = findings(&tree).into_iter().map(|finding| finding.path).collect();
        assert_eq!(places, ["CHANGELOG.md", "README.md", "crates/b/src/lib.rs", "docs/log.md"]);
    }
}
