//! `moe robust` through the binary: runs on text and on images, a comparison, what is refused, going on.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const TEXT: &str = r#"
router = "smoe"
[data]
source = "DATA"
tokenizer = "word"
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

const IMAGES: &str = r#"
router = "v-moe"
[data]
source = "fashion-small"
[model]
width = 8
layers = 2
heads = 2
experts = 4
active_hidden = 16
[vision]
patch = 7
[train]
steps = 4
batch = 16
warmup = 2
eval_every = 4
eval_batches = 2
"#;

/// Exit code, standard output, standard error.
fn moe(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("moe").unwrap().args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// A run of this recipe in a directory of its own.
fn trained(recipe: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let text: String =
        (0..400).map(|i| format!("line {i} of a peaceful nation and its people\n")).collect();
    fs::write(dir.path().join("text.txt"), text).unwrap();
    let recipe = recipe.replace("DATA", &show(&dir.path().join("text.txt")));
    fs::write(dir.path().join("r.toml"), recipe).unwrap();
    let run = dir.path().join("run");
    let args = ["train", &show(&dir.path().join("r.toml")), "--out", &show(&run), "--threads", "1"];
    let (code, _, said) = moe(&args);
    assert_eq!(code, 0, "{said}");
    (dir, run)
}

fn robust(run: &Path, args: &[&str]) -> (i32, String, String) {
    moe(&[&["robust", &show(run), "--threads", "1"], args].concat())
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_text_run_under_every_attack() {
    let (_dir, run) = trained(TEXT);
    let (code, table, said) = robust(&run, &["--rates", "0,0.2", "--batches", "4"]);
    assert_eq!(code, 0, "{said}");
    assert!(table.contains("insertion") && table.contains("perplexity"), "{table}");
    let found = json(&run.join("robustness.json"));
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 8);
    for row in rows {
        let (attack, rate) = (row["attack"].as_str().unwrap(), row["level"].as_f64().unwrap());
        let flips: Vec<f64> =
            row["flip_rate_l"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        // The word swap changes a word of every line even at rate 0.
        if rate == 0.0 && attack != "word-swap" {
            assert_eq!(row["score"], found["clean"], "{attack}");
            assert!(flips.iter().all(|rate| *rate == 0.0), "{attack}: {flips:?}");
        } else {
            assert_ne!(row["score"]["loss"], found["clean"]["loss"], "{attack}");
        }
        let aligned =
            if attack == "insertion" && rate > 0.0 { "unchanged tokens" } else { "position" };
        assert_eq!(row["aligned"], aligned, "{attack} {rate}");
    }
    // What is there is kept, and what is new is added.
    let before = fs::read_to_string(run.join("robustness.json")).unwrap();
    assert_eq!(robust(&run, &["--rates", "0,0.2", "--batches", "4"]).0, 0);
    assert_eq!(fs::read_to_string(run.join("robustness.json")).unwrap(), before);
    let more = ["--attacks", "insertion", "--rates", "0.5", "--batches", "4"];
    assert_eq!(robust(&run, &more).0, 0);
    assert_eq!(json(&run.join("robustness.json"))["rows"].as_array().unwrap().len(), 9);
}

#[test]
fn what_makes_no_sense_is_misuse() {
    let (dir, run) = trained(TEXT);
    let refused = |run: &Path, args: &[&str]| {
        let (code, _, said) = robust(run, args);
        assert_eq!(code, 1, "{said}");
        said
    };
    let said = refused(&run, &["--attacks", "fog"]);
    let names = "word-swap, synonyms, characters, insertion";
    assert!(said.contains(&format!("--attacks fog: these data know {names}")), "{said}");
    assert!(refused(&run, &["--rates", "2"]).contains("--rates 2: a rate lies in 0..=1"));
    assert!(refused(&run, &["--severities", "6"]).contains("6 is not in 1..=5"));
    assert!(refused(dir.path(), &[]).contains("no run here"));
    assert!(!run.join("robustness.json").exists());
}

#[test]
fn an_image_run_under_corruptions_and_gradients() {
    let (_dir, run) = trained(IMAGES);
    let args =
        ["--attacks", "fog,frost,contrast,fgsm,pgd", "--severities", "1,5", "--batches", "2"];
    let against = ["--against", &show(&run)];
    let (code, table, said) = robust(&run, &[&args[..], &against[..]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(
        table.contains("not run: frost 1: frost needs pictures of frost: --frost DIR"),
        "{table}"
    );
    // Against itself every corruption error is 1.
    assert!(table.contains("mean corruption error over 2 corruptions"), "{table}");
    let found = json(&run.join("robustness.json"));
    assert_eq!(found["mce"]["mce"], 1.0);
    assert_eq!(found["rows"].as_array().unwrap().len(), 6);
    for row in found["rows"].as_array().unwrap() {
        assert_eq!(
            (&row["aligned"], row["score"]["targets"].as_u64()),
            (&"position".into(), Some(32))
        );
    }
}

#[test]
fn a_comparison_has_a_table_per_router() {
    let dir = tempfile::tempdir().unwrap();
    let out = show(&dir.path().join("c"));
    let sets =
        ["--set", "train.steps=2", "--set", "train.batch=2", "--set", "train.eval_batches=1"];
    let compare =
        ["compare", "--routers", "smoe,dense", "--seeds", "2", "--jobs", "1", "--out", &out];
    let (code, _, said) = moe(&[&compare[..], &sets[..]].concat());
    assert_eq!(code, 0, "{said}");
    let args = ["--attacks", "characters", "--rates", "0.1", "--batches", "2"];
    let (code, table, said) = robust(Path::new(&out), &args);
    assert_eq!(code, 0, "{said}");
    assert!(table.contains("## characters") && table.contains("| smoe | 2 |"), "{table}");
    let found = json(&Path::new(&out).join("robustness.json"));
    assert_eq!(found["entries"].as_array().unwrap().len(), 4);
    assert!(Path::new(&out).join("robustness.md").exists());
    let page = fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert!(page.contains("<section id=\"robustness\">"));
}
