//! The `moe` binary as a user meets it: what it prints, what it refuses, with which exit code.

mod common;

use common::Place;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The recipe of a place, trained; and the files that come of it.
trait Runs {
    fn train(&self, args: &[&str]) -> Said;
    fn text(&self, name: &str) -> String;
}

impl Runs for Place {
    /// `moe train tiny.toml` with more arguments.
    fn train(&self, args: &[&str]) -> Said {
        moe(&[&["train", &self.show("tiny.toml"), "--threads", "1"], args].concat())
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn moe(args: &[&str]) -> Said {
    let output = common::moe(args);
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
fn refused(said: &Said, code: i32, parts: &[&str]) {
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    for part in parts {
        assert!(said.err.contains(part), "expected `{part}` in: {}", said.err);
    }
}

/// What `moe eval --json` found.
#[track_caller]
fn evaluated(said: &Said) -> serde_json::Value {
    assert_eq!(said.code, 0, "{}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// The loss of the run in `out` with settings put over its recipe.
#[track_caller]
fn loss_under(out: &str, sets: &[&str]) -> f64 {
    let flags: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let said = moe(&[&["eval", out, "--json"], flags.as_slice()].concat());
    evaluated(&said)["loss"].as_f64().unwrap()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_run_writes_its_files_and_can_be_evaluated() {
    let (place, out) = (Place::new(), "run");
    let said = place.train(&["--out", &show(&place.path(out))]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("validation loss"), "{}", said.out);
    for file in ["recipe.toml", "environment.json", "metrics.jsonl", "result.json"] {
        assert!(place.path(out).join(file).exists(), "{file}");
    }
    let names = fs::read_dir(place.path(out)).unwrap().map(|e| e.unwrap().file_name());
    let events = names.filter(|n| n.to_string_lossy().starts_with("events.out.tfevents."));
    assert_eq!(events.count(), 1);
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        assert!(place.path(out).join("checkpoints/step-000006").join(file).exists(), "{file}");
    }
    // Evaluations at 0, 3 and 6, and six steps.
    assert_eq!(place.text("run/metrics.jsonl").lines().count(), 9);

    let line = evaluated(&moe(&["eval", &show(&place.path(out)), "--split", "test", "--json"]));
    assert_eq!((line["step"].as_u64(), line["split"].as_str()), (Some(6), Some("test")));
    assert!(line["loss"].as_f64().unwrap() > 0.0 && line["bits_per_byte"].as_f64().unwrap() > 0.0);
}

#[test]
fn stopping_and_resuming_gives_the_same_bytes_as_going_on() {
    let place = Place::new();
    let (straight, halves) = (show(&place.path("straight")), show(&place.path("halves")));
    assert_eq!(place.train(&["--out", &straight]).code, 0);
    let said = place.train(&["--out", &halves, "--set", "train.stop_after=4"]);
    assert!(said.out.contains("stopped after step 4"), "{}", said.out);
    assert_eq!(place.train(&["--out", &halves, "--resume"]).code, 0);
    let model = |dir: &str| {
        fs::read(Path::new(dir).join("checkpoints/step-000006/model.safetensors")).unwrap()
    };
    assert!(model(&straight) == model(&halves), "weights differ");
    let losses = |dir: &str| -> Vec<String> {
        let text = fs::read_to_string(Path::new(dir).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let brief = |line: serde_json::Value| {
            let probe = &line["probe"]["layers"];
            format!("{} {} {} {probe}", line["kind"], line["step"], line["loss"])
        };
        lines.map(brief).collect()
    };
    assert_eq!(losses(&straight), losses(&halves));
    assert!(losses(&halves)[8].contains("\"routing_fluctuation\":"), "{:?}", losses(&halves));
    let said = place.train(&["--out", &halves]);
    refused(&said, 1, &["there is a run already; --resume goes on with it"]);
}

#[test]
fn bad_recipes_name_the_key() {
    let place = Place::new();
    let cases: &[(&str, &[&str])] = &[
        ("train.stepz=1", &["tiny.toml: train", "unknown field `stepz`", "`steps`"]),
        ("router.name=swithc", &["router.name: unknown router `swithc`", "switch"]),
        ("router.top_k=9", &["router.top_k: 9 is outside 1..=4 (experts)"]),
        ("router.topk=2", &["router.topk: unknown key", "top_k"]),
        (
            "router={ name = 'token-graph', preset = 'given' }",
            &["router.graph: no block hands in a graph"],
        ),
        (
            "router={ name = 'token-graph', preset = 'attention', pool = 'single', head = 2 }",
            &["router.head: 2 is out of range 0..2 (model.heads)"],
        ),
        ("router.capacity=nan", &["router.capacity: nan and inf are no settings"]),
        ("router.preset=olmo", &["router.preset: unknown preset `olmo`", "olmoe"]),
        ("model.heads=3", &["model.heads: 3 does not divide width 8"]),
        ("train.lr=-1", &["train.lr: -1 must be finite and at least 0"]),
        ("train.sequence=9", &["train.sequence: 9 exceeds model.context = 8"]),
        ("capacity.factor=0", &["capacity.factor: 0 must be finite and above 0"]),
        ("capacity.order=arrival", &["capacity: needs one of `factor` and `rows`"]),
        ("data.tokenizer=wrod", &["data.tokenizer", "wrod", "word"]),
        ("train.steps=many", &["train.steps", "many"]),
    ];
    for (set, parts) in cases {
        let said = place.train(&["--out", &show(&place.path("never")), "--set", set]);
        refused(&said, 1, parts);
        assert!(!place.path("never").exists(), "{set} left a directory");
    }
    refused(&place.train(&["--set", "steps"]), 1, &["--set steps: expected key=value"]);
}

#[test]
fn parts_that_would_do_nothing_are_refused_with_the_reason() {
    let place = Place::new();
    let cases: &[(&str, &str, &str)] = &[
        ("dense", "capacity.factor=1.25", "capacity: has no meaning beside `dense`: its only"),
        ("soft-moe", "capacity.rows=4", "its slots are its capacity"),
        (
            "expert-choice",
            "losses.balance=0.1",
            "losses.balance: has no meaning beside this router",
        ),
        ("hash", "losses.z=0.1", "no gradient reaches it"),
        ("us-moe", "losses.importance=0.1", "tokens do not each choose"),
        ("smoe", "losses.z=-1", "losses.z: -1 must be finite and at least 0"),
        ("smoe", "losses.zz=1", "unknown field `zz`"),
    ];
    for (router, set, reason) in cases {
        let router = format!("router={router}");
        let out = show(&place.path("never"));
        let said = place.train(&["--out", &out, "--set", &router, "--set", set]);
        refused(&said, 1, &[reason]);
    }
    let out = show(&place.path("run"));
    let sets = ["capacity={ factor = 1.25, order = 'batch-priority' }", "losses.z=0.001"];
    let said = place.train(&["--out", &out, "--set", sets[0], "--set", sets[1]]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(place.text("run/metrics.jsonl").contains("layer0/z"));
    assert!(place.text("run/recipe.toml").contains("batch-priority"));
}

#[test]
fn bad_data_names_the_file() {
    let place = Place::new();
    let with = |data: &str, more: &str| {
        let source = format!("data.source='{data}'");
        place.train(&["--out", &show(&place.path("out")), "--set", &source, "--set", more])
    };
    refused(&with("no-such-file.txt", "seed=0"), 1, &["data.source", "no-such-file.txt", "sotu"]);
    fs::write(place.path("empty.txt"), "").unwrap();
    refused(&with(&show(&place.path("empty.txt")), "seed=0"), 1, &["data.source", "empty.txt"]);
    let mut bytes = "some words\n".repeat(100).into_bytes();
    bytes[15] = 0xff;
    fs::write(place.path("latin.txt"), bytes).unwrap();
    let latin = show(&place.path("latin.txt"));
    refused(
        &with(&latin, "data.tokenizer=word"),
        1,
        &["data.tokenizer", "latin.txt", "15", "byte"],
    );
    let said = with(&latin, "train.steps=1");
    assert_eq!(said.code, 0, "byte mode takes any bytes: {}", said.err);
}

/// V-MoE changes k and C of a trained model (arXiv 2106.05974, section 5): the experts stay as they are.
#[test]
fn a_trained_model_is_evaluated_with_other_choices_and_room() {
    let place = Place::new();
    let out = show(&place.path("run"));
    assert_eq!(place.train(&["--out", &out, "--set", "router=v-moe:paper_bpr"]).code, 0);
    let loss = |sets: &[&str]| loss_under(&out, sets);
    let as_trained = loss(&[]);
    assert_eq!(as_trained, loss(&["router.top_k=2"]));
    assert_ne!(as_trained, loss(&["router.top_k=1"]));
    assert_ne!(as_trained, loss(&["router.top_k=1", "capacity.factor=0.5"]));
}

/// A learning rate that makes everything worse: the best evaluation is the first.
#[test]
fn any_checkpoint_of_a_run_is_evaluated() {
    let place = Place::new();
    let (kept, lost) = (show(&place.path("kept")), show(&place.path("lost")));
    let worse = ["--set", "train.lr=50", "--set", "train.keep_last=1", "--set"];
    let train =
        |out, keep| assert_eq!(place.train(&[&worse[..], &[keep, "--out", out]].concat()).code, 0);
    train(&kept, "train.keep_best=true");
    train(&lost, "train.keep_best=false");
    let eval = |out: &str, which: &str| moe(&["eval", out, "--json", "--checkpoint", which]);
    let found = |which: &str| {
        let line = evaluated(&eval(&kept, which));
        (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())
    };
    assert_eq!((found("best").0, found("newest").0), (0, 6));
    assert!(found("best").1 < found("newest").1);
    assert_eq!((found("6"), found("0")), (found("newest"), found("best")));
    refused(&eval(&kept, "4"), 1, &["no checkpoint of step 4", "there are 0, 6"]);
    refused(
        &eval(&lost, "best"),
        1,
        &["no checkpoint of step 0", "train.keep_best", "there are 6"],
    );
    refused(&eval(&lost, "first"), 1, &["--checkpoint", "`newest`, `best`"]);
}

/// The validation text is the same, and so is the loss, though the other training text has another vocabulary of as
/// many words.
#[test]
fn a_trained_model_reads_other_text_with_its_own_vocabulary() {
    let place = Place::new();
    let corpus = |name: &str, train: &str| {
        fs::create_dir(place.path(name)).unwrap();
        for (split, text) in [("train", train), ("valid", "a c b b c a "), ("test", "c d e ")] {
            let file = place.path(name).join(format!("wiki.{split}.tokens"));
            fs::write(file, text.repeat(20)).unwrap();
        }
        format!("data.source={}", show(&place.path(name)))
    };
    let (own, other) = (corpus("own", "a b b c c c "), corpus("other", "c b b a a a "));
    for kind in ["{kind='word'}", "{kind='train-bpe',vocab=260}"] {
        let out = show(&place.path(&kind[7..11]));
        let tokenizer = format!("data.tokenizer={kind}");
        assert_eq!(place.train(&["--out", &out, "--set", &own, "--set", &tokenizer]).code, 0);
        let loss = |sets: &[&str]| loss_under(&out, sets);
        assert_eq!(loss(&[]), loss(&[&other]), "{kind}");
        let said = moe(&["eval", &out, "--set", "data.tokenizer=byte"]);
        refused(&said, 1, &["data.tokenizer", "its own tokeniser"]);
    }
}

/// VQMoE is pre-trained with two experts a token and serves with one of them.
#[test]
fn a_pretrained_codebook_serves_alone() {
    let place = Place::new();
    let out = show(&place.path("run"));
    assert_eq!(place.train(&["--out", &out, "--set", "router=vq-moe:paper"]).code, 0);
    let eval = |set: &str| moe(&["eval", &out, "--json", "--set", set]);
    let loss = |set: &str| {
        let said = eval(set);
        assert_eq!(said.code, 0, "{}", said.err);
        let line: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        line["loss"].as_f64().unwrap()
    };
    let alone = loss("router.mode=discrete");
    assert_eq!(alone, loss("router=vq-moe:paper_finetune"));
    assert_ne!(alone, loss("router.mode=pretrain"));
    // Nothing is left out in silence: neither codes of another number nor a norm.
    let misfit = "layers.1.router.codebook is F32 [16, 8], expected F32 [8, 8]";
    refused(&eval("router.codes=8"), 2, &["does not fit", misfit]);
    let missing = "missing tensor model.layers.1.router.ln_weight";
    refused(&eval("router.ln_out=true"), 2, &["does not fit", missing]);
}

#[test]
fn a_damaged_checkpoint_is_a_failure_that_names_the_file() {
    let place = Place::new();
    let out = show(&place.path("run"));
    assert_eq!(place.train(&["--out", &out]).code, 0);
    let file = place.path("run/checkpoints/step-000006/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(&moe(&["eval", &out]), 2, &["model.safetensors", "damaged", "BLAKE3"]);
    refused(&moe(&["eval", &show(&place.path("nowhere"))]), 1, &["no run here"]);
}

#[test]
fn a_comparison_is_complete_continues_and_refuses_other_settings() {
    let place = Place::new();
    let out = show(&place.path("cmp"));
    let data = show(&place.path("text.txt"));
    let small = [
        "--set",
        "model.width=8",
        "--set",
        "model.heads=2",
        "--set",
        "model.context=8",
        "--set",
        "model.layers=2",
        "--set",
        "model.active_hidden=16",
        "--set",
        "train.sequence=8",
        "--set",
        "train.batch=2",
        "--set",
        "train.eval_batches=1",
        "--set",
        "train.warmup=1",
    ];
    let compare = |steps: &str, more: &[&str]| {
        let base = [
            "compare",
            "--routers",
            "dense,smoe:plain",
            "--seeds",
            "2",
            "--data",
            &data,
            "--out",
            &out,
        ];
        moe(&[&base, &small[..], &["--set", steps], more].concat())
    };
    let said = compare("train.steps=3", &[]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("smoe:plain") && said.out.contains("no verdict"), "{}", said.out);
    let results: serde_json::Value = serde_json::from_str(&place.text("cmp/results.json")).unwrap();
    assert_eq!(results["rows"].as_array().unwrap().len(), 4);
    assert!(
        results["rows"].as_array().unwrap().iter().all(|row| row["metrics"]["valid_loss"].is_f64())
    );
    assert!(place.text("cmp/report.html").contains("</html>"));
    assert!(place.text("cmp/results.csv").contains("smoe:plain,1,valid_loss,"));
    assert!(place.text("cmp/curves.csv").contains("dense,0,train_loss,3,"));
    assert!(place.text("cmp/results.md").contains("| smoe:plain"));
    let parquet = fs::read(place.path("cmp/results.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));

    // Finished runs are kept: nothing is trained again.
    let log = place.path("cmp/runs/dense-s0/metrics.jsonl");
    let before = fs::metadata(&log).unwrap().modified().unwrap();
    assert_eq!(compare("train.steps=3", &["--json"]).code, 0);
    assert_eq!(fs::metadata(&log).unwrap().modified().unwrap(), before);
    refused(&compare("train.steps=4", &[]), 1, &["was trained with other settings"]);

    fs::remove_file(place.path("cmp/report.html")).unwrap();
    assert_eq!(moe(&["report", &out]).code, 0);
    assert!(place.path("cmp/report.html").exists());
}

#[test]
fn a_run_that_fails_is_a_row_and_exit_code_two() {
    let place = Place::new();
    let out = show(&place.path("cmp"));
    let data = show(&place.path("text.txt"));
    let said = moe(&[
        "compare",
        "--routers",
        "dense,smoe",
        "--seeds",
        "1",
        "--data",
        &data,
        "--out",
        &out,
        "--set",
        "train.steps=30",
        "--set",
        "train.lr=1e30",
        "--set",
        "train.sequence=8",
        "--set",
        "train.batch=2",
        "--set",
        "train.eval_batches=1",
    ]);
    refused(&said, 2, &["runs failed; see the table"]);
    let results: serde_json::Value = serde_json::from_str(&place.text("cmp/results.json")).unwrap();
    let error = results["rows"][0]["error"].as_str().unwrap();
    assert!(error.contains("step ") && error.contains("lower train.lr"), "{error}");
}

#[test]
fn flags_that_make_no_sense_are_misuse() {
    refused(
        &moe(&["compare", "--routers", "nope"]),
        1,
        &["unknown router `nope`", "expert-choice"],
    );
    refused(&moe(&["compare", "--preset", "huge"]), 1, &["--preset huge", "quick", "standard"]);
    refused(&moe(&["compare", "--routers", "dense,dense"]), 1, &["dense is there twice"]);
    refused(&moe(&["train"]), 1, &["RECIPE"]);
    refused(&moe(&["papers", "nope"]), 1, &["unknown router `nope`"]);
    refused(&moe(&["report", "/nowhere"]), 1, &["/nowhere/results.json", "no comparison"]);
    let place = Place::new();
    refused(&place.train(&["--device", "cuda:7"]), 1, &["cuda:7", "moe doctor"]);
    refused(&place.train(&["--device", "tpu"]), 1, &["cpu", "cuda:N"]);
}

#[test]
fn papers_and_doctor_speak() {
    let said = moe(&["papers"]);
    assert!(said.code == 0 && said.out.contains("x-moe") && said.out.contains("expert-choice"));
    let said = moe(&["papers", "v-moe"]);
    assert!(said.out.contains("2106.05974") && said.out.contains("paper_bpr"), "{}", said.out);
    let said = moe(&["doctor"]);
    assert!(said.code == 0 && said.out.contains("verdict      fine"), "{}{}", said.out, said.err);
}

/// The estimate of memory is within its factor of what a training process really needed.
#[test]
fn a_dry_run_estimates_the_memory_of_the_run() {
    let place = Place::new();
    let sets = [
        "model.width=256",
        "model.active_hidden=1024",
        "model.experts=16",
        "model.context=128",
        "train.sequence=128",
        "train.batch=16",
        "train.steps=2",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let said = place.train(&[&["--dry-run", "--json"], &sets[..]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let found: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let out = show(&place.path("run"));
    let said = place.train(&[&["--out", &out], &sets[..]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let measured: serde_json::Value = serde_json::from_str(&place.text("run/result.json")).unwrap();
    for count in ["params_total", "params_active"] {
        assert_eq!(found[count], measured[count], "{count}");
    }
    let peak = measured["peak_memory_bytes"].as_f64().unwrap();
    let estimate = found["memory_bytes"]["total"].as_f64().unwrap();
    let within = 1.0 / moe_bench::estimate::FACTOR..moe_bench::estimate::FACTOR;
    assert!(within.contains(&(peak / estimate)), "{peak} measured, {estimate} estimated: {found}");
}

#[test]
fn a_dry_run_builds_nothing_and_prints_the_resolved_recipe() {
    let place = Place::new();
    let out = show(&place.path("never"));
    let huge = ["model.width=65536", "model.active_hidden=262144", "model.experts=1024"];
    let huge: Vec<&str> = huge.iter().flat_map(|set| ["--set", set]).collect();
    let said = place.train(&[&["--dry-run", "--out", &out], &huge[..]].concat());
    assert_eq!(said.code, 0, "{}", said.err);
    for part in ["expert_hidden = 131072", "parameters ", "TiB", "FLOPs per step of 16 tokens"] {
        assert!(said.out.contains(part), "expected `{part}` in: {}", said.out);
    }
    assert!(!place.path("never").exists());
    refused(&place.train(&["--json"]), 1, &["--dry-run"]);
}

/// Another program takes its turns; what it says of itself is believed, and where it lacks something it is named.
#[test]
fn another_program_is_timed_in_turn() {
    let place = Place::new();
    let script = "#!/bin/sh\ncase $1,$3,$4 in *'\"tokens\":4'*,forward,1) ;; *) exit 3;; esac\n\
        [ $2 = f32 ] || { echo '{\"missing\": \"bf16\"}'; exit; }\n\
        echo '{\"ready\": \"it 1.0\"}'; while read _; do echo '{\"seconds\": 0.25}'; done\n";
    let path = place.path("it");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let program = format!("it={}", show(&path));
    let size = ["speed", "--sizes", "4/8/8/2/1", "--pass", "forward", "--dtype", "f32,bf16"];
    let said =
        moe(&[&size[..], &["--seconds", "0", "--threads", "1", "--json", "--program", &program]]
            .concat());
    assert_eq!(said.code, 0, "{}", said.err);
    let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let times: Vec<_> =
        rows.iter().filter(|row| row["impl"] == "it").map(|row| &row["ms"]).collect();
    assert_eq!(times, [&serde_json::json!(250.0)]);
    assert_eq!(report["missing"], serde_json::json!([{"peer": "it", "what": "bf16"}]));
    let said = moe(&[&size[..], &["--program", "it=/nowhere/peer"]].concat());
    refused(&said, 1, &["it: /nowhere/peer cannot be started"]);
    let said = moe(&["speed", "--program", "it"]);
    refused(&said, 1, &["--program", "expected NAME=FILE"]);
}
