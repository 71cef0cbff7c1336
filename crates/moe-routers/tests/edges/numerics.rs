//! Numbers at the edge: every router and preset in both phases, in `f64`, `f32` and `bf16`, with one
//! expert, all experts, one token, fewer tokens than experts, zero rows, identical tokens, and logits of
//! +-1e4. Outputs, losses and gradients are finite and those of the `f64` reference, or both sides
//! refuse, and which ones do is a list below.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts.

use crate::rig::{Both, Given, PHASES, Rig, finite, preset, settings};
use moe_core::HostRouting;
use moe_routers::convert::to_host;
use moe_routers::tolerance::{relative_error, tolerance};
use moe_routers::{Paper, Phase, Routing, Settings, paper, routers};
use ndarray::Array2;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// Every refusal: router and preset, edge, what the reference says in `f64`.
const REFUSALS: &[(&str, &str)] = &[
    (
        "ac-moe:paper, identical tokens, evaluation",
        "dispersion plus eps is 0 in a cluster, and must be above 0",
    ),
    (
        "ac-moe:paper, identical tokens, training",
        "dispersion plus eps is 0 in a cluster, and must be above 0",
    ),
    (
        "ac-moe:paper, zero tokens, evaluation",
        "dispersion plus eps is 0 in a cluster, and must be above 0",
    ),
    (
        "ac-moe:paper, zero tokens, training",
        "dispersion plus eps is 0 in a cluster, and must be above 0",
    ),
    ("base:paper, T = 1, training", "scores has shape (1, 4), but (4, 4) was expected"),
    ("base:paper, T = 2, training", "scores has shape (2, 4), but (4, 4) was expected"),
    ("deepseek-v3:paper, E = 1", "n_groups: 8 does not divide 1 experts"),
    ("expert-choice:mesh, T = 1, evaluation", "capacity must be at least 1, but comes to 0"),
    ("expert-choice:mesh, T = 1, training", "capacity must be at least 1, but comes to 0"),
    ("expert-choice:paper, T = 1, evaluation", "capacity must be at least 1, but comes to 0"),
    ("expert-choice:paper, T = 1, training", "capacity must be at least 1, but comes to 0"),
    ("gshard:lingvo, E = 1", "top_k: two experts per token cannot be chosen among 1"),
    ("gshard:mesh, E = 1", "top_k: two experts per token cannot be chosen among 1"),
    ("gshard:paper, E = 1", "top_k: two experts per token cannot be chosen among 1"),
    ("sinkhorn:megatron, logits of 1e4, training", "exp of logits at (1, 1) is inf, not finite"),
    (
        "sinkhorn:megatron_top2, logits of 1e4, training",
        "exp of logits at (1, 1) is inf, not finite",
    ),
    ("smoe-dropout:compete_smoe, E = 1", "k_max: 2 is outside 1..=1 (experts)"),
];

/// Routers that balance by transport. For a single token every expert is wanted alike, so that rounding
/// decides which one it visits: nothing to compare.
const TIED: &[&str] = &["sinkhorn", "ssr"];

const EXPERTS: usize = 4;
/// For a preset that has eight groups of experts.
const MANY_EXPERTS: usize = 16;
const TOKENS: i64 = 12;

/// A layer at an edge.
struct Edge<'a> {
    name: &'static str,
    rig: &'a Rig,
    x_gtd: Tensor,
    /// Whether rounding of the tokens' products decides nothing, so that `f32` can be compared.
    compared: bool,
}

/// What held of a router, and what did not.
#[derive(Default)]
struct Findings {
    refusals: BTreeMap<String, String>,
    broken: Vec<String>,
}

/// `settings` with as many choices per token as there are experts, where that can be set.
fn all_chosen(paper: &Paper, settings: &Settings, experts: usize) -> Option<Settings> {
    let top_k = paper.router(settings).expect("a preset").settings().get("top_k").cloned()?;
    let all = if top_k.is_f64() { (experts as f64).into() } else { experts.into() };
    Some(
        settings
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .chain([("top_k".into(), all)])
            .collect(),
    )
}

