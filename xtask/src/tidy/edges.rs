//! Which crate may depend on which, and the lints they share.

use super::Finding;
use super::tree::{Source, Tree};

/// The crates of the workspace from the ground up, and those that each may build on.
const EDGES: [(&str, &[&str]); 13] = [
    ("moe-core", &[]),
    ("moe-data", &["moe-core"]),
    ("moe-kernels", &[]),
    ("moe-cuda", &[]),
    ("moe-cuda-emulator", &["moe-cuda", "moe-core"]),
    ("moe-torch-sys", &["moe-kernels", "moe-cuda", "moe-cuda-emulator"]),
    ("moe-routers", &["moe-core"]),
    (
        "moe-models",
        &[
            "moe-core",
            "moe-cuda",
            "moe-cuda-emulator",
            "moe-kernels",
            "moe-routers",
            "moe-torch-sys",
        ],
    ),
    ("moe-conform", &["moe-core", "moe-routers"]),
    ("moe-train", &["moe-core", "moe-data", "moe-routers", "moe-models", "moe-torch-sys"]),
    (
        "moe-bench",
        &[
            "moe-core",
            "moe-data",
            "moe-routers",
            "moe-conform",
            "moe-models",
            "moe-train",
            "moe-torch-sys",
        ],
    ),
    (
        "benches",
        &[
            "moe-core",
            "moe-data",
            "moe-kernels",
            "moe-routers",
            "moe-models",
            "moe-train",
            "moe-torch-sys",
            "moe-bench",
        ],
    ),
    ("xtask", &[]),
];

/// The crates that build without libtorch.
const WITHOUT_LIBTORCH: [&str; 6] =
    ["moe-core", "moe-data", "moe-kernels", "moe-cuda", "moe-cuda-emulator", "xtask"];

/// The crates that bring libtorch with them.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];

/// Dependencies between crates run in one direction, by the table above.
pub(crate) fn crate_edges(tree: &Tree) -> Vec<Finding> {
    manifests(tree).flat_map(broken_edges).collect()
}

fn broken_edges(manifest: &Source) -> Vec<Finding> {
    let name = crate_name(manifest);
    let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
        return vec![Finding::new(
            &manifest.path,
            1,
            format!("crate `{name}` is not in the table of xtask/src/tidy/edges.rs"),
        )];
    };
    let broken = dependencies(manifest).filter_map(|(line, dependency)| {
        let rule = forbidden(name, allowed, dependency)?;
        Some(Finding::new(
            &manifest.path,
            line,
            format!("`{name}` depends on `{dependency}`: {rule}"),
        ))
    });
    broken.collect()
}

fn forbidden(name: &str, allowed: &[&str], dependency: &str) -> Option<&'static str> {
    let internal = EDGES.iter().any(|(known, _)| *known == dependency);
    if internal && !allowed.contains(&dependency) {
        return Some("an edge that the table of crate edges does not have");
    }
    (LIBTORCH.contains(&dependency) && WITHOUT_LIBTORCH.contains(&name))
        .then_some("this crate builds without libtorch")
}

/// Every crate inherits the lints of the workspace.
pub(crate) fn workspace_lints(tree: &Tree) -> Vec<Finding> {
    let inherits = |manifest: &&Source| {
        keys(manifest)
            .any(|(_, table, line)| table == "lints" && assigned(line, "workspace") == Some("true"))
    };
    let finding = |manifest: &Source| {
        Finding::new(
            &manifest.path,
            1,
            "lints are not inherited: add `[lints]` and `workspace = true`",
        )
    };
    manifests(tree).filter(|manifest| !inherits(manifest)).map(finding).collect()
}

/// The manifests of the members; a manifest with a `[workspace]` of its own is none.
fn manifests(tree: &Tree) -> impl Iterator<Item = &Source> {
    let own_root = |source: &Source| source.lines().any(|(_, line)| line.trim() == "[workspace]");
    tree.sources().filter(move |source| source.path.ends_with("/Cargo.toml") && !own_root(source))
}

fn crate_name(manifest: &Source) -> &str {
    let name = keys(manifest).find_map(|(_, table, line)| match table {
        "package" => assigned(line, "name"),
        _ => None,
    });
    name.unwrap_or("without a name")
}

