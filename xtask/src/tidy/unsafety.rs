//! `unsafe` stays where it is needed. That every block says why it is sound is clippy's business
//! (`undocumented_unsafe_blocks`).

use super::Finding;
use super::tree::{Source, Tree};

/// The shim over libtorch, the kernels, and the first statement of the program.
const PLACES: [&str; 4] = [
    "crates/moe-torch-sys/",
    "crates/moe-kernels/",
    "crates/moe-cuda/",
    "crates/moe-bench/src/main.rs",
];

/// What a file needs to have `unsafe` in it, as the workspace denies it. In pieces, so that this file does
/// not break its own rule.
const LEAVE: &str = concat!("expect(unsafe", "_code");

/// No `unsafe` outside the shim and the kernels.
pub(crate) fn unsafe_places(tree: &Tree) -> Vec<Finding> {
    let free = |source: &&Source| !PLACES.iter().any(|place| source.path.starts_with(place));
    tree.rust().filter(free).flat_map(unsafe_lines).collect()
}

fn unsafe_lines(source: &Source) -> impl Iterator<Item = Finding> {
    let leave = [LEAVE, concat!("allow(unsafe", "_code")];
    source.lines().filter(move |(_, line)| leave.iter().any(|leave| line.contains(leave))).map(
        |(number, _)| {
            Finding::new(&source.path, number, "`unsafe` belongs to the shim and the kernels")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_is_found_outside_its_places() {
        let text = format!("//! A.\n#![{LEAVE}, reason = \"fast\")]\n");
        let found = |path: &str| unsafe_places(&Tree::of(&[(path, &text)]));
        for place in PLACES {
            let path = if place.ends_with('/') { format!("{place}src/a.rs") } else { place.into() };
            assert_eq!(found(&path), []);
        }
        assert_eq!(found("crates/moe-data/src/a.rs")[0].line, 2);
        let allowed = text.replace("expect", "allow");
        assert_eq!(unsafe_places(&Tree::of(&[("xtask/src/a.rs", &allowed)])).len(), 1);
    }
}
