//! What the documents name exists.

use super::Finding;
use super::tree::{Source, Tree};

/// The documents that every change may concern.
const REQUIRED: [&str; 2] = ["CHANGELOG.md", "docs/log.md"];

/// The change log and the record of work are there.
pub(crate) fn required_files(tree: &Tree) -> Vec<Finding> {
    let missing = REQUIRED.iter().filter(|path| tree.get(path).is_none());
    missing.map(|path| Finding::new(path, 1, "this file is missing")).collect()
}

/// The documents name commands that exist.
pub(crate) fn known_commands(tree: &Tree, known: &[String]) -> Vec<Finding> {
    let unknown = |source: &Source| unknown_commands(source, known);
    tree.sources().filter(|source| is_document(&source.path)).flat_map(unknown).collect()
}

fn is_document(path: &str) -> bool {
    path == "README.md" || path.starts_with("docs/") && path.ends_with(".md")
}

fn unknown_commands(source: &Source, known: &[String]) -> Vec<Finding> {
    let named =
        source.lines().flat_map(|(number, line)| commands(line).map(move |name| (number, name)));
    let unknown = named.filter(|(_, name)| !known.iter().any(|known| known == name));
    let what = |name: &str| format!("`cargo xtask {name}`: there is no such command");
    unknown.map(|(number, name)| Finding::new(&source.path, number, what(name))).collect()
}

/// The commands that a line names; placeholders such as `<command>` do not count.
fn commands(line: &str) -> impl Iterator<Item = &str> {
    let after = line.split("cargo xtask ").skip(1);
    let word = |text: &'_ str| text.find(|end: char| !end.is_ascii_lowercase() && end != '-');
    after.map(move |text| &text[..word(text).unwrap_or(text.len())]).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(path: &str, text: &str) -> Vec<(usize, String)> {
        let known = ["setup", "test"].map(str::to_owned);
        let found = known_commands(&Tree::of(&[(path, text)]), &known);
        found.into_iter().map(|finding| (finding.line, finding.what)).collect()
    }

    #[test]
    fn commands_that_exist_pass() {
        let text = "Run `cargo xtask setup`, then\n    cargo xtask test --only fmt\nor `cargo xtask <command>`.\n";
        assert_eq!(unknown("README.md", text), []);
    }

    #[test]
    fn commands_that_do_not_exist_are_found() {
        let text = "First `cargo xtask setup`.\nThen cargo xtask tset, cargo xtask test.\n";
        let expected = [(2, "`cargo xtask tset`: there is no such command".to_owned())];
        assert_eq!(unknown("docs/architecture.md", text), expected);
        assert_eq!(unknown("recipes/notes.md", text), []);
    }

    #[test]
    fn required_documents_are_missed() {
        let tree = Tree::of(&[("CHANGELOG.md", "# Changes\n")]);
        assert_eq!(required_files(&tree), [Finding::new("docs/log.md", 1, "this file is missing")]);
    }
}
