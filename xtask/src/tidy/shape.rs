//! The shape of files: module documentation, length, white space.

use super::Finding;
use super::tree::{Source, Tree};

/// The most lines of a file in Rust.
const MOST_LINES: usize = 600;

/// The most lines of a router's file: a paper should be readable in one sitting.
const MOST_LINES_OF_A_PAPER: usize = 300;

/// Every module begins with what it is for.
pub(crate) fn module_docs(tree: &Tree) -> Vec<Finding> {
    let begins = |source: &&Source| {
        source
            .text
            .lines()
            .find(|line| !line.trim().is_empty())
            .is_some_and(|line| line.starts_with("//!"))
    };
    let finding = |source: &Source| {
        Finding::new(&source.path, 1, "no module documentation (`//!`) at the head")
    };
    tree.rust()
        .filter(|source| is_documented(&source.path) && !begins(source))
        .map(finding)
        .collect()
}

/// The sources of the crates; tests may go without.
fn is_documented(path: &str) -> bool {
    path.starts_with("crates/") && path.contains("/src/")
        || path.starts_with("xtask/src/")
        || path.starts_with("benches/")
}

/// No file is too long to be looked over.
pub(crate) fn file_length(tree: &Tree) -> Vec<Finding> {
    tree.rust().filter_map(|source| too_long(source, MOST_LINES)).collect()
}

/// No paper takes more than its share.
pub(crate) fn paper_length(tree: &Tree) -> Vec<Finding> {
    let is_paper = |source: &&Source| {
        source.path.starts_with("crates/moe-routers/src/")
            && source.text.contains("pub const PAPER")
    };
    tree.rust()
        .filter(is_paper)
        .filter_map(|source| too_long(source, MOST_LINES_OF_A_PAPER))
        .collect()
}

fn too_long(source: &Source, most: usize) -> Option<Finding> {
    let lines = source.text.lines().count();
    let what = || format!("{lines} lines, and {most} are the most for this file");
    (lines > most).then(|| Finding::new(&source.path, most + 1, what()))
}

/// Lines end where their text ends, files with a line end, and Rust has no tabs.
pub(crate) fn whitespace(tree: &Tree) -> Vec<Finding> {
    tree.sources().flat_map(|source| stray_lines(source).chain(open_end(source))).collect()
}

fn stray_lines(source: &Source) -> impl Iterator<Item = Finding> {
    source.lines().filter_map(|(number, line)| {
        let what = match line {
            _ if line.ends_with([' ', '\t', '\r']) => "trailing whitespace",
            _ if source.is_rust() && line.contains('\t') => "a tab in Rust",
            _ => return None,
        };
        Some(Finding::new(&source.path, number, what))
    })
}

fn open_end(source: &Source) -> Option<Finding> {
    let open = !source.text.is_empty() && !source.text.ends_with('\n');
    open.then(|| {
        Finding::new(
            &source.path,
            source.text.lines().count(),
            "no line end at the end of the file",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Finding>, path: &str, text: &str) -> Vec<(usize, String)> {
        rule(&Tree::of(&[(path, text)])).into_iter().map(|it| (it.line, it.what)).collect()
    }

    const LIB: &str = "crates/moe-core/src/lib.rs";

    #[test]
    fn modules_say_what_they_are_for() {
        assert_eq!(found(module_docs, LIB, "\n//! Gating.\n"), []);
        assert_eq!(found(module_docs, LIB, "use std::fs;\n//! Late.\n").len(), 1);
        assert_eq!(found(module_docs, "benches/benches/gate.rs", "").len(), 1);
        assert_eq!(found(module_docs, "crates/moe-core/tests/gate.rs", "use moe_core;\n"), []);
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(found(file_length, LIB, &"// a line\n".repeat(600)), []);
        let long = found(file_length, LIB, &"// a line\n".repeat(601));
        assert_eq!(long, [(601, "601 lines, and 600 are the most for this file".to_owned())]);
        assert_eq!(found(file_length, "README.md", &"a line\n".repeat(601)), []);
    }

    #[test]
    fn papers_are_shorter() {
        let paper = format!("pub const PAPER: Paper = Paper;\n{}", "// a line\n".repeat(300));
        assert_eq!(found(paper_length, "crates/moe-routers/src/switch.rs", &paper).len(), 1);
        assert_eq!(found(paper_length, "crates/moe-core/src/switch.rs", &paper), []);
        let other = "// a line\n".repeat(301);
        assert_eq!(found(paper_length, "crates/moe-routers/src/config.rs", &other), []);
    }

    #[test]
    fn stray_white_space_is_found() {
        assert_eq!(found(whitespace, LIB, "fn a() {\n    b();\n}\n"), []);
        assert_eq!(
            found(whitespace, LIB, "fn a() {}\n\n \n"),
            [(3, "trailing whitespace".to_owned())]
        );
        assert_eq!(
            found(whitespace, LIB, "fn a() {\n\tb();\n}\n"),
            [(2, "a tab in Rust".to_owned())]
        );
        assert_eq!(found(whitespace, "Makefile.toml", "\tx\n"), []);
    }

    #[test]
    fn files_end_with_a_line_end() {
        let open = [(2, "no line end at the end of the file".to_owned())];
        assert_eq!(found(whitespace, "README.md", "one\ntwo"), open);
        assert_eq!(found(whitespace, "README.md", ""), []);
    }
}
