//! Bad input, router by router, and the error that it gets: word for word in `refused.txt`, which is
//! read beside this file. No bad input panics, none is taken without a word.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts.

use crate::rig::{Both, Given, PHASES, Rig, preset};
use moe_core::{CapacityPolicy, Limit, RouteError};
use moe_routers::{Paper, Param, Phase, RouteCx, SeededNoise, Settings, paper, routers};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const EXPERTS: usize = 4;
const TOKENS: i64 = 12;

/// Settings outside their range that are more than a negative number, and settings that only a layer
/// can refuse.
fn of_their_own() -> Vec<(&'static str, Value)> {
    vec![
        ("smoe", json!({"scale": 0})),
        ("smoe", json!({"capacity": 0})),
        ("gshard", json!({"capacity_factor": 0})),
        ("gshard", json!({"capacity": 0})),
        ("switch", json!({"capacity_factor": 0})),
        ("switch", json!({"capacity_factor": 1e-9, "capacity_rule": "floor", "min_capacity": 0})),
        ("base", json!({"gain": 0})),
        ("hash", json!({"vocab": 0})),
        ("hash", json!({"mode": "balanced"})),
        ("hash", json!({"mode": "balanced", "frequencies": [1, -1]})),
        ("hash", json!({"mode": "table"})),
        ("hash", json!({"mode": "table", "table": [0, 4]})),
        ("hash", json!({"mode": "table", "table": [0, 1]})),
        ("v-moe", json!({"capacity_factor": 1e-9})),
        ("v-moe", json!({"capacity": 0})),
        ("sinkhorn", json!({"max_iters": 0})),
        ("expert-choice", json!({"capacity_factor": 0})),
        ("expert-choice", json!({"capacity_factor": 0.1})),
        ("expert-choice", json!({"capacity": 0})),
        ("stable-moe", json!({"vocab": 0})),
        ("stable-moe", json!({"capacity": 0})),
        ("stable-moe", json!({"word_width": 0})),
        ("stable-moe", json!({"vocab": 2})),
        ("x-moe", json!({"temperature": 0})),
        ("x-moe", json!({"theta": -800})),
        ("x-moe", json!({"width": 0})),
        ("x-moe", json!({"tau0": 0})),
        ("x-moe", json!({"capacity": 0})),
        ("smoe-dropout", json!({"k_min": 3, "k_max": 2})),
        ("smoe-dropout", json!({"k_max": 5})),
        ("smoe-dropout", json!({"k_eval": 0})),
        ("smoe-dropout", json!({"schedule": "exp_increase", "steps_total": 299})),
        ("soft-moe", json!({"slots_per_expert": 0})),
        ("us-moe", json!({"alpha": 1.5})),
        ("us-moe", json!({"preset": "reference", "top_k": 1.5})),
        ("ssr", json!({"xi": 0})),
        ("ssr", json!({"p": 1.5})),
        ("ssr", json!({"max_iters": 0})),
        ("ac-moe", json!({"num_clusters": 2})),
        ("ac-moe", json!({"num_clusters": 65537})),
        ("ac-moe", json!({"capacity_factor": 0.01})),
        ("token-graph", json!({"tau": 0})),
        ("token-graph", json!({"self_edge": 1.5})),
        ("token-graph", json!({"preset": "attention", "pool": "single", "head": 2})),
        ("token-graph", json!({"preset": "attention", "pool": "weighted"})),
        ("token-graph", json!({"preset": "attention", "pool": "posterior"})),
        ("deepseek-v3", json!({"n_groups": 3})),
        ("deepseek-v3", json!({"topk_groups": 2})),
        ("deepseek-v3", json!({"n_groups": 4, "topk_groups": 1})),
        ("deepseek-v3", json!({"group_score_k": 0})),
        ("deepseek-v3", json!({"sequence_length": 5})),
    ]
}

/// The settings of `paper`'s first preset, or of the one that `given` names, with `given` over them.
fn with(paper: &Paper, given: &Value) -> Settings {
    let given = given.as_object().expect("a table");
    let name = given.get("preset").and_then(Value::as_str).unwrap_or(paper.presets[0]);
    preset(paper, name).into_iter().chain(given.clone()).collect()
}

fn config_error(paper: &Paper, settings: &Settings) -> Option<String> {
    let checked = paper.router(settings).and_then(|config| config.check(EXPERTS));
    checked.err().map(|error| error.to_string())
}

