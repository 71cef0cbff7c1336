//! Which libtorch a directory holds, asked of each file that may say so.

use std::fs;
use std::path::Path;

/// The version of a libtorch as its files state it, without a local part such as `+cu130`.
pub(crate) fn of_tree(tree: &Path) -> Option<String> {
    type Reader = fn(&str) -> Option<String>;
    let sources: [(&str, Reader); 4] = [
        ("build-version", of_build_version),
        ("version.py", of_version_py),
        ("include/torch/headeronly/version.h", of_header),
        // Where the numbers stood before torch 2.9.
        ("include/torch/csrc/api/include/torch/version.h", of_header),
    ];
    sources.into_iter().find_map(|(file, read)| read(&fs::read_to_string(tree.join(file)).ok()?))
}

fn of_build_version(text: &str) -> Option<String> {
    let version = text.split(['+', '\n']).next()?.trim();
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
}

/// Reads the line `__version__ = '2.11.0+cu130'`.
fn of_version_py(text: &str) -> Option<String> {
    let assigned = text.lines().find_map(|line| line.strip_prefix("__version__"))?;
    of_build_version(assigned.trim_start_matches([' ', '=']).trim_matches(['\'', '"']))
}

fn of_header(text: &str) -> Option<String> {
    let part = |name| number_defined(text, name);
    let (major, minor, patch) =
        (part("TORCH_VERSION_MAJOR")?, part("TORCH_VERSION_MINOR")?, part("TORCH_VERSION_PATCH")?);
    Some(format!("{major}.{minor}.{patch}"))
}

fn number_defined(text: &str, name: &str) -> Option<u32> {
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("#define") && words.next() == Some(name))
            .then(|| words.next())?
            .map(str::to_owned)
    };
    text.lines().find_map(words)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "/// The major version.\n#define TORCH_VERSION_MAJOR 2\n\
        #define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n#define TORCH_VERSION \\\n";

    fn tree_with(file: &str, text: &str) -> Option<String> {
        let tree = tempfile::tempdir().unwrap();
        let path = tree.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        of_tree(tree.path())
    }

    #[test]
    fn each_file_tells() {
        let expected = Some("2.11.0".to_owned());
        assert_eq!(tree_with("build-version", "2.11.0+cpu\n"), expected);
        let python = "from typing import Optional\n\n__version__ = '2.11.0+cu130'\ndebug = False\n";
        assert_eq!(tree_with("version.py", python), expected);
        assert_eq!(tree_with("include/torch/headeronly/version.h", HEADER), expected);
        assert_eq!(tree_with("include/torch/csrc/api/include/torch/version.h", HEADER), expected);
    }

    #[test]
    fn a_file_that_does_not_tell_is_passed_over() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("build-version"), "\n").unwrap();
        fs::write(tree.path().join("version.py"), "__version__ = \"2.10.1\"\n").unwrap();
        assert_eq!(of_tree(tree.path()), Some("2.10.1".to_owned()));
    }

    #[test]
    fn nothing_tells_nothing() {
        assert_eq!(tree_with("README", "2.11.0"), None);
        assert_eq!(of_header("#include <torch/headeronly/version.h>\n"), None);
    }
}