/// The preset's settings and a number of experts of the test's size that they accept.
fn settled(paper: &Paper, settings: &Settings) -> (Settings, usize) {
    let fits = |settings: &Settings, experts: usize| {
        paper.router(settings).expect("a preset").check(experts).is_ok()
    };
    let all = all_chosen(paper, settings, EXPERTS).filter(|all| fits(all, EXPERTS));
    match [EXPERTS, MANY_EXPERTS].into_iter().find(|&e| fits(settings, e)) {
        Some(EXPERTS) => (settings.clone(), EXPERTS),
        // Presets of large models choose more experts than there are here.
        many => all.map_or((settings.clone(), many.unwrap_or(EXPERTS)), |all| (all, EXPERTS)),
    }
}

/// Every edge of tokens for a router as its preset has it.
fn token_edges(rig: &Rig) -> Vec<Edge<'_>> {
    let x_gtd = rig.tokens(TOKENS);
    let zero_row_gtd = x_gtd.copy();
    let _ = zero_row_gtd.narrow(1, 0, 1).zero_();
    let same_gtd = x_gtd.narrow(1, 0, 1).expand_as(&x_gtd).copy();
    let of = |name, x_gtd, compared| Edge { name, rig, x_gtd, compared };
    vec![
        of("plain", x_gtd.shallow_clone(), true),
        of("T = 1", rig.tokens(1), true),
        of("T = 2", rig.tokens(2), true),
        of("zero row", zero_row_gtd, true),
        of("zero tokens", x_gtd.zeros_like(), true),
        // A matrix product may round equal rows differently.
        of("identical tokens", same_gtd, false),
        // Probabilities underflow in `f32` and not in `f64`, and other experts tie.
        of("logits of 1e4", x_gtd * 1e4, false),
    ]
}

/// The tokens' edges of another number of experts or choices.
fn size_edges<'a>(name: [&'static str; 3], rig: &'a Rig) -> Vec<Edge<'a>> {
    let of = |(name, tokens)| Edge { name, rig, x_gtd: rig.tokens(tokens), compared: true };
    name.into_iter().zip([1, 2, TOKENS]).map(of).collect()
}

impl Findings {
    /// Holds every edge of one preset.
    fn preset(&mut self, paper: &Paper, name: &str, kind: Kind) {
        let (base, experts) = settled(paper, &preset(paper, name));
        let name = format!("{}:{name}", paper.id);
        let rig = Rig::new(paper, &base, experts, kind).expect("settled");
        token_edges(&rig).iter().for_each(|edge| self.edge(paper, &name, edge, kind));
        if let Some(all) = all_chosen(paper, &base, EXPERTS).filter(|_| experts == EXPERTS) {
            let rig = Rig::new(paper, &all, EXPERTS, kind).expect("k = E");
            let edges = size_edges(["k = E, T = 1", "k = E, T = 2", "k = E"], &rig);
            edges.iter().for_each(|edge| self.edge(paper, &name, edge, kind));
        }
        let one = all_chosen(paper, &base, 1).unwrap_or(base);
        match Rig::new(paper, &one, 1, kind) {
            Ok(rig) => {
                let edges = size_edges(["E = 1, T = 1", "E = 1, T = 2", "E = 1"], &rig);
                edges.iter().for_each(|edge| self.edge(paper, &name, edge, kind));
            }
            Err(error) => drop(self.refusals.insert(format!("{name}, E = 1"), error.to_string())),
        }
    }

