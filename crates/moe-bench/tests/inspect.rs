//! Routing logs: one that a transformers model's hook wrote, and one of our own.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// The log's weights have six decimals, and so have those that the expected measures were made from.
const ROUNDING: f64 = 1e-6;

fn moe(args: &[&str]) -> Value {
    let output = Command::cargo_bin("moe").unwrap().args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

#[track_caller]
fn near(name: &str, got: &Value, want: &Value) {
    match (got, want) {
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len(), "{name}");
            got.iter().zip(want).for_each(|(got, want)| near(name, got, want));
        }
        (Value::String(got), Value::String(want)) => assert_eq!(got, want),
        _ => {
            let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
            assert!((got - want).abs() < ROUNDING, "{name}: {got} is not {want}");
        }
    }
}

/// numpy computed the same measures from the tensors that the hook saw.
#[test]
fn a_log_of_a_transformers_model_has_the_measures_that_numpy_finds() {
    let report = moe(&["inspect", &data("olmoe-routing.jsonl"), "--label-input", "--json"]);
    assert_eq!((&report["steps"], &report["last_step"]), (&3.into(), &20.into()));
    let want = fs::read_to_string(data("olmoe-measures.json")).unwrap();
    let want: Value = serde_json::from_str(&want).unwrap();
    let layers = want["layers"].as_array().unwrap();
    assert_eq!(report["layers"].as_array().unwrap().len(), layers.len());
    for (got, want) in report["layers"].as_array().unwrap().iter().zip(layers) {
        for (name, want) in want.as_object().unwrap() {
            let inside = got["specialisation"].get(name.as_str());
            near(name, inside.unwrap_or(&got[name.as_str()]), want);
        }
    }
}

const TINY: &str = r#"
router = "ROUTER"
[data]
source = "DATA"
[model]
width = 8
layers = 2
heads = 2
context = 8
experts = 4
active_hidden = 16
[train]
steps = 4
batch = 2
sequence = 8
warmup = 2
eval_every = 4
eval_batches = 2
"#;

/// Trains, logs the routing of the test split, and holds the log's loads against the evaluation's.
fn round_trip(router: &str) {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let text: String = (0..200).map(|i| format!("line {i} of a text\n")).collect();
    fs::write(place("text.txt"), text).unwrap();
    let recipe = TINY.replace("DATA", &place("text.txt")).replace("ROUTER", router);
    fs::write(place("tiny.toml"), recipe).unwrap();
    let train = ["train", &place("tiny.toml"), "--threads", "1", "--out", &place("run")];
    assert!(Command::cargo_bin("moe").unwrap().args(train).output().unwrap().status.success());
    let log = place("routing.jsonl");
    let run = place("run");
    let eval = ["eval", &run, "--split", "test", "--json"];
    let seen = moe(&[&eval[..], &["--routing-log", &log]].concat());
    let plain = moe(&eval);
    assert_eq!((&seen["loss"], &seen["layers"]), (&plain["loss"], &plain["layers"]), "{router}");
    let report = moe(&["inspect", &log, "--json"]);
    for (found, eval) in
        report["layers"].as_array().unwrap().iter().zip(seen["layers"].as_array().unwrap())
    {
        let load_e: Vec<f64> = serde_json::from_value(eval["load_e"].clone()).unwrap();
        let total: f64 = load_e.iter().sum();
        let shares: Vec<f64> = load_e.iter().map(|load| load / total).collect();
        near("expert_usage", &found["expert_usage"], &shares.into());
        let left_behind = "fraction_tokens_left_behind";
        near(left_behind, &found[left_behind], &eval[left_behind]);
    }
    assert_eq!(report["experts"], 4);
}

#[test]
fn our_own_log_holds_what_the_evaluation_found() {
    // Tokens choose, with room for all; with dropped choices; experts choose.
    ["smoe", "switch", "expert-choice"].into_iter().for_each(round_trip);
}
