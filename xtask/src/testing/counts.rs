//! Counts tests by crate, from what `cargo test` prints.

use std::collections::BTreeMap;

use crate::workspace::Metadata;

/// Tests by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed.
    pub(crate) failed: usize,
    /// Tests that did not run because they are marked so.
    pub(crate) ignored: usize,
}

/// Tests by crate.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// The packages that have a target of a name, by the name as rustc spells it.
    owners: BTreeMap<String, Vec<String>>,
    /// In the order they were met.
    by_crate: Vec<(String, Count)>,
    current: String,
}

impl Counts {
    /// No tests yet, and the targets by which to know the crates.
    pub(crate) fn new(metadata: &Metadata) -> Self {
        let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for package in &metadata.packages {
            for target in &package.targets {
                owners.entry(target.name.replace('-', "_")).or_default().push(package.name.clone());
            }
        }
        Self { owners, ..Self::default() }
    }

    /// Takes in a line of output.
    pub(crate) fn line(&mut self, line: &str) {
        let line = without_colours(line);
        if let Some(target) = target(line.trim()) {
            self.current = self.owner(target);
        } else if let Some(count) = result(line.trim()) {
            self.add(count);
        }
    }

    /// Tests by crate.
    pub(crate) fn by_crate(&self) -> &[(String, Count)] {
        &self.by_crate
    }

    /// All tests together.
    pub(crate) fn total(&self) -> Count {
        self.by_crate.iter().fold(Count::default(), |total, (_, count)| total.plus(*count))
    }

    /// The package of a target. Of several with such a target, it is that whose unit tests ran
    /// last: cargo goes package by package.
    fn owner(&self, target: &str) -> String {
        match self.owners.get(target).map(Vec::as_slice) {
            Some([owner]) => owner.clone(),
            Some(owners) if owners.contains(&self.current) => self.current.clone(),
            _ => target.to_owned(),
        }
    }

    fn add(&mut self, count: Count) {
        match self.by_crate.iter_mut().find(|(name, _)| *name == self.current) {
            Some((_, sum)) => *sum = sum.plus(count),
            None => self.by_crate.push((self.current.clone(), count)),
        }
    }
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

/// The target whose tests start with this line.
fn target(line: &str) -> Option<&str> {
    if let Some(library) = line.strip_prefix("Doc-tests ") {
        return Some(library);
    }
    // Running unittests src/lib.rs (target/debug/deps/moe_core-0123456789abcdef)
    let (_, program) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once('(')?;
    let name = program.rsplit('/').next()?;
    Some(name.rsplit_once('-').map_or(name, |(target, _hash)| target))
}

/// Reads `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; …`.
fn result(line: &str) -> Option<Count> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |name: &str| {
        let part = numbers.split("; ").find_map(|part| part.strip_suffix(name))?;
        part.trim().parse().ok()
    };
    Some(Count {
        passed: number("passed")?,
        failed: number("failed")?,
        ignored: number("ignored")?,
    })
}

/// Drops the sequences that colour a terminal: ESC, `[`, and so on up to a letter.
fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default();
    let after = |part: &str| {
        let end = part.find(|end: char| end.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        part[end..].to_owned()
    };
    std::iter::once(first.to_owned()).chain(parts.map(after)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
   Compiling moe-core v0.1.0
     Running unittests src/lib.rs (target/debug/deps/moe_core-0123456789abcdef)

running 3 tests
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/cli.rs (target/debug/deps/cli-0123456789abcdef)
test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s

     Running unittests src/main.rs (/elsewhere/debug/deps/moe-0123456789abcdef)
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

     Running tests/cli.rs (target/debug/deps/cli-fedcba9876543210)
test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

   Doc-tests moe_core
test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn metadata() -> Metadata {
        serde_json::from_str(
            r#"{"target_directory": "/t", "packages": [
                {"name": "moe-core", "targets": [{"name": "moe_core"}, {"name": "cli"}]},
                {"name": "moe-bench", "targets": [{"name": "moe"}, {"name": "cli"}]}]}"#,
        )
        .unwrap()
    }

    fn counted(output: &str) -> Counts {
        let mut counts = Counts::new(&metadata());
        output.lines().for_each(|line| counts.line(line));
        counts
    }

    #[test]
    fn tests_are_counted_by_crate() {
        let expected = [
            ("moe-core".to_owned(), Count { passed: 10, failed: 2, ignored: 1 }),
            ("moe-bench".to_owned(), Count { passed: 9, failed: 0, ignored: 0 }),
        ];
        assert_eq!(counted(OUTPUT).by_crate(), expected);
        assert_eq!(counted(OUTPUT).total(), Count { passed: 19, failed: 2, ignored: 1 });
    }

    #[test]
    fn colours_do_not_disturb() {
        let coloured = OUTPUT
            .replace("     Running", "\u{1b}[1m\u{1b}[92m     Running\u{1b}[0m")
            .replace("ok.", "\u{1b}[32mok\u{1b}(B\u{1b}[m.");
        assert_eq!(counted(&coloured).total(), counted(OUTPUT).total());
        assert_eq!(counted(&coloured).by_crate(), counted(OUTPUT).by_crate());
    }

    #[test]
    fn other_lines_count_nothing() {
        let counts = counted("running 3 tests\ntest result of nothing\nRunning away (from it\n");
        assert_eq!(counts.by_crate(), []);
    }

    #[test]
    fn an_unknown_target_stands_for_itself() {
        let counts = counted(
            "Running unittests src/lib.rs (target/debug/deps/other-0123456789abcdef)\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n",
        );
        assert_eq!(counts.by_crate()[0].0, "other");
    }
}