    fn edge(&mut self, paper: &Paper, name: &str, edge: &Edge<'_>, kind: Kind) {
        let tied = TIED.contains(&paper.id) && edge.name == "T = 1";
        for phase in PHASES {
            let training = if phase == Phase::Eval { "evaluation" } else { "training" };
            let at = format!("{name}, {}, {training}", edge.name);
            let x_gtd = edge.x_gtd.detach().set_requires_grad(true);
            let given = Given::all(x_gtd.size()[1], kind);
            let Both { torch, host } = edge.rig.run(&x_gtd, &given, phase);
            let ((y_gtd, routing), host) = match (torch, host) {
                (Ok(torch), Ok(host)) => (torch, host),
                (Err(_), Err(host)) => {
                    self.refusals.insert(at, host.to_string());
                    continue;
                }
                (torch, host) => {
                    let (torch, host) = (torch.err(), host.err());
                    self.broken.push(format!("{at}: {torch:?}, the reference {host:?}"));
                    continue;
                }
            };
            self.broken.extend(
                not_finite(edge.rig, &x_gtd, (&y_gtd, &routing)).map(|w| format!("{at}: {w}")),
            );
            if !tied && (edge.compared || kind == Kind::Double) {
                self.broken.extend(errors(&y_gtd, &routing, &host).map(|e| format!("{at}: {e}")));
            }
        }
    }
}

/// What is not finite of a layer and its gradients.
fn not_finite(rig: &Rig, x_gtd: &Tensor, (y_gtd, routing): (&Tensor, &Routing)) -> Option<String> {
    let objective = y_gtd.square().sum(Kind::Double);
    let objective = routing.aux.iter().fold(objective, |sum, a| sum + &a.value);
    rig.store.zero_grad();
    objective.backward();
    let params = rig.store.entries();
    let grads = params.iter().map(|p| (p.name.as_str(), p.tensor.grad()));
    let grads = grads.chain([("tokens", x_gtd.grad())]).filter(|(_, grad)| grad.defined());
    let values =
        [("outputs", y_gtd), ("logits", &routing.logits_gte), ("gates", &routing.gate_gte)];
    let values = values.into_iter().map(|(name, value)| (name, value.shallow_clone()));
    let all = values.chain([("objective", objective.shallow_clone())]).chain(grads);
    let mut bad = all.filter(|(_, value)| !finite(value)).map(|(name, _)| name.to_owned());
    bad.next().or_else(|| routing.plan.to_host().err().map(|e| e.to_string()))
}

/// What differs from the reference by more than rounding: outputs by that of the tokens' kind, all else
/// by that of the kind in which routers compute.
fn errors(
    y_gtd: &Tensor,
    routing: &Routing,
    host: &[(Array2<f64>, HostRouting)],
) -> Option<String> {
    let narrow = tolerance(y_gtd.kind()).value;
    let wide = tolerance(routing.logits_gte.kind()).value;
    let per_group = host.iter().enumerate().flat_map(|(g, (y_td, want))| {
        let error = |got: &Tensor, want| matrix_error(&to_host(&got.get(g as i64)), want);
        [
            ("outputs", error(y_gtd, y_td), narrow),
            ("logits", error(&routing.logits_gte, &want.logits_te), wide),
            ("gates", error(&routing.gate_gte, &want.gate_te), wide),
        ]
    });
    let losses = routing.aux.iter().enumerate().map(|(i, aux)| {
        let mean = host.iter().map(|(_, want)| want.aux[i].1).sum::<f64>() / host.len() as f64;
        (aux.name, relative_error(aux.value.double_value(&[]), mean), wide)
    });
    let mut worse = per_group.chain(losses).filter(|(_, error, limit)| error > limit);
    worse.next().map(|(what, error, _)| format!("{what} differ by {error:.1e}"))
}

fn matrix_error(got: &Array2<f64>, want: &Array2<f64>) -> f64 {
    if got.dim() != want.dim() {
        return f64::INFINITY;
    }
    got.iter().zip(want).map(|(got, want)| relative_error(*got, *want)).fold(0.0, f64::max)
}

