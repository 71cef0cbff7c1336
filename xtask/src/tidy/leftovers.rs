//! What is left over from work in progress.

use super::Finding;
use super::tree::{Source, Tree};

/// Forbidden in Rust, and why. In pieces, so that this file does not break its own rule.
const LEFT_OVERS: [(&str, &str); 4] = [
    (concat!("#[ign", "ore"), "a test that does not run tells nothing"),
    (concat!("to", "do!("), "unfinished"),
    (concat!("db", "g!("), "left from debugging"),
    (concat!("FIX", "ME"), "mend it, or write down why not"),
];

const SLEEP: &str = concat!("thread::sl", "eep");

/// Nothing is left over from work in progress.
pub(crate) fn left_overs(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(left_over_lines).collect()
}

fn left_over_lines(source: &Source) -> impl Iterator<Item = Finding> {
    source.lines().filter_map(|(number, line)| {
        let (what, why) = LEFT_OVERS.iter().find(|(what, _)| line.contains(what))?;
        Some(Finding::new(&source.path, number, format!("`{what}`: {why}")))
    })
}

/// Tests wait for what happens, not for time to pass.
pub(crate) fn sleeping_tests(tree: &Tree) -> Vec<Finding> {
    let sleeping = |source: &Source| {
        let lines = test_lines(source).filter(|(_, line)| line.contains(SLEEP));
        let finding =
            |(number, _)| Finding::new(&source.path, number, format!("`{SLEEP}` in a test"));
        lines.map(finding).collect::<Vec<_>>()
    };
    tree.rust().flat_map(sleeping).collect()
}

/// The lines of tests: a whole file of tests, or from the head of the test module on.
fn test_lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let whole = source.path.contains("/tests/") || source.path.ends_with("/tests.rs");
    source.lines().skip_while(move |(_, line)| !whole && !line.contains("#[cfg(test)]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(&Tree::of(&[(path, text)])).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn left_overs_are_found_in_rust() {
        for (what, _) in LEFT_OVERS {
            let text = format!("//! Module.\nfn a() {{\n    {what}1)\n}}\n");
            assert_eq!(found(left_overs, "crates/a/src/lib.rs", &text), [3], "{what}");
            assert_eq!(found(left_overs, "docs/log.md", &text), Vec::<usize>::new());
        }
        assert_eq!(
            found(left_overs, "crates/a/src/lib.rs", "//! All done.\n"),
            Vec::<usize>::new()
        );
    }

    #[test]
    fn tests_do_not_sleep() {
        let text =
            format!("fn wait() {{ {SLEEP}(LONG) }}\n#[cfg(test)]\nfn test() {{ {SLEEP}(LONG) }}\n");
        assert_eq!(found(sleeping_tests, "crates/a/src/lib.rs", &text), [3]);
        assert_eq!(found(sleeping_tests, "crates/a/tests/cli.rs", &text), [1, 3]);
        assert_eq!(
            found(sleeping_tests, "crates/a/src/a.rs", "fn wait() {}\n"),
            Vec::<usize>::new()
        );
    }
}
