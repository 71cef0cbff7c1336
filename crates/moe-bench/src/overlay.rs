//! `--set a.b=value`: a setting put over a recipe.

use crate::error::Misuse;
use std::collections::BTreeSet;
use toml::{Table, Value};

/// Puts one `key=value` into `table`. The value is TOML; a bare word is a string.
///
/// # Errors
/// No `=`, an empty key, or a key below something that is no table.
pub fn set(table: &mut Table, text: &str) -> Result<(), Misuse> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Misuse::new(format!("--set {text}: expected key=value")));
    };
    let path: Vec<&str> = key.trim().split('.').collect();
    if path.iter().any(|part| part.is_empty()) {
        return Err(Misuse::new(format!("--set {text}: `{key}` is no key")));
    }
    put(table, &path, parse(value.trim()))
        .map_err(|below| Misuse::new(format!("--set {text}: `{below}` is no table")))
}

fn put(table: &mut Table, path: &[&str], value: Value) -> Result<(), String> {
    let (first, rest) = path.split_first().expect("a key has a part");
    if rest.is_empty() {
        table.insert((*first).to_owned(), value);
        return Ok(());
    }
    let below = table.entry(*first).or_insert_with(|| Value::Table(Table::new()));
    // `router = "x-moe"` is short for a table with that name, and so for residuals.
    if let ("router" | "residual", Value::String(name)) = (*first, &*below) {
        let (name, preset) = name.split_once(':').unwrap_or((name, ""));
        let mut long = Table::from_iter([("name".to_owned(), Value::from(name))]);
        if !preset.is_empty() {
            long.insert("preset".into(), preset.into());
        }
        *below = Value::Table(long);
    }
    match below {
        Value::Table(below) => put(below, rest, value),
        _ => Err((*first).to_owned()),
    }
}

/// Adds a sentence for every key below `path` whose value is `new` and was `old`.
pub(crate) fn differences(
    path: &str,
    new: Option<&Value>,
    old: Option<&Value>,
    found: &mut Vec<String>,
) {
    match (new, old) {
        (Some(Value::Table(new)), Some(Value::Table(old))) => {
            let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
            for key in keys {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&below, new.get(key), old.get(key), found);
            }
        }
        (new, old) if new == old => {}
        (new, old) => {
            let show = |v: Option<&Value>| v.map_or("not given".into(), ToString::to_string);
            found.push(format!("{path} = {}, was {}", show(new), show(old)));
        }
    }
}

fn parse(text: &str) -> Value {
    let document = format!("value = {text}").parse::<Table>();
    let value = document.ok().filter(|t| t.len() == 1).and_then(|mut t| t.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(recipe: &str, sets: &[&str]) -> Table {
        let mut table: Table = recipe.parse().unwrap();
        sets.iter().for_each(|s| set(&mut table, s).unwrap());
        table
    }

    #[test]
    fn numbers_words_and_nested_keys() {
        let got = after("seed = 1", &["seed=2", "train.lr = 1e-3", "data.source=my file.txt"]);
        let want =
            "seed = 2\ntrain.lr = 1e-3\ndata.source = 'my file.txt'".parse::<Table>().unwrap();
        assert_eq!(got, want);
    }

    #[test]
    fn a_method_by_name_becomes_a_table() {
        let got = after("router = 'v-moe:paper_bpr'", &["router.top_k=1"]);
        let want = "router = { name = 'v-moe', preset = 'paper_bpr', top_k = 1 }";
        assert_eq!(got, want.parse::<Table>().unwrap());
        let got = after("seed = 1", &["residual=robust-momentum", "residual.mu=0.5"]);
        let want = "seed = 1\nresidual = { name = 'robust-momentum', mu = 0.5 }";
        assert_eq!(got, want.parse::<Table>().unwrap());
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        let refuse = |text| set(&mut "seed = 1".parse().unwrap(), text).unwrap_err().to_string();
        assert_eq!(refuse("seed"), "--set seed: expected key=value");
        assert_eq!(refuse("a..b=1"), "--set a..b=1: `a..b` is no key");
        assert_eq!(refuse("seed.x=1"), "--set seed.x=1: `seed` is no table");
    }
}
