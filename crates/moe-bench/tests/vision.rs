//! Vision recipes through the `moe` binary: training, evaluation with other settings, comparison.

use assert_cmd::Command;
use std::fs;
use std::path::Path;

const TINY: &str = r#"
router = { name = "v-moe", preset = "paper_bpr" }
[data]
source = "DATA"
[model]
width = 8
layers = 2
heads = 2
experts = 4
active_hidden = 16
routing_group = { sequences = 2 }
[vision]
patch = 4
placement = { last = 1 }
[vision.augment]
crop = 1
flip = true
mixup = 0.3
label_smoothing = 0.1
[train]
steps = 6
batch = 4
warmup = 2
eval_every = 3
eval_batches = 0
"#;

fn idx(axes: &[u32], values: Vec<u8>) -> Vec<u8> {
    let lengths = axes.iter().flat_map(|length| length.to_be_bytes());
    [0, 0, 8, axes.len() as u8].into_iter().chain(lengths).chain(values).collect()
}

/// A directory with MNIST's files, 40 and 8 images of 8 x 8 in two classes, and a recipe for them.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, n) in [("train", 40_u32), ("t10k", 8)] {
        let pixels = (0..n * 64).map(|i| (i * 7 % 256) as u8).collect();
        let labels = (0..n).map(|i| (i % 2) as u8).collect();
        let file = |what: &str| dir.path().join(format!("{name}-{what}-ubyte"));
        fs::write(file("images-idx3"), idx(&[n, 8, 8], pixels)).unwrap();
        fs::write(file("labels-idx1"), idx(&[n], labels)).unwrap();
    }
    let recipe = TINY.replace("DATA", &show(dir.path()));
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
fn a_classifier_trains_resumes_and_is_evaluated_under_other_settings() {
    let place = place();
    let path = |name: &str| show(&place.path().join(name));
    let train = |more: &[&str]| {
        let (code, _, err) =
            moe(&[&["train", &path("tiny.toml"), "--threads", "1"], more].concat());
        assert_eq!(code, 0, "{err}");
    };
    train(&["--out", &path("straight")]);
    train(&["--out", &path("halves"), "--set", "train.stop_after=4"]);
    train(&["--out", &path("halves"), "--resume"]);
    let model = |run: &str| {
        fs::read(place.path().join(run).join("checkpoints/step-000006/model.safetensors")).unwrap()
    };
    assert!(model("straight") == model("halves"), "resuming is arithmetic");

    let run = path("straight");
    let line = json(&["eval", &run, "--split", "test", "--json"]);
    assert_eq!((line["tokens"].as_u64(), line["split"].as_str()), (Some(8), Some("test")));
    let measure = |line: &serde_json::Value, name: &str| line["measures"][name].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&measure(&line, "accuracy")));

    // A log of every patch: its class is its label.
    let log = path("routing.jsonl");
    json(&["eval", &run, "--split", "test", "--json", "--routing-log", &log]);
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "two batches of four images, one sparse layer");
    assert_eq!(lines[1]["token"], 20, "behind four images of five tokens");
    let label = |image: u64| vec![image % 2; 5];
    let want: Vec<u64> = (0..4).flat_map(label).collect();
    assert_eq!(lines[0]["label"], serde_json::json!(want));
    let report = json(&["inspect", &log, "--json"]);
    let layer = &report["layers"][0];
    assert_eq!(layer["tokens"], 40);
    assert!(layer["specialisation"]["mutual_information"].is_number(), "{layer}");

    // Five tokens of eight images choose two experts each, or one; two groups' worth of room is enough.
    let rows = json(&[
        "eval",
        &run,
        "--split",
        "test",
        "--json",
        "--set",
        "router.capacity_factor=100",
        "--sweep",
        "router.top_k=2,1",
    ]);
    let [two, one] = [0, 1].map(|row| {
        rows[row]["layers"][0]["load_e"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_f64().unwrap())
            .sum::<f64>()
    });
    assert_eq!((two, one), (80.0, 40.0));
    assert!(measure(&rows[0], "flops_per_image") > measure(&rows[1], "flops_per_image"));
    assert_eq!(measure(&rows[0], "success_rate"), 1.0);

    // Ten tokens a group: round(2 * 10 * 0.3 / 4) = 2 places at each of four experts, four groups.
    let (code, table, err) = moe(&[
        "eval",
        &run,
        "--split",
        "test",
        "--sweep",
        "router.capacity_factor=0.3",
        "--sweep",
        "router.batch_priority=false,true",
    ]);
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].contains("accuracy") && lines[0].contains("success rate"), "{table}");
    assert!(lines[2].contains("router.batch_priority=true"), "{table}");
    let tight =
        json(&["eval", &run, "--split", "test", "--json", "--set", "router.capacity_factor=0.3"]);
    assert!(measure(&tight, "success_rate") <= 0.4, "{tight}");
}

#[test]
fn what_a_vision_recipe_cannot_mean_is_refused() {
    let place = place();
    let recipe = show(&place.path().join("tiny.toml"));
    let refused = |set: &str| {
        let (code, _, err) = moe(&["train", &recipe, "--out", "nowhere", "--set", set]);
        assert_eq!(code, 1, "{err}");
        err
    };
    assert!(refused("model.context=9").contains("model.context: has no meaning beside [vision]"));
    assert!(refused("vision.patch=3").contains("vision.patch: 3 does not divide images of 8 x 8"));
    assert!(refused("data.source=sotu").contains("data.source: images `sotu`: no such directory"));
    assert!(refused("router=stable-moe").contains("reads the ids of words"));
}

