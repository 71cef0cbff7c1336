//! The two kinds of error a user sees, and their exit codes.

use std::fmt::Display;

/// Something the user asked for cannot be done as asked: a flag, a recipe, a name. Exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(String);

impl Misuse {
    /// With a message that says what is wrong and what was expected.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// A bad value at `path` of a recipe.
    pub fn recipe(path: &str, reason: impl Display) -> Self {
        let reason = plain_types(&reason.to_string());
        // Errors of inner parts begin with their own key: one path for both.
        match reason.split_once(": ") {
            Some((key, rest)) if !path.is_empty() && is_key(key) => {
                Self(format!("{path}.{key}: {rest}"))
            }
            _ if path.is_empty() || path == "." => Self(reason),
            _ => Self(format!("{path}: {reason}")),
        }
    }
}

/// serde's names of types in words: a recipe knows numbers and tables, not `usize` and structs.
fn plain_types(reason: &str) -> String {
    let Some((head, kind)) = reason.rsplit_once(", expected ") else { return reason.to_owned() };
    let plain = match kind {
        "u64" | "usize" => "a whole number of at least 0",
        "i64" => "a whole number",
        "f64" => "a number",
        // What the TOML reader says of anything but a string where one of a list of words belongs.
        "string only" => return "invalid type, expected a word in quotes".to_owned(),
        _ if kind.starts_with("struct ") => "a table",
        _ => return reason.to_owned(),
    };
    format!("{head}, expected {plain}")
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// The exit code of an error: 1 for misuse, 2 for everything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Misuse>().is_some() { 1 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_join() {
        assert_eq!(
            Misuse::recipe("router", "top_k: 9 is too many").to_string(),
            "router.top_k: 9 is too many"
        );
        assert_eq!(
            Misuse::recipe("train.lr", "not a number: x").to_string(),
            "train.lr: not a number: x"
        );
        assert_eq!(Misuse::recipe("", "unknown field `a`").to_string(), "unknown field `a`");
    }

    #[test]
    fn types_are_said_in_words() {
        let said = |kind: &str| Misuse::recipe("a", format!("invalid type, expected {kind}")).0;
        assert_eq!(said("usize"), "a: invalid type, expected a whole number of at least 0");
        assert_eq!(said("struct LmConfig"), "a: invalid type, expected a table");
        assert_eq!(said("`a` or `b`"), "a: invalid type, expected `a` or `b`");
    }

    #[test]
    fn misuse_is_one_and_failure_two() {
        assert_eq!(exit_code(&Misuse::new("x").into()), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 2);
    }
}