/// The dependencies of all kinds, with their lines.
fn dependencies(manifest: &Source) -> impl Iterator<Item = (usize, &str)> {
    keys(manifest).filter_map(|(number, table, line)| {
        let (head, tail) = table.split_once("dependencies").filter(|_| !line.is_empty())?;
        let direct = head.is_empty() || head.ends_with(['-', '.']);
        let renamed = renamed(line);
        match tail.strip_prefix('.') {
            // [dependencies.name]: the name is in the head, and its first key stands for it.
            Some(name) if direct => Some((number, renamed.unwrap_or(name))),
            None if direct && tail.is_empty() => Some((number, renamed.unwrap_or(key(line)))),
            _ => None,
        }
    })
}

/// The lines that set a key, with their number and the table they are in.
fn keys(manifest: &Source) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut table = "";
    manifest.lines().filter_map(move |(number, line)| {
        let line = line.trim();
        if let Some(head) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = head;
            return None;
        }
        (line.contains('=') && !line.starts_with('#')).then_some((number, table, line))
    })
}

/// The key of `name.workspace = true` or `name = …`.
fn key(line: &str) -> &str {
    line.split(['.', '=']).next().unwrap_or_default().trim().trim_matches('"')
}

/// The crate that a dependency under another name stands for.
fn renamed(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("package")?;
    rest.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?.split('"').next()
}

/// The value of `name = value`, without quotes.
fn assigned<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = line.split_once('=')?;
    (key.trim() == name).then(|| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, rest: &str) -> Tree {
        let text = format!("[package]\nname = \"{name}\"\n{rest}");
        Tree::of(&[("crates/a/Cargo.toml", &text)])
    }

    fn edges(name: &str, rest: &str) -> Vec<String> {
        crate_edges(&manifest(name, rest)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn edges_of_the_table_pass() {
        let rest = "[dependencies]\nmoe-core.workspace = true\ntch.workspace = true\n\
            [dev-dependencies]\nproptest.workspace = true\n";
        assert_eq!(edges("moe-routers", rest), Vec::<String>::new());
    }

    #[test]
    fn an_edge_upwards_is_found_in_any_table() {
        let expected = "`moe-core` depends on `moe-train`: an edge that the table of crate edges does not have";
        for rest in [
            "[dependencies]\nmoe-train.workspace = true\n",
            "[dev-dependencies]\nmoe-train = { path = \"../moe-train\" }\n",
            "[dependencies.moe-train]\npath = \"../moe-train\"\n",
            "[target.'cfg(unix)'.dependencies]\nmoe-train.workspace = true\n",
            "[dependencies]\ntraining = { package = \"moe-train\", path = \"../moe-train\" }\n",
        ] {
            assert_eq!(
                edges("moe-core", rest),
                [format!("crates/a/Cargo.toml:4: {expected}")],
                "{rest}"
            );
        }
    }

    #[test]
    fn a_crate_outside_the_workspace_is_not_judged() {
        let rest = "[dependencies]\nmoe-train.workspace = true\n";
        assert_eq!(edges("stranger", rest).len(), 1);
        let outside = manifest("stranger", &format!("{rest}[workspace]\n"));
        assert!(crate_edges(&outside).is_empty() && workspace_lints(&outside).is_empty());
    }

    #[test]
    fn libtorch_is_kept_out_of_the_plain_crates() {
        let found = edges("moe-data", "[dependencies]\ntch.workspace = true\n");
        assert_eq!(found.len(), 1);
        assert!(
            found[0].ends_with("`moe-data` depends on `tch`: this crate builds without libtorch")
        );
    }

    #[test]
    fn a_crate_without_a_place_in_the_table_is_found() {
        assert!(edges("moe-new", "")[0].contains("crate `moe-new` is not in the table"));
    }

    #[test]
    fn lints_are_inherited_or_found_missing() {
        assert_eq!(workspace_lints(&manifest("moe-core", "[lints]\nworkspace = true\n")), []);
        assert_eq!(
            workspace_lints(&manifest("moe-core", "[lints.rust]\nmissing_docs = \"warn\"\n")).len(),
            1
        );
    }
}