/// What both sides say, if they do not both take it; once where they agree.
fn said(both: &Both) -> Option<String> {
    let torch = both.torch.as_ref().err().map(ToString::to_string);
    let host = both.host.as_ref().err().map(ToString::to_string);
    match (torch, host) {
        (None, None) => None,
        (torch, host) if torch == host => torch,
        (torch, host) => Some(format!("{torch:?}, the reference {host:?}")),
    }
}

/// The refusal of these settings, before or in a layer; the first phase that refuses speaks.
fn refusal(paper: &Paper, settings: &Settings) -> Option<String> {
    config_error(paper, settings).or_else(|| {
        let rig = Rig::new(paper, settings, EXPERTS, Kind::Double).expect("checked");
        let given = Given::all(TOKENS, Kind::Double);
        PHASES.into_iter().find_map(|phase| said(&rig.run(&rig.tokens(TOKENS), &given, phase)))
    })
}

fn line(id: &str, what: &str, error: Option<String>) -> String {
    format!("{id} | {what} | {}", error.unwrap_or_else(|| "taken".into()))
}

/// Every number of a router's settings as -1, and numbers of choices that there are not.
fn numbers(paper: &Paper) -> Vec<String> {
    let keys = paper.router(&with(paper, &json!({}))).expect("a preset").settings();
    let number = |value: &Value| value.is_number() || value.is_null();
    let keys: Vec<&str> = keys.iter().filter(|(_, v)| number(v)).map(|(k, _)| k.as_str()).collect();
    let negative = keys.iter().map(|key| (*key, -1));
    let choices = [("top_k", 0), ("top_k", 5)].into_iter().filter(|(key, _)| keys.contains(key));
    let refused = negative.chain(choices).map(|(key, value)| {
        let settings = with(paper, &json!({ key: value }));
        line(paper.id, &format!("{key} = {value}"), config_error(paper, &settings))
    });
    refused.collect()
}

/// What a router needs and is not handed, or is handed wrong.
fn contexts(paper: &Paper, name: &str) -> Vec<String> {
    let settings = preset(paper, name);
    let rig = Rig::new(paper, &settings, EXPERTS, Kind::Double);
    let Ok(rig) = rig else { return Vec::new() };
    let all = || Given::all(TOKENS, Kind::Double);
    let beyond_gt = all().token_gt.map(|token_gt| token_gt + 1000);
    let short = Given::all(3, Kind::Double).before_gtd;
    let cases = [
        ("no token ids", Given { token_gt: None, ..all() }),
        ("token ids from 1000", Given { token_gt: beyond_gt, ..all() }),
        ("no attention", Given { attention_gmtt: None, ..all() }),
        ("previous routing of 3 tokens", Given { before_gtd: short, ..all() }),
    ];
    let refused = cases.into_iter().filter_map(|(what, given)| {
        let error = said(&rig.run(&rig.tokens(TOKENS), &given, Phase::Eval));
        error.map(|error| line(&format!("{}:{name}", paper.id), what, Some(error)))
    });
    refused.collect()
}

/// Written by the routers, line by line: the text to compare with.
fn everything() -> Vec<String> {
    let own = of_their_own().into_iter().map(|(id, given)| {
        let paper = paper(id).expect("registered");
        line(id, &given.to_string(), refusal(paper, &with(paper, &given)))
    });
    let contexts = routers().flat_map(|p| p.presets.iter().flat_map(move |name| contexts(p, name)));
    routers().flat_map(numbers).chain(own).chain(contexts).collect()
}

#[test]
fn word_for_word() {
    let (got, want) = (everything(), include_str!("refused.txt"));
    let wrong: Vec<_> = got.iter().filter(|got| !want.lines().any(|want| want == *got)).collect();
    assert!(wrong.is_empty(), "not in refused.txt:\n{wrong:#?}");
    assert_eq!(got.len(), want.lines().count(), "refused.txt has lines that nobody says");
}

