//! The schema that editors read: the file in `docs/` is the generated one, and what `moe` takes it takes.

use crate::validate::faults_of;
use moe_bench::recipe::Recipe;
use moe_bench::schema::schema;
use moe_routers::{residual, routers};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the schema finds wrong with a recipe.
fn faults(schema: &Value, recipe: &str) -> Vec<String> {
    let table: toml::Table = recipe.parse().unwrap();
    faults_of(schema, &serde_json::to_value(table).unwrap())
}

fn parsed() -> Value {
    serde_json::from_str(&schema()).unwrap()
}

#[test]
fn the_file_in_docs_is_the_generated_one() {
    let written = fs::read_to_string(root().join("docs/recipe.schema.json")).unwrap();
    assert!(written == schema(), "run: cargo run -p moe-bench -- schema > docs/recipe.schema.json");
}

/// The recipes of this project, whatever folder they lie in.
fn recipes(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => recipes(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect()
}

#[test]
fn the_recipes_of_this_project_fit() {
    let (schema, all) = (parsed(), recipes(&root().join("recipes")));
    assert!(all.len() >= 2);
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(faults(&schema, &text), [""; 0], "{}", path.display());
    }
}

/// The record of a run writes every setting out: every key and every value of every preset of every
/// router and residual.
#[test]
fn what_is_resolved_fits() {
    let schema = parsed();
    let routed = routers().flat_map(|paper| {
        paper.presets.iter().map(|preset| format!("router = '{}:{preset}'", paper.id))
    });
    let carried = residual::names().into_iter().map(|name| format!("residual = '{name}'"));
    let mut checked = 0;
    for text in routed.chain(carried) {
        // Some presets need what the default model has not; the schema knows nothing of that.
        let Ok(recipe) = Recipe::parse(&text, &[]).and_then(|recipe| recipe.resolved()) else {
            continue;
        };
        assert_eq!(faults(&schema, &recipe.to_toml()), [""; 0], "{text}");
        checked += 1;
    }
    assert!(checked >= 50, "{checked}");
}

#[test]
fn what_is_wrong_by_its_form_alone_is_found() {
    let schema = parsed();
    for text in [
        "roter = 'smoe'",
        "router = 'swithc'",
        "router = { name = 'switch', top_k = 2 }",
        "router = { name = 'smoe', top_k = 'two' }",
        "router = { name = 'smoe', preset = 'paper' }",
        "residual = 'moment'",
        "seed = -1",
        "[model]\nwidth = 'wide'",
        "[model]\nactivation = 'swish'",
        "[train]\nstepz = 3",
        "[train.adamw]\nbeta = 0.9",
        "[capacity]\norder = 'fifo'",
        "[data]\ntokenizer = { kind = 'word', min = 3 }",
        "[losses]\nentropy = 0.1",
        "[vision.swin]\ndepths = [2, 'two']",
        "[vision.swin]\nwindows = 7",
    ] {
        assert!(!faults(&schema, text).is_empty(), "{text}");
        assert!(Recipe::parse(text, &[]).is_err(), "{text}");
    }
}

#[test]
fn words_defaults_and_none_are_in_it() {
    let schema = parsed();
    let tables = schema["properties"]["router"]["oneOf"].as_array().unwrap();
    let smoe = tables.iter().find(|table| table["title"] == "smoe").unwrap();
    let settings = &smoe["properties"];
    assert_eq!(settings["top_k"]["type"], "integer");
    assert_eq!(settings["top_k"]["default"], 2);
    assert_eq!(settings["drop_policy"]["enum"], serde_json::json!(["position", "probs"]));
    assert_eq!(settings["capacity"]["anyOf"][1]["const"], "none");
    assert!(schema["properties"]["model"].to_string().contains("LmConfig"));
}
