//! Recipes of masked language models through the `moe` binary: training, resuming, retrieval, comparison.

use assert_cmd::Command;
use std::fs;
use std::path::Path;

const TINY: &str = r#"
router = "x-moe"
[data]
source = "DATA"
tokenizer = { kind = "train-bpe", vocab = 270 }
[model]
width = 8
layers = 2
heads = 2
context = 16
experts = 4
active_hidden = 16
[masked]
translation = 0.5
[train]
steps = 6
batch = 4
sequence = 16
warmup = 2
eval_every = 3
eval_batches = 0
"#;

/// A table of 60 paragraphs in two languages, pairs in LASER's layout, and a recipe for them.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let english = |i: usize| format!("the number {i} and {} of all", i * 7);
    let german = |i: usize| format!("die Zahl {i} und {} von allen", i * 7);
    let lines: String = (0..60).map(|i| format!("k{i}\t{}\t{}\n", english(i), german(i))).collect();
    fs::write(dir.path().join("table.tsv"), "key\ten\tde\n".to_owned() + &lines).unwrap();
    let pairs = dir.path().join("pairs");
    fs::create_dir(&pairs).unwrap();
    let text = |of: &dyn Fn(usize) -> String| (70..80).map(|i| of(i) + "\n").collect::<String>();
    fs::write(pairs.join("t.deu-eng.deu"), text(&german)).unwrap();
    fs::write(pairs.join("t.deu-eng.eng"), text(&english)).unwrap();
    let recipe = TINY.replace("DATA", &show(&dir.path().join("table.tsv")));
    fs::write(dir.path().join("tiny.toml"), recipe).unwrap();
    dir
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// Exit code, standard output, standard error.
fn moe(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("moe").unwrap().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn json(args: &[&str]) -> serde_json::Value {
    let (code, out, err) = moe(args);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn an_encoder_trains_resumes_is_evaluated_and_finds_translations() {
    let place = place();
    let path = |name: &str| show(&place.path().join(name));
    let recipe = path("tiny.toml");
    let train = |more: &[&str]| {
        let (code, _, err) = moe(&[&["train", &recipe, "--threads", "1"], more].concat());
        assert_eq!(code, 0, "{err}");
    };
    train(&["--out", &path("straight")]);
    train(&["--out", &path("halves"), "--set", "train.stop_after=4"]);
    train(&["--out", &path("halves"), "--resume"]);
    let model = |run: &str| {
        fs::read(place.path().join(run).join("checkpoints/step-000006/model.safetensors")).unwrap()
    };
    assert!(model("straight") == model("halves"), "resuming is arithmetic");

    let dry = json(&["train", &recipe, "--dry-run", "--json"]);
    let result = fs::read_to_string(place.path().join("straight/result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(dry["vocabulary"], 272);
    for count in ["params_total", "params_active"] {
        assert_eq!(dry[count], result[count], "{count}");
    }

    let run = path("straight");
    let line = json(&["eval", &run, "--split", "test", "--json"]);
    let accuracy = line["measures"]["masked_accuracy"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy) && line["bits_per_byte"].is_null());

    let found = json(&["eval", &run, "--retrieval", &path("pairs"), "--json"]);
    let pair = &found["pairs"][0];
    assert_eq!((pair["pair"].as_str(), pair["sentences"].as_u64()), (Some("de-en"), Some(10)));
    assert_eq!(pair["layers"].as_array().unwrap().len(), 3);
    // Both texts have the same numbers, which trigrams find.
    assert_eq!(pair["floor"]["forward"].as_f64(), Some(1.0));
    let held_out = json(&["eval", &run, "--retrieval", "held-out", "--split", "test", "--json"]);
    assert_eq!(held_out["source"], "held-out test");
    assert_eq!(held_out["pairs"][0]["sentences"], 6);
    let (code, table, _) = moe(&["eval", &run, "--retrieval", &path("pairs"), "--layer", "1"]);
    assert_eq!((code, table.lines().count()), (0, 3), "{table}");
    assert!(table.lines().last().unwrap().starts_with("de-en     10  1.000 1.000"), "{table}");
}

#[test]
fn routers_are_compared_and_none_is_ruled_out_for_seeing_ahead() {
    let place = place();
    let path = |name: &str| show(&place.path().join(name));
    let small = [
        "model.width=8",
        "model.layers=2",
        "model.heads=2",
        "model.active_hidden=16",
        "model.experts=4",
        "data.tokenizer={ kind = 'train-bpe', vocab = 270 }",
        "train.steps=2",
        "train.batch=2",
        "train.sequence=16",
        "train.warmup=0",
    ];
    let (table, out) = (path("table.tsv"), path("compared"));
    let mut args = vec!["compare", "--preset", "masked", "--routers", "smoe,x-moe,expert-choice"];
    args.extend(["--seeds", "1", "--jobs", "1", "--data", &table, "--out", &out, "--json"]);
    args.extend(small.iter().flat_map(|set| ["--set", *set]));
    let results = json(&args);
    let verdicts: Vec<&str> = results["summary"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts.len(), 3);
    assert!(!verdicts.contains(&"not comparable"), "{verdicts:?}");
}

#[test]
fn what_cannot_be_done_is_refused() {
    let place = place();
    let path = |name: &str| show(&place.path().join(name));
    let recipe = path("tiny.toml");
    let refused = |args: &[&str]| {
        let (code, _, err) = moe(args);
        assert_eq!(code, 1, "{err}");
        err
    };
    let train = |set: &str| refused(&["train", &recipe, "--out", "nowhere", "--set", set]);
    assert!(train("data.source=sotu").contains("data.source: languages `sotu`: path not found"));
    assert!(
        train("data.tokenizer.vocab=9")
            .contains("data.tokenizer: BPE vocabulary `train-bpe`: 9 ids")
    );
    assert!(train("masked.alpha=-1").contains("masked.alpha: -1 is outside 0..=1"));
    let (code, _, err) = moe(&["train", &recipe, "--out", &path("run"), "--set", "train.steps=1"]);
    assert_eq!(code, 0, "{err}");
    let eval = |place: &str, more: &[&str]| {
        refused(&[&["eval", &path("run"), "--retrieval", place], more].concat())
    };
    assert!(eval(&path("nowhere"), &[]).contains("cannot read"));
    assert!(eval("held-out", &["--layer", "3"]).contains("--layer 3: expected 0 to 2"));
}