/// Unknown names and values of another type, for every router and every key.
#[test]
fn unknown_names_and_wrong_types() {
    for paper in routers() {
        let refused = |given: Value| config_error(paper, &with(paper, &given)).unwrap_or_default();
        let mut settings = with(paper, &json!({}));
        settings.insert("preset".into(), "nonesuch".into());
        let want = format!(
            "preset: unknown preset `nonesuch`; choose one of {}",
            paper.presets.join(", ")
        );
        assert_eq!(config_error(paper, &settings), Some(want));
        settings.insert("preset".into(), 3.into());
        assert_eq!(
            config_error(paper, &settings).as_deref(),
            Some("preset: expected a name, found 3")
        );
        assert!(refused(json!({"nonesuch": 1})).starts_with("nonesuch: unknown key, "));
        let keys = paper.router(&with(paper, &json!({}))).unwrap().settings();
        for (key, value) in &keys {
            let wrong = if value.is_string() { json!(1) } else { json!("nonesuch") };
            let error = refused(json!({ key.as_str(): wrong }));
            assert!(error.starts_with(&format!("{key}: ")), "{} {key}: {error:?}", paper.id);
        }
    }
}

/// Tokens and parameters that are not finite, on both sides, whatever the router does with them.
#[test]
fn what_is_not_finite() {
    for (paper, name) in routers().flat_map(|p| p.presets.iter().map(move |s| (p, s))) {
        let Ok(rig) = Rig::new(paper, &preset(paper, name), EXPERTS, Kind::Double) else {
            continue;
        };
        for (phase, bad) in
            PHASES.into_iter().flat_map(|p| [f64::NAN, f64::INFINITY].map(|bad| (p, bad)))
        {
            let x_gtd = rig.tokens(TOKENS);
            let _ = x_gtd.get(0).get(2).get(1).fill_(bad);
            let both = rig.run(&x_gtd, &Given::all(TOKENS, Kind::Double), phase);
            let want = format!("tokens at (2, 1) is {bad}, not finite");
            assert_eq!(said(&both), Some(want), "{}:{name}", paper.id);
        }
    }
}

/// A parameter that is NaN shows in the logits, in every router whose logits read it. A code of VQMoE
/// that is NaN is never the nearest one, and nobody reads it.
#[test]
fn parameters_that_are_nan() {
    for paper in routers() {
        let Ok(rig) = Rig::new(paper, &with(paper, &json!({})), EXPERTS, Kind::Double) else {
            continue;
        };
        let read = rig.store.entries().iter().find(|p| !unread(&p.name)).map(share);
        let Some(first) = read else { continue };
        let _ = tch::no_grad(|| first.get(0).get(0).fill_(f64::NAN));
        let given = Given::all(TOKENS, Kind::Double);
        for phase in PHASES {
            let Both { torch, host } = rig.run(&rig.tokens(TOKENS), &given, phase);
            let error = torch.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.ends_with("is NaN, not finite"), "{}: {error:?}", paper.id);
            assert!(host.is_err(), "{}: the reference takes it", paper.id);
        }
    }
}

/// VQMoE's parameters that no logit reads.
fn unread(name: &str) -> bool {
    ["codebook", "gate_w", "gate_b"].contains(&name)
}

fn share(param: &Param) -> Tensor {
    param.tensor.shallow_clone()
}

/// A recipe's own room of no rows, for every router that a policy applies to.
#[test]
fn room_for_nobody() {
    let policy = CapacityPolicy { limit: Limit::Fixed(0), ..CapacityPolicy::default() };
    let without: Vec<&str> = routers()
        .filter(|paper| {
            let rig = Rig::new(paper, &with(paper, &json!({})), EXPERTS, Kind::Double).unwrap();
            let (noise, given) = (SeededNoise::eval(0, 0), Given::all(TOKENS, Kind::Double));
            let cx = RouteCx {
                capacity: Some(&policy),
                token_gt: given.token_gt.as_ref(),
                attention_gmtt: given.attention_gmtt.as_ref(),
                ..RouteCx::new(Phase::Eval, &noise)
            };
            let pass = |x_gtd: &Tensor, _: &_| x_gtd.shallow_clone();
            match rig.router.forward(&rig.tokens(TOKENS), &cx, &pass) {
                Err(RouteError::Capacity(error)) => {
                    assert_eq!(error.to_string(), "capacity must be at least 1, but comes to 0");
                    false
                }
                other => other.is_ok(),
            }
        })
        .map(|paper| paper.id)
        .collect();
    assert_eq!(without, ["dense", "expert-choice", "soft-moe", "us-moe"]);
}
