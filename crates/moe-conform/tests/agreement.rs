//! Both implementations of an operation agree on inputs that nobody chose: numbers from a small
//! generator, settings from a list.

use moe_conform::ops::value_of;
use moe_conform::{Args, Case, OPS};
use moe_routers::tolerance::{relative_error, tolerance};
use serde_json::{Value, json};

const TOKENS: usize = 12;
const WIDTH: usize = 3;
const EXPERTS: usize = 4;
const HIDDEN: usize = 2;

/// Numbers in -2..2, a function of the seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    }

    fn array(&mut self, shape: &[usize]) -> Value {
        match shape {
            [] => json!(self.next()),
            [n, rest @ ..] => (0..*n).map(|_| self.array(rest)).collect(),
        }
    }
}

/// An operation, settings, and tensors by name and shape; `flags` are 0 or 1, `draw` is in 0..1.
fn case(seed: u64, op: &str, config: &Value, tensors: &[(&str, &[usize])]) -> Case {
    let mut numbers = Numbers(seed);
    let tensors: serde_json::Map<String, Value> = tensors
        .iter()
        .map(|(name, shape)| {
            let value = match *name {
                "padding" | "valid" => {
                    (0..shape[0]).map(|i| json!(i32::from(i % 5 == 3))).collect()
                }
                "groups" => (0..shape[0]).map(|i| json!(i % 3)).collect(),
                "second_uniform" => {
                    (0..shape[0]).map(|_| json!(numbers.next().abs() / 2.0)).collect()
                }
                _ => numbers.array(shape),
            };
            ((*name).to_owned(), value)
        })
        .collect();
    let text = json!({ "id": op, "op": op, "config": config, "tensors": tensors, "expect": {}, "rtol": 0, "atol": 0, "source": "none" });
    Case::parse(&text.to_string()).expect("a case")
}

fn assert_agreement(case: &Case) {
    let op = OPS.iter().flat_map(|ops| ops.iter()).find(|op| op.name == case.op).expect("known");
    let args = |run: moe_conform::op::Run| {
        run(&Args::new(case, op, |_| false).unwrap()).unwrap_or_else(|e| panic!("{case:?}: {e}"))
    };
    let want = args(op.reference.expect("a reference"));
    let got = args(op.torch.expect("a trainable form"));
    for (name, _) in &want {
        let (got, want) = (value_of(&got, name), value_of(&want, name));
        assert_eq!(got.shape(), want.shape(), "{name} of {case:?}");
        for (got, want) in got.iter().zip(&want) {
            let error = relative_error(*got, *want);
            let limit = tolerance(tch::Kind::Double).value;
            assert!(error <= limit, "{name}: {got}, {want} of {case:?}");
        }
    }
}

const BANK: [(&str, &[usize]); 4] = [
    ("W1", &[EXPERTS, HIDDEN, WIDTH]),
    ("b1", &[EXPERTS, HIDDEN]),
    ("W2", &[EXPERTS, WIDTH, HIDDEN]),
    ("b2", &[EXPERTS, WIDTH]),
];

fn check(op: &str, configs: &[Value], tensors: &[(&str, &[usize])]) {
    for (seed, config) in configs.iter().enumerate() {
        assert_agreement(&case(seed as u64 + 1, op, config, tensors));
    }
}

#[test]
fn vmoe() {
    let layer: [(&str, &[usize]); 3] =
        [("x", &[TOKENS, WIDTH]), ("gate", &[EXPERTS, WIDTH]), ("noise", &[TOKENS, EXPERTS])];
    let configs = [
        json!({ "group_size": 4, "capacity_factor": 0.7 }),
        json!({ "preset": "paper_bpr", "capacity": 2, "top_k": 3, "priority_score": "sum" }),
        json!({ "preset": "reference_bpr", "normalize": true, "capacity_factor": 0.5 }),
        json!({ "capacity_factor": null, "noise_std": 0 }),
    ];
    check("vmoe.layer", &configs, &[&layer[..], &BANK].concat());
    let losses = [
        json!({ "group_size": 3, "top_k": 3 }),
        json!({ "preset": "module_default", "gshard_weight": 0.5 }),
        json!({ "noise_std": 0 }),
    ];
    let tensors: [(&str, &[usize]); 2] =
        [("logits", &[TOKENS, EXPERTS]), ("noise", &[TOKENS, EXPERTS])];
    check("vmoe.aux_losses", &losses, &tensors);
}

#[test]
fn xmoe() {
    let tokens: [(&str, &[usize]); 6] = [
        ("x", &[TOKENS, WIDTH]),
        ("proj", &[2, WIDTH]),
        ("emb", &[EXPERTS, 2]),
        ("proj_bias", &[2]),
        ("padding", &[TOKENS]),
        ("second_uniform", &[TOKENS]),
    ];
    let configs = [
        json!({ "top_k": 3, "capacity": 3, "normalize_gates": "after_drop" }),
        json!({ "preset": "reference", "capacity": 2 }),
        json!({ "preset": "reference", "normalize_gates": "after_drop" }),
        json!({ "preset": "paper_sigmoid", "top_k": 2, "normalize_gates": "before_drop" }),
        json!({ "preset": "tutel", "theta": -1.0, "gate": "softmax_topk", "top_k": 2 }),
        json!({ "emb_rescale_norm": 0.3, "second_policy": "random", "top_k": 2 }),
    ];
    check("xmoe.route", &configs, &tokens);
    check("xmoe.layer", &configs, &[&tokens[..], &BANK].concat());
    check("xmoe.scores", &configs, &tokens[..4]);
    let losses = [
        json!({ "form": "count" }),
        json!({ "preset": "reference", "form": "count", "tau0": 0.5 }),
        json!({ "padding_mode": "reference", "alpha": 0.5 }),
    ];
    let scores: [(&str, &[usize]); 2] = [("scores", &[TOKENS, EXPERTS]), ("padding", &[TOKENS])];
    check("xmoe.balance_loss", &losses, &scores);
    let term: [(&str, &[usize]); 3] =
        [("h", &[WIDTH]), ("emb", &[EXPERTS, WIDTH]), ("f", &[WIDTH])];
    check("xmoe.collapse_term", &[json!({})], &term);
}

#[test]
fn usmoe() {
    let tokens: [(&str, &[usize]); 4] = [
        ("x", &[TOKENS, WIDTH]),
        ("router", &[EXPERTS, WIDTH]),
        ("groups", &[TOKENS]),
        ("valid", &[TOKENS]),
    ];
    let shared: [(&str, &[usize]); 3] = [
        ("shared_W1", &[HIDDEN, WIDTH]),
        ("shared_W2", &[WIDTH, HIDDEN]),
        ("shared_gate", &[WIDTH]),
    ];
    let configs = [
        json!({ "top_k": 1.3, "norm_topk_prob": true, "shared": "gated" }),
        json!({ "top_k": 1.3, "rounding": "ceil", "norm_topk_prob": true, "shared": "plain" }),
        json!({ "preset": "reference", "top_k": 3, "alpha": 0.9 }),
        json!({ "top_k": 0.01 }),
    ];
    check("usmoe.layer", &configs, &[&tokens[..], &shared, &BANK].concat());
    let alone = [json!({ "group": "token", "top_k": 3 }), json!({ "rounding": "round" })];
    check("usmoe.route", &alone, &[tokens[0], tokens[1], tokens[3]]);
    let whole = [json!({ "top_k": 3 }), json!({ "alpha": 1 })];
    check("usmoe.baselines", &whole, &tokens);
    check("usmoe.scores", &[json!({ "alpha": 0.2 })], &tokens[..2]);
}
