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

/// Pictures of 28 x 28 as PNG files: of every image of `folders` one per pattern number.
fn pictures(dir: &Path, folders: &[&str], pattern: fn(u32, u32, u32) -> u8) {
    for folder in folders {
        fs::create_dir_all(dir.join(folder)).unwrap();
        for n in 0..4 {
            let picture = image::GrayImage::from_fn(28, 28, |x, y| image::Luma([pattern(n, x, y)]));
            picture.save(dir.join(folder).join(format!("{n}.png"))).unwrap();
        }
    }
}

/// Stripes and chequers, which no garment has.
fn chequers(n: u32, x: u32, y: u32) -> u8 {
    if (x / (n + 1) + y / (n + 1)).is_multiple_of(2) { 255 } else { 0 }
}

#[test]
fn pictures_of_other_sets_have_rows_of_their_own() {
    let (dir, run) = trained(IMAGES);
    let at = |name: &str| dir.path().join(name);
    pictures(&at("hard"), &["3", "7"], chequers);
    pictures(&at("one"), &["3"], chequers);
    pictures(&at("odd"), &["", "whatever"], chequers);
    let [hard, one, odd] = ["hard", "one", "odd"].map(|name| show(&at(name)));
    let args = ["--hard", &hard, "--hard", &one, "--unknown", &odd, "--batches", "2"];
    let (code, table, said) = robust(&run, &args);
    assert_eq!(code, 0, "{said}");
    for words in ["accuracy among them", "pictures of no class", "AUROC", "FPR95"] {
        assert!(table.contains(words), "{table}");
    }
    let found = json(&run.join("robustness.json"));
    // No attack was asked for.
    assert_eq!(found["rows"].as_array().unwrap().len(), 0);
    let [two, single] = [&found["hard"][0], &found["hard"][1]];
    assert_eq!(
        (&two["name"], &two["classes"], &two["score"]["targets"]),
        (&"hard".into(), &2.into(), &8.into())
    );
    // Both classes have the same pictures, so that one label of two is right.
    assert_eq!(two["accuracy_among"], 0.5);
    // Among a single class that one always wins.
    assert_eq!((&single["classes"], &single["accuracy_among"]), (&1.into(), &1.0.into()));
    assert!(two["score"]["accuracy"].as_f64().unwrap() <= 0.5);
    let unknown = &found["unknown"][0];
    assert_eq!((&unknown["images"], &unknown["known"]), (&8.into(), &32.into()));
    for measure in ["auroc", "aupr", "fpr95"] {
        assert!((0.0..=1.0).contains(&unknown[measure].as_f64().unwrap()), "{unknown}");
    }
    // Attacks later keep what the sets gave.
    let more = ["--attacks", "fog", "--severities", "1", "--batches", "2"];
    assert_eq!(robust(&run, &more).0, 0);
    let later = json(&run.join("robustness.json"));
    assert_eq!((&later["hard"], &later["unknown"]), (&found["hard"], &found["unknown"]));
    assert_eq!(later["rows"].as_array().unwrap().len(), 1);
}

#[test]
fn pictures_that_do_not_fit_are_refused_by_their_flag() {
    let (dir, run) = trained(IMAGES);
    let at = |name: &str| dir.path().join(name);
    pictures(&at("a/x"), &["3"], chequers);
    pictures(&at("b/x"), &["3"], chequers);
    pictures(&at("c"), &["shoe"], chequers);
    fs::create_dir_all(at("none")).unwrap();
    let refused = |run: &Path, args: &[&str]| {
        let (code, _, said) = robust(run, args);
        assert_eq!(code, 1, "{said}");
        said
    };
    let (a, b) = (show(&at("a/x")), show(&at("b/x")));
    let said = refused(&run, &["--hard", &a, "--hard", &b]);
    assert!(said.contains("--hard: two directories are called x; expected different"), "{said}");
    let said = refused(&run, &["--hard", &show(&at("c"))]);
    assert!(said.contains("--hard:") && said.contains("folder `shoe` is no class"), "{said}");
    let said = refused(&run, &["--unknown", &show(&at("none"))]);
    assert!(said.contains("--unknown:") && said.contains("expected PNG or JPEG"), "{said}");
    let said = refused(&run, &["--unknown", &a, "--against", &show(&run)]);
    assert!(said.contains("--against: compares corruptions"), "{said}");
    let (_text, run) = trained(TEXT);
    let said = refused(&run, &["--unknown", &a]);
    assert!(said.contains("--unknown: expected a run on labelled images"), "{said}");
}

#[test]
fn a_comparison_has_columns_of_other_sets() {
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("hard"), &["3", "7"], chequers);
    pictures(&dir.path().join("odd"), &["any"], chequers);
    let [out, hard, odd] = ["c", "hard", "odd"].map(|name| show(&dir.path().join(name)));
    let sets = ["model.width=8", "model.layers=2", "model.heads=2", "model.active_hidden=16"];
    let sets =
        [&sets[..], &["vision.patch=7", "train.steps=2", "train.batch=16", "train.eval_batches=1"]]
            .concat();
    let compare = ["compare", "--preset", "vision", "--routers", "v-moe,dense", "--seeds", "2"];
    let places = ["--jobs", "1", "--threads", "1", "--out", &out, "--data", "fashion-small"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let words: Vec<&str> = compare.into_iter().chain(places).chain(sets).collect();
    let (code, _, said) = moe(&words);
    assert_eq!(code, 0, "{said}");
    let args = ["--hard", &hard, "--unknown", &odd, "--batches", "1"];
    let (code, table, said) = robust(Path::new(&out), &args);
    assert_eq!(code, 0, "{said}");
    assert!(
        table.contains("## hard hard") && table.contains("accuracy among its classes | among all"),
        "{table}"
    );
    assert!(table.contains("## unknown odd") && table.contains("AUROC | AUPR | FPR95"), "{table}");
    let found = json(&Path::new(&out).join("robustness.json"));
    // Two routers: clean, two measures of hard pictures, three of unknown ones; no control was corrupted.
    assert_eq!(found["entries"].as_array().unwrap().len(), 12);
    let page = fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert!(
        page.contains("hard hard: accuracy among its classes")
            && page.contains("unknown odd: AUROC")
    );
}
