//! Recipes with `[vae]` through the `moe` binary: training, resuming, evaluation, analysis, comparison.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::Path;

const TINY: &str = r#"
router = "ROUTER"
[data]
source = "DATA"
[model]
experts = 3
[vae]
encoder = "lite"
decoder = "lite"
latent = 4
fraction = 0.5
[train]
steps = 6
batch = 8
warmup = 0
eval_every = 3
eval_batches = 0
"#;

/// A NumPy file of bitmaps.
fn npy(images: u32, seed: u32) -> Vec<u8> {
    let shape = format!("({images}, 784)");
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = (header.len() as u16).to_le_bytes();
    let values = (0..images * 784).map(|i| (i.wrapping_mul(seed) >> 3) as u8);
    [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes(), &values.collect::<Vec<_>>()]
        .concat()
}

/// A directory with 72 bitmaps of two classes under Google's names, and recipes for them: of each class 54
/// train, 6 are held out, 12 are the test.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (class, seed) in [("cat", 7919), ("eye", 104_729)] {
        let name = format!("full_numpy_bitmap_{class}.npy");
        fs::write(dir.path().join(name), npy(72, seed)).unwrap();
    }
    for router in ["paper", "supervised"] {
        let recipe = TINY.replace("DATA", &show(dir.path()));
        let recipe = recipe.replace("ROUTER", &format!("smoe-vae:{router}"));
        fs::write(dir.path().join(format!("{router}.toml")), recipe).unwrap();
    }
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

fn fine(args: &[&str]) -> String {
    let (code, out, err) = moe(args);
    assert_eq!(code, 0, "{err}");
    out
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn drawing_models_train_resume_and_are_analysed() {
    let place = place();
    let path = |name: &str| show(&place.path().join(name));
    for recipe in ["paper", "supervised"] {
        let (file, straight, halves) =
            (path(&format!("{recipe}.toml")), path(recipe), path(&format!("{recipe}-halves")));
        let train = |more: &[&str]| fine(&[&["train", &file, "--threads", "1"], more].concat());
        train(&["--out", &straight]);
        train(&["--out", &halves, "--set", "train.stop_after=4"]);
        train(&["--out", &halves, "--resume"]);
        let model = |run: &str| {
            fs::read(Path::new(run).join("checkpoints/step-000006/model.safetensors")).unwrap()
        };
        assert!(model(&straight) == model(&halves), "{recipe}: resuming is arithmetic");

        let line = json(&fine(&["eval", &straight, "--split", "test", "--json"]));
        let measure = |name: &str| line["measures"][name].as_f64().unwrap();
        assert_eq!(
            (line["tokens"].as_u64(), line["loss"].as_f64()),
            (Some(24), Some(measure("reconstruction")))
        );
        assert!(measure("reconstruction_soft") > 0.0 && measure("divergence") >= 0.0);

        // The same latents, errors and decisions as the evaluation.
        let out = path(&format!("{recipe}-pictures"));
        fine(&["analyse", &straight, "--out", &out]);
        let file = |name: &str| fs::read(Path::new(&out).join(name)).unwrap();
        let found = json(&String::from_utf8(file("analysis.json")).unwrap());
        let near = |got: &Value, want: f64| (got.as_f64().unwrap() / want - 1.0).abs() < 1e-5;
        let reconstruction = &found["reconstruction"];
        assert!(near(&reconstruction["hard"], measure("reconstruction")), "{found}");
        assert!(near(&reconstruction["soft"], measure("reconstruction_soft")), "{found}");
        let (mi, want) = (&found["mutual_information"], measure("mutual_information"));
        assert!((mi.as_f64().unwrap() - want).abs() < 1e-9, "{found}");
        let counts =
            found["count_le"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
        assert_eq!(counts.map(|n| n.as_u64().unwrap()).sum::<u64>(), 24);
        assert_eq!(found["tsne"]["xy"].as_array().unwrap().len(), 24);
        assert!(file("reconstructions.png").starts_with(b"\x89PNG"));
        for name in ["tsne-class.svg", "tsne-expert.svg", "classes.svg"] {
            roxmltree::Document::parse(std::str::from_utf8(&file(name)).unwrap()).unwrap();
        }
    }
}

#[test]
fn a_dry_run_counts_and_builds_nothing() {
    let place = place();
    let recipe = show(&place.path().join("paper.toml"));
    let found = json(&fine(&["train", &recipe, "--dry-run", "--json"]));
    assert_eq!(found["images"], serde_json::json!([54, 12, 24]));
    assert_eq!(found["classes"], serde_json::json!(["cat", "eye"]));
    let params = &found["params"];
    let sum: u64 =
        ["encoder", "decoders", "gate"].iter().map(|p| params[p].as_u64().unwrap()).sum();
    assert_eq!(found["params_total"].as_u64(), Some(sum));
    assert!(found["recipe"]["model"].as_object().unwrap().len() == 1, "{found}");
    let text = fine(&["train", &recipe, "--dry-run"]);
    assert!(text.contains("54 + 12 + 24 images of 2 classes"), "{text}");
}

#[test]
fn what_a_drawing_recipe_cannot_mean_is_refused() {
    let place = place();
    let recipe = show(&place.path().join("paper.toml"));
    let refused = |args: &[&str]| {
        let (code, _, err) = moe(args);
        assert_eq!(code, 1, "{err}");
        err
    };
    let set = |set: &str| refused(&["train", &recipe, "--out", "nowhere", "--set", set]);
    assert!(set("model.width=9").contains("model.width: has no meaning beside [vae]"));
    assert!(set("data.source=sotu").contains("data.source: images `sotu`: no such directory"));
    assert!(
        set("train.accumulate=2").contains("train.accumulate: a batch of [vae] is taken whole")
    );
    let missing = refused(&["analyse", &show(place.path())]);
    assert!(missing.contains("no run here"), "{missing}");
}

#[test]
fn routing_with_and_without_labels_is_compared() {
    let place = place();
    let (out, data) = (show(&place.path().join("out")), show(place.path()));
    let sets = ["train.steps=2", "train.batch=8", "train.eval_every=2", "model.experts=2"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    let compare =
        ["compare", "--preset", "smoe-vae", "--data", &data, "--out", &out, "--seeds", "1"];
    let table = fine(&[&compare[..], &sets].concat());
    assert!(!table.contains("not causal"), "{table}");
    let results = json(&fs::read_to_string(Path::new(&out).join("results.json")).unwrap());
    assert_eq!(results["judgements"]["reference"], "smoe-vae:supervised");
    assert_eq!(results["terms"]["tokenizer"], "whole images");
    let unequal = results["terms"]["unequal"].as_array().unwrap();
    assert_eq!(unequal[0], "smoe-vae: all 2 decoders draw every image of a training batch");
    let routers = results["summary"].as_array().unwrap().iter();
    let mut routers: Vec<&str> = routers.map(|r| r["router"].as_str().unwrap()).collect();
    routers.sort_unstable();
    assert_eq!(routers, ["smoe-vae", "smoe-vae:supervised"]);
    // Finished runs are kept: their records are those of the same recipes.
    let seconds = |results: &Value| results["rows"][0]["metrics"]["train_seconds"].clone();
    fine(&[&compare[..], &sets].concat());
    let again = json(&fs::read_to_string(Path::new(&out).join("results.json")).unwrap());
    assert_eq!(seconds(&again), seconds(&results));
}
