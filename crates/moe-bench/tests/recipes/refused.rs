//! Bad recipes and what is said about them, word for word: `refused.txt` has a recipe a line (`;;` ends
//! a line of it), ` => `, and the message. No bad recipe panics, none is taken, every message names the
//! key or the line.

use moe_bench::estimate::{Ends, estimate};
use moe_bench::recipe::Recipe;

const TABLE: &str = include_str!("refused.txt");

/// What `moe train` says before it builds a model.
fn refusal(text: &str) -> Option<String> {
    let recipe = match Recipe::parse(text, &[]).and_then(|recipe| recipe.resolved()) {
        Ok(recipe) => recipe,
        Err(error) => return Some(error.to_string()),
    };
    // The built-in text is fine, and reading it for every recipe takes its time.
    let opened = text.contains("data").then(|| recipe.data.open()).transpose();
    let measured = opened.and_then(|_| estimate(&recipe, Ends::Text(256), 0));
    measured.err().map(|error| error.to_string())
}

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().map(|line| line.split_once(" => ").expect("recipe => message"))
}

/// The file as it should be; a message that changed shows in the difference.
#[test]
fn word_for_word() {
    let said = |recipe: &str| {
        let text = recipe.replace(";;", "\n");
        refusal(&text).unwrap_or_else(|| "taken".into()).replace('\n', ";;")
    };
    let lines: Vec<String> =
        cases().map(|(recipe, _)| format!("{recipe} => {}\n", said(recipe))).collect();
    let wrong: Vec<&String> = lines.iter().filter(|line| !TABLE.contains(*line)).collect();
    assert!(
        wrong.is_empty(),
        "not in refused.txt:\n{}",
        wrong.into_iter().cloned().collect::<String>()
    );
    assert!(lines.len() >= 60, "{}", lines.len());
}

/// Every message begins with the path of a key that the recipe has or lacks, or with the place of a
/// mistake of syntax.
#[test]
fn every_message_names_its_place() {
    for (recipe, message) in cases() {
        let (place, reason) = message.split_once(": ").unwrap_or_default();
        let syntax = message.starts_with("TOML parse error at line ");
        let key = place.rsplit('.').next().unwrap_or_default();
        let path =
            !key.is_empty() && place.chars().all(|c| c.is_alphanumeric() || "._-[]".contains(c));
        assert!(syntax || path, "{recipe}: {message}");
        assert!(syntax || reason.len() > 10, "{recipe}: {message}");
    }
}

/// The count of the table is a count of different recipes.
#[test]
fn no_case_stands_twice() {
    let mut recipes: Vec<&str> = cases().map(|(recipe, _)| recipe).collect();
    let all = recipes.len();
    recipes.sort_unstable();
    recipes.dedup();
    assert_eq!(recipes.len(), all);
}
