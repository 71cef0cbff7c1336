//! Fine-tuning, inference modes, the adaptive softmax and few-shot probes through the `moe` binary.

use assert_cmd::Command;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const MODEL: &str = r#"
[model]
width = 8
layers = 1
heads = 2
context = 24
moe_every = 1
experts = 4
active_hidden = 16
expert_hidden = 8
[train]
steps = 4
batch = 4
sequence = 8
warmup = 1
eval_every = 2
eval_batches = 2
"#;

/// A directory of its own with a text, labelled texts, and helpers on it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let words = ["red", "green", "blue", "old", "new"];
        let text: String = (0..800).map(|n| format!("{} ", words[n * n % 7 % 5])).collect();
        fs::write(place.at("text.txt"), text).unwrap();
        for (name, count) in [("train.csv", 44), ("test.csv", 6)] {
            let mut table = "text,category\n".to_owned();
            for n in 0..count {
                let word = words[n % 2];
                writeln!(table, "\"the {word}, {}\",{word}", "x".repeat(n % 9)).unwrap();
            }
            fs::write(place.at(name), table).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn show(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// Writes a recipe on this text and trains it into `run`.
    fn train(&self, run: &str, head: &str, more: &[&str]) {
        let (code, _, err) = self.try_train(run, head, more);
        assert_eq!(code, 0, "{err}");
    }

    fn try_train(&self, run: &str, head: &str, more: &[&str]) -> (i32, String, String) {
        let recipe =
            format!("{head}\n{MODEL}").replace("PLACE", &self.0.path().display().to_string());
        fs::write(self.at("recipe.toml"), recipe).unwrap();
        let (recipe, run) = (self.show("recipe.toml"), self.show(run));
        moe(&[&["train", &recipe, "--threads", "1", "--out", &run], more].concat())
    }

    fn model(&self, run: &str) -> Vec<u8> {
        fs::read(self.at(run).join("checkpoints/step-000004/model.safetensors")).unwrap()
    }

    fn eval(&self, run: &str, more: &[&str]) -> Value {
        let (code, out, err) = moe(&[&["eval", &self.show(run), "--json"], more].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }
}

/// Exit code, standard output, standard error.
fn moe(args: &[&str]) -> (i32, String, String) {
    let output = Command::cargo_bin("moe").unwrap().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn language_model(router: &str) -> String {
    format!("router = {router}\n[data]\nsource = 'PLACE/text.txt'")
}

fn classifier(router: &str, more: &str) -> String {
    format!(
        "router = {router}\n[data]\nsource = 'PLACE'\n[classify]\nfrom = 'PLACE/pre'\nlayout = 'banking77'\n{more}"
    )
}

fn flops(line: &Value) -> f64 {
    line["measures"]["flops_per_token"].as_f64().unwrap()
}

/// Every tensor of a checkpoint by name, as bytes.
fn tensors(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut all: Vec<_> =
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn a_language_model_becomes_a_classifier() {
    let place = Place::new();
    place.train("pre", &language_model("'x-moe'"), &[]);
    let tune = classifier("'x-moe'", "pool = 'mean'\nfreeze = ['router', 'experts']");
    place.train("straight", &tune, &[]);
    place.train("halves", &tune, &["--set", "train.stop_after=3"]);
    place.train("halves", &tune, &["--resume"]);
    assert!(place.model("straight") == place.model("halves"), "resuming is arithmetic");

    // What is frozen is the language model's, the rest has moved.
    let (before, after) = (tensors(&place.model("pre")), tensors(&place.model("straight")));
    for (name, value) in &after {
        let Some((_, old)) = before.iter().find(|(other, _)| other == name) else {
            assert!(name.starts_with("model.classifier."), "{name}");
            continue;
        };
        let frozen = name.contains(".router.") || name.contains(".experts.");
        assert_eq!(old == value, frozen, "{name}");
    }
    let line = place.eval("straight", &["--split", "test"]);
    assert_eq!(line["tokens"], 6);
    assert!((0.0..=1.0).contains(&line["measures"]["accuracy"].as_f64().unwrap()));
    let result: Value =
        serde_json::from_str(&fs::read_to_string(place.at("straight/result.json")).unwrap())
            .unwrap();
    assert!(result["valid_accuracy"].is_number(), "{result}");

    let (code, said, err) = place.try_train("dry", &tune, &["--dry-run"]);
    assert_eq!(code, 0, "{err}");
    assert!(said.contains("2 classes; 40 + 4 + 6 texts"), "{said}");
}

#[test]
fn what_fine_tuning_cannot_go_on_with_is_refused() {
    let place = Place::new();
    place.train("pre", &language_model("'x-moe'"), &[]);
    let refused = |head: &str, set: &str| {
        let (code, _, err) = place.try_train("no", head, &["--set", set]);
        assert_ne!(code, 0, "{head} {set}");
        fs::remove_dir_all(place.at("no")).ok();
        err
    };
    let tune = classifier("'x-moe'", "");
    assert!(refused(&tune, "model.width=16").contains("model.width = 16, was 8"));
    assert!(refused(&tune, "data.tokenizer=bpe").contains("data.tokenizer"));
    assert!(refused(&tune, "router=switch").contains("router.name = \"switch\", was \"x-moe\""));
    assert!(refused(&tune, "classify.from=nowhere").contains("neither a run"));
    assert!(refused(&tune, "classify.layout=trec").contains("TREC.train.all"));
    assert!(refused(&tune, "router=sinkhorn").contains("knows no padding"));
    let weights = place.at("pre/checkpoints/step-000004/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert!(refused(&tune, "seed=1").contains("damaged"));
}

#[test]
fn words_keep_the_ids_of_the_language_model_and_a_head_is_left_behind() {
    let place = Place::new();
    let words = "tokenizer = { kind = 'word', min_count = 1 }";
    let untied = ["--set", "model.tied_embedding=false"];
    place.train("pre", &format!("{}\n{words}", language_model("'smoe'")), &untied);
    let tune = classifier("'smoe'", "").replace("[classify]", &format!("{words}\n[classify]"));
    place.train("tuned", &tune, &untied);
    assert_eq!(place.eval("tuned", &["--split", "test"])["tokens"], 6);
}

/// One sparse layer of width 8, experts of 2 * 8 * 8 values, windows of 8 tokens, 256 ids. Attention
/// 4 * 64 + 2 * 8 * 8 = 384, the router 32, the output layer 2048; the blend gate is not read.
#[test]
fn s2_moe_infers_with_one_expert() {
    let place = Place::new();
    place.train("s2", &language_model("'s2-moe'"), &[]);
    let rows = place.eval("s2", &["--sweep", "router.top_k_infer=1,2"]);
    assert_eq!(flops(&rows[1]) - flops(&rows[0]), 256.0);
    assert_eq!(flops(&rows[0]), 2.0 * (384.0 + 32.0 + 128.0 + 2048.0));
}

/// Sizes as above.
#[test]
fn us_moe_and_vq_moe_have_their_modes() {
    let place = Place::new();
    place.train("us", &language_model("'us-moe'"), &[]);
    let rows = place.eval("us", &["--batches", "1", "--sweep", "router.top_k=1,1.5,2"]);
    assert_eq!(flops(&rows[0]), 2.0 * (384.0 + 32.0 + 128.0 + 2048.0));
    assert_eq!(flops(&rows[1]) - flops(&rows[0]), 128.0);
    assert_eq!(flops(&rows[2]) - flops(&rows[1]), 128.0);

    place.train("vq", &language_model("'vq-moe'"), &[]);
    let rows = place.eval("vq", &["--sweep", "router.mode=pretrain,discrete"]);
    // Both branches, the embeddings of four experts, two gates, sixteen codes.
    assert_eq!(flops(&rows[0]), 2.0 * (384.0 + 32.0 + 16.0 + 128.0 + 256.0 + 2048.0));
    assert_eq!(flops(&rows[1]), 2.0 * (384.0 + 128.0 + 128.0 + 2048.0));
    let (code, table, err) =
        moe(&["eval", &place.show("vq"), "--sweep", "router.mode=pretrain,discrete"]);
    assert_eq!(code, 0, "{err}");
    assert!(table.contains("flops per token") && table.contains("time"), "{table}");

    // Fine-tuning with the discrete branch alone, from both.
    fs::rename(place.at("vq"), place.at("pre")).unwrap();
    place.train("tuned", &classifier("{ name = 'vq-moe', mode = 'discrete' }", ""), &[]);
    let rows = place.eval("tuned", &[])["layers"][0]["expert_rows"].clone();
    assert!(rows.as_f64().unwrap() > 0.0);
}

#[test]
fn an_adaptive_softmax_trains_resumes_and_is_cheaper() {
    let place = Place::new();
    let head = language_model("'smoe'");
    for (name, tied) in [("tied", "true"), ("untied", "false")] {
        let tied = format!("model.tied_embedding={tied}");
        let sets =
            ["--set", "model.softmax={ adaptive = [100, 200], div_value = 2 }", "--set", &tied];
        place.train(name, &head, &sets);
        let halves = format!("{name}-halves");
        place.train(&halves, &head, &[&sets[..], &["--set", "train.stop_after=2"]].concat());
        place.train(&halves, &head, &[&sets[..], &["--resume"]].concat());
        assert!(place.model(name) == place.model(&halves), "resuming is arithmetic");
        let line = place.eval(name, &["--split", "test"]);
        // An even guess in head and tail costs a letter of the tail as much.
        let even = 102f64.ln() + 100f64.ln();
        assert!(line["loss"].as_f64().unwrap() < even && line["bits_per_byte"].is_number());
        let (code, said, err) =
            place.try_train("dry", &head, &[&sets[..], &["--dry-run"]].concat());
        assert_eq!(code, 0, "{err}");
        assert!(said.contains("[model.softmax]"), "{said}");
    }
    place.train("full", &head, &[]);
    assert!(flops(&place.eval("tied", &[])) < flops(&place.eval("full", &[])));
    let set = ["--set", "model.softmax={ adaptive = [256] }"];
    let (code, _, err) = place.try_train("no", &head, &set);
    assert_eq!(code, 1);
    assert!(err.contains("softmax: adaptive cuts at 256, and the vocabulary has 256"), "{err}");
    let (code, _, err) = moe(&["eval", &place.show("full"), "--few-shot", "1"]);
    assert_eq!((code, err.contains("image classifiers alone")), (1, true), "{err}");
}

#[test]
fn features_of_images_are_probed_with_few_shots() {
    let place = Place::new();
    let recipe = "router = { name = 'v-moe' }\n[data]\nsource = 'fashion-small'\n[model]\nwidth = 8\n\
        layers = 2\nheads = 2\nexperts = 4\nactive_hidden = 16\n[vision]\npatch = 7\n[train]\n\
        steps = 2\nbatch = 8\nwarmup = 1\neval_batches = 1\n";
    fs::write(place.at("vision.toml"), recipe).unwrap();
    let (recipe, run) = (place.show("vision.toml"), place.show("run"));
    let (code, _, err) = moe(&["train", &recipe, "--threads", "1", "--out", &run]);
    assert_eq!(code, 0, "{err}");
    let rows = place.eval("run", &["--few-shot", "2,5"]);
    for (row, shots) in [(&rows[0], 2), (&rows[1], 5)] {
        assert_eq!(row["shots"], shots);
        assert_eq!(row["test_accuracy"].as_array().unwrap().len(), 3);
        // An even guess is right once in ten.
        assert!(row["valid_accuracy"].as_f64().unwrap() > 0.15, "{row}");
    }
    let (code, _, err) = moe(&["eval", &run, "--few-shot", "9999"]);
    assert_eq!((code, err.contains("a class has no 9999 training images")), (1, true), "{err}");
    assert!(Path::new(&run).exists());
}
