//! Logs as programs write them, and as they must not.

use super::*;

fn log(lines: &[&str]) -> Result<RoutingReport> {
    read(lines.join("\n").as_bytes(), "log", LogOptions::default(), false)
}

#[track_caller]
fn refused(lines: &[&str], want: &str) {
    assert_eq!(format!("{:#}", log(lines).unwrap_err()), want);
}

#[test]
fn one_token_a_line_and_a_batch_a_line_say_the_same() {
    let single = [
        r#"{"format": "moe.routing-log/1", "num_experts": 4}"#,
        r#"{"step": 0, "layer": 1, "token": 0, "experts": [2, 0], "weights": [0.75, 0.25]}"#,
        "",
        r#"{"step": 0, "layer": 1, "token": 1, "experts": [0, 3], "weights": [0.5, 0.5], "label": "x"}"#,
    ];
    let batch = [
        r#"{"format": "moe.routing-log/1", "num_experts": 4}"#,
        r#"{"step": 0, "layer": 1, "experts": [[2, 0], [0, 3]], "weights": [[0.75, 0.25], [0.5, 0.5]],
            "label": [null, "x"]}"#,
    ];
    let one = log(&single).unwrap();
    assert_eq!(one, log(&[batch[0], &batch[1].replace('\n', " ")]).unwrap());
    assert_eq!((one.experts, one.experts_given), (4, true));
    assert_eq!(one.layers[0].expert_usage, [0.5, 0.0, 0.25, 0.25]);
    assert_eq!(one.layers[0].router_confidence, Some(0.5));
}

/// Records as Megatron-LM's router tracer documents them: a batch a line, a block and a layer in it.
#[test]
fn megatron_traces_are_read() {
    let record = |step: u64, block: &str, indices: &str| {
        format!(
            r#"{{"step": {step}, "stage": "pre_dispatch", {block}, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": {indices}}}"#
        )
    };
    let decoder = r#""block": "decoder", "layer": 3"#;
    let mtp = r#""block": "mtp", "mtp_idx": 0, "layer": 3"#;
    let lines = [
        record(0, decoder, "[[1, 5], [0, 2]]"),
        record(0, mtp, "[[0, 1], [0, 1]]"),
        record(1, decoder, "[[1, 5], [0, 3]]"),
    ];
    let report = log(&lines.each_ref().map(String::as_str)).unwrap();
    let names: Vec<&str> = report.layers.iter().map(|l| l.layer.as_str()).collect();
    assert_eq!(names, ["3", "mtp0/3"]);
    assert_eq!(report.layers[0].routing_fluctuation_set, Some(0.5));
    // A mask has no order: nothing is said of first experts.
    assert_eq!(report.layers[0].routing_fluctuation, None);
    assert!(!report.experts_given && report.experts == 6);
}

#[test]
fn inputs_can_be_labels() {
    let line = r#"{"step": 0, "layer": 0, "experts": [[0], [1], [0]], "input": [7, 8, 7]}"#;
    let labelled = read(line.as_bytes(), "log", LogOptions::default(), true).unwrap();
    assert_eq!(labelled.layers[0].specialisation.unwrap().purity, 1.0);
    assert!(log(&[line]).unwrap().layers[0].specialisation.is_none());
}

#[test]
fn bad_lines_are_named() {
    let good = r#"{"step": 1, "layer": 0, "token": 0, "experts": [0]}"#;
    refused(&[], "log: no routing decisions, expected at least one");
    refused(
        &[good, r#"{"step": 1, "layer": 0}"#],
        "log line 2: `experts` is missing, expected step, layer and experts",
    );
    refused(
        &[good, r#"{"layer": 0, "experts": [0]}"#],
        "log line 2: `step` is missing, expected step, layer and experts",
    );
    refused(&[good, good], "log line 2: token: 0 is there twice in layer 0 of step 1");
    refused(
        &[good, "", r#"{"step": 0, "layer": 0, "experts": [0]}"#],
        "log line 3: step: 0 after 1, expected steps that do not fall",
    );
    refused(
        &[r#"{"step": 1, "layer": 0, "experts": ["a"]}"#],
        "log line 1: experts: expected a list of numbers, or a list of such lists, one for each token, at column 41",
    );
    refused(
        &[r#"{"step": 1, "layer": 0, "experts": [[0], [1]], "weights": [[1.0]]}"#],
        "log line 1: weights: 1 lists, expected 2 as of experts",
    );
    refused(
        &[r#"{"step": 1, "layer": 0, "experts": [[0], [1]], "token": [4]}"#],
        "log line 1: token: 1 values, expected one for each token",
    );
    refused(
        &[r#"{"step": 1, "layer": 0, "experts": [[0, 1], [1, 1]]}"#],
        "log line 1: row 1: experts: [1, 1], expected each expert once",
    );
    refused(
        &[r#"{"format": "other/1"}"#],
        "log line 1: format: \"other/1\", expected \"moe.routing-log/1\"",
    );
    refused(
        &[good, r#"{"format": "moe.routing-log/1"}"#],
        "log line 2: a header after the first decision, expected it on top",
    );
    let error = format!("{:#}", log(&[good, "half a li"]).unwrap_err());
    assert!(error.starts_with("log line 2: expected value"), "{error}");
    let error = format!("{:#}", log(&[&format!("{good} {good}")]).unwrap_err());
    assert!(error.starts_with("log line 1: trailing"), "{error}");
    assert!(
        format!("{:#}", log(&[r#"{"step": -1, "layer": 0, "experts": [0]}"#]).unwrap_err())
            .starts_with("log line 1: step: invalid value: integer `-1`")
    );
}

#[test]
fn the_table_and_the_page_hold_every_layer() {
    let lines = [
        r#"{"step": 0, "layer": 0, "experts": [[0], [1]]}"#,
        r#"{"step": 0, "layer": 7, "experts": [[0], []]}"#,
    ];
    let report = log(&lines).unwrap();
    let shown = table(&report);
    assert!(shown.contains("4 decisions, 2 layers, 2 experts (the largest index seen plus 1"));
    let row: Vec<&str> =
        shown.lines().find(|l| l.starts_with(" 7")).unwrap().split_whitespace().collect();
    // Load 1, 0: imbalance 2, deviation 1 over mean 1/2 … = 1, entropy 0, one dead, half left behind.
    assert_eq!(row[..7], ["7", "2", "2.000", "1.000", "0.000", "1", "50.000"]);
    let page = html("a <log>", &report);
    assert!(page.contains("Routing log a &lt;log&gt;") && page.contains("layer 1"));
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    roxmltree::Document::parse_with_options(&page, options).unwrap();
}
