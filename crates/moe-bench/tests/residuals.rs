//! Residuals in recipes and comparisons: every way to name one, and what is refused.

use moe_bench::cells::Cell;
use moe_bench::compare::entered;
use moe_bench::recipe::Recipe;
use std::path::Path;

fn parse(residual: &str, sets: &[&str]) -> Result<Recipe, String> {
    let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
    Recipe::parse(&format!("residual = {residual}"), &sets).map_err(|e| e.to_string())
}

/// Settings of a recipe's residual, written out.
fn written(residual: &str, sets: &[&str]) -> moe_routers::Settings {
    let recipe = parse(residual, sets).unwrap().resolved().unwrap();
    let again = Recipe::parse(&recipe.to_toml(), &[]).unwrap();
    assert_eq!(again.resolved().unwrap(), recipe, "a written recipe is the same recipe");
    recipe.residual.settings
}

#[test]
fn a_residual_is_a_name_a_table_or_a_set() {
    let robust = written("'robust-momentum'", &[]);
    assert_eq!((&robust["rule"], &robust["norm"]), (&"robust".into(), &"model".into()));
    assert_eq!(written("'plain'", &["residual=robust-momentum"]), robust);
    assert_eq!(written("'plain'", &["residual=\"robust-momentum\""]), robust);

    let paper = written("{ name = 'momentum', preset = 'paper', mu = 0.5 }", &[]);
    assert_eq!((&paper["mu"], &paper["norm"]), (&0.5.into(), &"none".into()));
    assert_eq!(written("'momentum:paper'", &["residual.mu=0.5"]), paper);

    let own = written("'robust-momentum'", &["residual.mu=0.5", "residual.norm=post"]);
    assert_eq!((&own["mu"], &own["kappa"]), (&0.5.into(), &1.25.into()));
    assert_eq!(own["norm"], "post");
}

#[test]
fn bad_residuals_name_their_key() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("'robust-momentum'", &["residual.kappa=1"], &["residual.kappa: 1 divides"]),
        ("'robust-momentum'", &["residual.mu=-1"], &["residual.mu: |-1| = 1"]),
        ("'momentum'", &["residual.beta2=1"], &["residual.beta2: 1 is outside 0..1"]),
        ("'momentum'", &["residual.norm=batch"], &["residual.norm", "`batch`", "`model`"]),
        ("'momentum'", &["residual.nu=1"], &["residual.nu: unknown key", "gamma"]),
        ("'momentum'", &["residual.mu=nan"], &["residual.mu"]),
        ("'momentum:heavy'", &[], &["residual.preset: unknown preset `heavy`", "adam_paper"]),
        ("'momentun'", &[], &["residual.name: unknown residual `momentun`", "negative-momentum"]),
        ("'smoe'", &[], &["residual.name: unknown residual `smoe`", "plain"]),
        ("'plain'", &["residual.mu=1"], &["residual.mu: the plain residual has no settings"]),
        ("'momentum'", &["model.layers=3"], &["residual.rule: nothing would be carried"]),
        ("'plain'", &["router=momentum"], &["router.name", "set `residual = \"momentum\"`"]),
    ];
    for (residual, sets, parts) in cases {
        let error = parse(residual, sets).unwrap_err();
        for part in *parts {
            assert!(error.contains(part), "{residual} {sets:?}: no {part} in: {error}");
        }
    }
    assert!(parse("{ name = 'momentum', rule = 'plain' }", &["model.layers=3"]).is_ok());
}

#[test]
fn residuals_enter_comparisons() {
    let names = entered();
    for name in ["smoe+momentum", "smoe+momentum:adam_model", "smoe+momentum:robust_model"] {
        assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
    }
    let cell = |name: &str| Cell::new(&Recipe::default(), name, 3, Path::new("out"));
    for name in
        names.iter().map(String::as_str).chain(["smoe+robust-momentum", "x-moe+momentum:vmoe"])
    {
        let cell = cell(name).unwrap();
        let of = name.split_once('+').map_or("plain", |(_, residual)| residual);
        assert!(of.starts_with(&cell.recipe.residual.name), "{name}");
    }
    let robust = cell("smoe+robust-momentum").unwrap();
    assert_eq!((robust.recipe.router.name.as_str(), robust.recipe.seed), ("smoe", 3));
    assert_eq!(robust.dir.0, Path::new("out/runs/smoe-robust-momentum-s3"));
    let error = cell("smoe+nope").unwrap_err().to_string();
    assert!(error.contains("residual.name: unknown residual `nope`"), "{error}");
}
