//! A snapshot of the environment, so that what depends on it can be tested without changing it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The environment variables as they were when the program started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Env(BTreeMap<OsString, OsString>);

impl Env {
    /// The environment of this process.
    pub(crate) fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The value of a variable; an empty one counts as unset.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Like [`Env::get`], as a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// Whether a variable is set, be it to nothing.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(OsStr::new(name))
    }

    /// Whether flags of the environment hide those of `.cargo/config.toml`, the rpaths among them.
    pub(crate) fn hides_rpaths(&self) -> bool {
        self.has("RUSTFLAGS") || self.has("CARGO_ENCODED_RUSTFLAGS")
    }

    /// The Python that torch-sys would take.
    pub(crate) fn python(&self) -> &'static str {
        if self.has("VIRTUAL_ENV") { "python" } else { "python3" }
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(vars: [(&str, &str); N]) -> Self {
        Self(vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_is_unset() {
        let env = Env::from([("EMPTY", ""), ("FULL", "x")]);
        assert_eq!(env.get("EMPTY"), None);
        assert!(env.has("EMPTY"));
        assert_eq!(env.path("FULL"), Some(PathBuf::from("x")));
    }

    #[test]
    fn a_virtual_environment_has_its_own_python() {
        assert_eq!(Env::from([]).python(), "python3");
        assert_eq!(Env::from([("VIRTUAL_ENV", "/venv")]).python(), "python");
    }
}