/// Every router and preset at every edge in this kind.
fn findings(kind: Kind) -> Findings {
    // The tensors are tiny: handing them to other threads takes longer than the arithmetic.
    tch::set_num_threads(1);
    let mut found = Findings::default();
    for (paper, name) in routers().flat_map(|p| p.presets.iter().map(move |s| (p, s))) {
        found.preset(paper, name, kind);
    }
    found
}

#[test]
fn in_f64() {
    let found = findings(Kind::Double);
    assert!(found.broken.is_empty(), "{:#?}", found.broken);
    let refusals: Vec<(&str, &str)> =
        found.refusals.iter().map(|(at, why)| (at.as_str(), why.as_str())).collect();
    assert_eq!(refusals, REFUSALS);
}

#[test]
fn in_f32() {
    let found = findings(Kind::Float);
    assert!(found.broken.is_empty(), "{:#?}", found.broken);
    assert!(found.refusals.keys().eq(REFUSALS.iter().map(|(at, _)| at)), "{:#?}", found.refusals);
}

/// Tokens, experts and store in `bf16`. The tokens' values are exact in `f64`, so that everything the
/// router computes must be within the rounding of `f32`.
#[test]
fn in_bf16() {
    let found = findings(Kind::BFloat16);
    assert!(found.broken.is_empty(), "{:#?}", found.broken);
    assert!(found.refusals.keys().eq(REFUSALS.iter().map(|(at, _)| at)), "{:#?}", found.refusals);
}

/// The statistics that `in_bf16` finds right are wide by kind as well, and so are router parameters.
#[test]
fn under_bf16_everything_but_the_output_is_f32() {
    for paper in routers() {
        let (base, experts) = settled(paper, &preset(paper, paper.presets[0]));
        let rig = Rig::new(paper, &base, experts, Kind::BFloat16).unwrap();
        let given = Given::all(TOKENS, Kind::BFloat16);
        let Both { torch, .. } = rig.run(&rig.tokens(TOKENS), &given, PHASES[0]);
        let (y_gtd, routing) = torch.unwrap();
        assert_eq!(y_gtd.kind(), Kind::BFloat16, "{}", paper.id);
        let aux = routing.aux.iter().map(|aux| aux.value.kind());
        let kinds = aux.chain([routing.logits_gte.kind(), routing.gate_gte.kind()]);
        assert!(kinds.into_iter().all(|kind| kind == Kind::Float), "{}", paper.id);
        let params = rig.store.entries();
        assert!(params.iter().all(|p| p.tensor.kind() == Kind::Float), "{}", paper.id);
    }
}

/// Temperatures at which every exponential under- or overflows, in both kinds.
#[test]
fn tiny_temperatures() {
    let cases: [(&str, Settings); 6] = [
        ("ssr", settings(&[("p", 1.0.into()), ("xi", 1e-6.into())])),
        ("ssr", settings(&[("preset", "ssr_l".into()), ("p", 1.0.into()), ("xi", 1e-6.into())])),
        ("x-moe", settings(&[("temperature", 1e-9.into())])),
        ("x-moe", settings(&[("tau0", 1e-9.into())])),
        ("x-moe", settings(&[("preset", "tutel".into()), ("theta", 700.0.into())])),
        ("token-graph", settings(&[("tau", 1e-9.into())])),
    ];
    for ((id, settings), kind) in
        cases.iter().flat_map(|case| [Kind::Double, Kind::Float].map(|kind| (case, kind)))
    {
        let rig = Rig::new(paper(id).unwrap(), settings, EXPERTS, kind).unwrap();
        for phase in PHASES {
            let x_gtd = rig.tokens(TOKENS).set_requires_grad(true);
            let Both { torch, host } = rig.run(&x_gtd, &Given::all(TOKENS, kind), phase);
            let (y_gtd, routing) = torch.unwrap();
            let bad = not_finite(&rig, &x_gtd, (&y_gtd, &routing));
            assert_eq!(bad, None, "{id} {settings:?} {kind:?} {phase:?}");
            assert!(host.is_ok(), "{id} {settings:?}: {host:?}");
        }
    }
}