#[test]
fn routers_are_compared_on_images() {
    let place = place();
    let out = show(&place.path().join("out"));
    let data = show(place.path());
    let (code, table, err) = moe(&[
        "compare",
        "--preset",
        "vision",
        "--data",
        &data,
        "--out",
        &out,
        "--seeds",
        "1",
        "--routers",
        "v-moe,soft-moe,dense",
        "--set",
        "vision.patch=4",
        "--set",
        "train.steps=2",
        "--set",
        "train.batch=4",
        "--set",
        "model.width=8",
        "--set",
        "model.active_hidden=8",
    ]);
    assert_eq!(code, 0, "{err}");
    assert!(table.contains("soft-moe") && !table.contains("not causal"), "{table}");
    let results = fs::read_to_string(Path::new(&out).join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert_eq!(results["terms"]["tokenizer"], "patches of 4 x 4");
    assert_eq!(results["terms"]["unit"], "image");
    let accuracy = |row: &serde_json::Value| row["metrics"]["measures"]["accuracy"].as_f64();
    for row in results["rows"].as_array().unwrap() {
        assert!(accuracy(row).is_some_and(|share| (0.0..=1.0).contains(&share)), "{row}");
    }
    assert!(table.contains("racy") && !table.contains("perplex-"), "{table}");
    let csv = fs::read_to_string(Path::new(&out).join("results.csv")).unwrap();
    assert!(csv.contains("v-moe,0,accuracy,"), "{csv}");
    let page = fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert!(page.contains(">accuracy</th>") && !page.contains(">perplexity</th>"));
    // Two classes, equally often: ln 2.
    let floor = results["terms"]["unigram_loss"].as_f64().unwrap();
    assert!((floor - 2f64.ln()).abs() < 0.01, "{floor}");
}

/// Two stages on maps of 4 x 4 and 2 x 2 tokens, in the place of the Vision Transformer.
fn hierarchy() -> tempfile::TempDir {
    let place = place();
    let path = place.path().join("tiny.toml");
    let recipe = fs::read_to_string(&path).unwrap();
    let recipe = recipe
        .replace("{ name = \"v-moe\", preset = \"paper_bpr\" }", "\"ac-moe:swin\"")
        .replace("layers = 2\nheads = 2\n", "")
        .replace(
            "patch = 4\nplacement = { last = 1 }",
            concat!(
                "patch = 2\n[vision.swin]\ndepths = [2, 4]\nheads = [2, 4]\nwindow = 3\n",
                "moe_stages = [1, 2]",
            ),
        );
    fs::write(path, recipe).unwrap();
    place
}

/// Training, resuming, both kinds of evaluation, the log of routes, damaged images: a hierarchy, whose layers
/// have different numbers of tokens, goes where the other classifier goes.
#[test]
fn a_hierarchy_goes_the_whole_way() {
    let place = hierarchy();
    let path = |name: &str| show(&place.path().join(name));
    let train = |more: &[&str]| {
        let (code, _, err) =
            moe(&[&["train", &path("tiny.toml"), "--threads", "1"], more].concat());
        assert_eq!(code, 0, "{err}");
    };
    train(&["--out", &path("straight")]);
    train(&["--out", &path("halves"), "--set", "train.stop_after=4"]);
    train(&["--out", &path("halves"), "--resume"]);
    let model = |run: &str| {
        fs::read(place.path().join(run).join("checkpoints/step-000006/model.safetensors")).unwrap()
    };
    assert!(model("straight") == model("halves"), "resuming is arithmetic");

    let (run, log) = (path("straight"), path("routing.jsonl"));
    let line = json(&["eval", &run, "--split", "test", "--json", "--routing-log", &log]);
    assert_eq!(line["tokens"].as_u64(), Some(8));
    assert!(line["measures"]["flops_per_image"].as_f64().unwrap() > 0.0);
    // Eight images of 16 and of 4 tokens; in the second batch of four, the numbers go on.
    let report = json(&["inspect", &log, "--json"]);
    let layers = report["layers"].as_array().unwrap();
    let tokens: Vec<u64> = layers.iter().map(|layer| layer["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [128, 32, 32]);
    let compared = |layer: usize| layers[layer]["cross_layer_instability"].is_number();
    assert_eq!([0, 1, 2].map(compared), [false, true, false], "{report}");

    let shots = json(&["eval", &run, "--few-shot", "1", "--json"]);
    assert_eq!(shots[0]["shots"], 1);
    let (code, table, err) =
        moe(&["robust", &run, "--attacks", "fgsm,contrast", "--severities", "1"]);
    assert_eq!(code, 0, "{err}");
    assert!(table.contains("fgsm"), "{table}");

    let sketch = json(&["train", &path("tiny.toml"), "--dry-run", "--json"]);
    assert_eq!(sketch["tokens_per_step"], 4 * 16);
    let trained: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(place.path().join("straight/result.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(sketch["params_total"], trained["params_total"], "{trained}");
}
