//! What papers say their method does, as tests on paired seeds: the sign that a difference should have, and
//! whether it has it here.
//!
//! Where a claim was read stands in `says`: what is not marked `paper`, `abstract` or `table` was not checked
//! against the text. No claim is about the numbers of a paper, whose scale is another.

use crate::results::{Metrics, Results, Row};
use crate::summary::VERDICT_SEEDS;
use crate::verdict::{ALPHA, NOT_COMPARABLE};
use moe_core::stats::{Paired, PairedOptions, holm, smallest_p};
use moe_routers::PAPERS;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The sign that was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Below the baseline.
    Lower,
    /// Above it.
    Higher,
}

/// One promise.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The method, as comparisons name it.
    pub router: &'static str,
    /// What it is measured against.
    pub against: &'static str,
    /// The measure, as in `value`; [`UNDER`] and an attack for what that costs, as in
    /// `study::robustness`.
    pub measure: &'static str,
    /// The sign of method less baseline.
    pub expected: Expected,
    /// The claim in few words, with where it was read.
    pub says: &'static str,
}

const fn claim(
    (router, against): (&'static str, &'static str),
    measure: &'static str,
    expected: Expected,
    says: &'static str,
) -> Claim {
    Claim { router, against, measure, expected, says }
}

impl Claim {
    /// The paper's arXiv number.
    pub fn arxiv(&self) -> &'static str {
        let id = self.router.rsplit('+').next().unwrap_or(self.router);
        let id = id.split(':').next().unwrap_or(id);
        PAPERS.iter().find(|paper| paper.id == id).map_or("", |paper| paper.arxiv)
    }
}

use Expected::{Higher, Lower};

const X_MOE: (&str, &str) = ("x-moe", "smoe");
const STABLE: (&str, &str) = ("stable-moe", "smoe");
const AC_MOE: (&str, &str) = ("ac-moe", "smoe");
const MOMENTUM: (&str, &str) = ("smoe+momentum", "smoe");
const ADAM: (&str, &str) = ("smoe+momentum:adam_model", "smoe");
const S2_MOE: (&str, &str) = ("s2-moe", "smoe");
const VQ_MOE: (&str, &str) = ("vq-moe", "smoe");
const US_MOE: (&str, &str) = ("us-moe", "smoe");
const SIMILARITY: (&str, &str) = ("token-graph", "smoe");
const ATTENTION: (&str, &str) = ("token-graph:attention", "smoe");
const SSR: (&str, &str) = ("ssr", "smoe");
const SOFT: (&str, &str) = ("soft-moe", "v-moe");

/// Measures that begin so: validation or test loss under an attack at its highest level less that on the same
/// data clean.
pub const UNDER: &str = "loss under ";

/// The mean over all damages of images.
pub const CORRUPTIONS: &str = "corruptions";

/// Every claim that a comparison can look at.
pub const CLAIMS: &[Claim] = &[
    claim(X_MOE, "valid_loss", Lower, "lower validation perplexity than SMoE (its table)"),
    claim(X_MOE, "representation_collapse", Higher, "router inputs collapse less (its thesis)"),
    claim(
        X_MOE,
        "routing_fluctuation",
        Lower,
        "less fluctuation (measured by it; sign from its thesis)",
    ),
    claim(
        STABLE,
        "routing_fluctuation_end",
        Lower,
        "a distilled router ends fluctuation (its thesis)",
    ),
    claim(STABLE, "valid_loss", Lower, "lower perplexity than greedy routers (second-hand)"),
    claim(AC_MOE, "valid_loss", Lower, "better clean quality (paper)"),
    claim(AC_MOE, "half_loss", Lower, "faster convergence (paper)"),
    claim(
        AC_MOE,
        "cross_layer_instability",
        Lower,
        "steadier routes (measured by it; sign unverified)",
    ),
    claim(AC_MOE, "loss under word-swap", Lower, "better under attack (paper)"),
    claim(AC_MOE, "loss under corruptions", Lower, "better under attack (paper)"),
    claim(MOMENTUM, "loss under word-swap", Lower, "more robust (paper)"),
    claim(MOMENTUM, "loss under corruptions", Lower, "more robust (paper)"),
    claim(MOMENTUM, "valid_loss", Lower, "lower perplexity at little cost (second-hand)"),
    claim(ADAM, "valid_loss", Lower, "lower perplexity at little cost (second-hand)"),
    claim(
        S2_MOE,
        "representation_collapse",
        Higher,
        "learning with noise against collapse (abstract)",
    ),
    claim(S2_MOE, "expert_similarity_outputs", Lower, "experts less similar (abstract)"),
    claim(VQ_MOE, "routing_fluctuation", Lower, "codes make assignments consistent (paper)"),
    claim(
        VQ_MOE,
        "expert_similarity_outputs",
        Lower,
        "experts' outputs less alike (measured by its code)",
    ),
    claim(VQ_MOE, "valid_loss", Lower, "lower perplexity (second-hand)"),
    claim(
        VQ_MOE,
        "loss under word-swap",
        Lower,
        "more robust (abstract; how it was measured is unknown)",
    ),
    claim(US_MOE, "loss under insertion", Lower, "more robust to `AAA` put in (second-hand)"),
    claim(US_MOE, "valid_loss", Lower, "better than token choice (second-hand)"),
    claim(
        US_MOE,
        "representation_collapse",
        Higher,
        "less collapse (an argument, not measured by it)",
    ),
    claim(
        SIMILARITY,
        "routing_fluctuation_end",
        Lower,
        "routes change less late in training (paper)",
    ),
    claim(SIMILARITY, "loss under word-swap", Lower, "more robust (paper)"),
    claim(SIMILARITY, "gate_entropy", Lower, "lower entropy of expert selection (paper)"),
    claim(
        ATTENTION,
        "routing_fluctuation_end",
        Lower,
        "routes change less late in training (paper)",
    ),
    claim(ATTENTION, "gate_entropy", Lower, "lower entropy of expert selection (paper)"),
    claim(SSR, "half_loss", Lower, "faster training (abstract)"),
    claim(SSR, "valid_loss", Lower, "better accuracy (abstract)"),
    claim(
        SSR,
        "loss under word-swap",
        Lower,
        "more robust to damaged input (abstract; protocol unknown)",
    ),
    claim(SOFT, "valid_loss", Lower, "better than sparse routers at equal cost (unverified)"),
];

/// What a comparison says of a claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Seeds in which both were measured.
    pub pairs: usize,
    /// Method less baseline.
    pub paired: Paired,
    /// The p-value corrected over the claims that the comparison looked at.
    pub p_holm: f64,
    /// `held`, `opposite`, `not shown`, `no verdict` or `not comparable`.
    pub verdict: &'static str,
}

/// Every claim whose two sides a comparison has at least twice, with what was found. `under` says what an attack
/// costs a run.
pub fn findings(
    results: &Results,
    under: &dyn Fn(&Row, &str) -> Option<f64>,
) -> Vec<(&'static Claim, Finding)> {
    let measured = |claim: &'static Claim| {
        let differences = differences(results, under, claim);
        // The same draws for every claim: one more moves no other's interval.
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        let options = PairedOptions::default();
        let paired = Paired::of(&differences, options, &mut || generator.next_u64()).ok()?;
        Some((claim, paired))
    };
    let found: Vec<(&Claim, Paired)> = CLAIMS.iter().filter_map(measured).collect();
    let tested = |claim: &Claim| comparable(results, claim);
    let p: Vec<f64> = found.iter().filter(|(c, _)| tested(c)).map(|(_, paired)| paired.p).collect();
    let mut adjusted = holm(&p).expect("p-values are shares").into_iter();
    let finding = |(claim, paired): (&'static Claim, Paired)| {
        let tested = tested(claim);
        let p_holm = if tested { adjusted.next().expect("one each") } else { f64::NAN };
        let verdict =
            if tested { verdict(claim, &paired, p_holm, p.len()) } else { NOT_COMPARABLE };
        (claim, Finding { pairs: paired.differences.len(), paired, p_holm, verdict })
    };
    found.into_iter().map(finding).collect()
}

fn verdict(claim: &Claim, paired: &Paired, p_holm: f64, family: usize) -> &'static str {
    let pairs = paired.differences.len();
    let resamples = PairedOptions::default().resamples as u64;
    let hopeless = family as f64 * smallest_p(pairs, resamples) > ALPHA;
    let as_promised = (paired.mean < 0.0) == (claim.expected == Expected::Lower);
    match p_holm <= ALPHA {
        _ if pairs < VERDICT_SEEDS || hopeless => "no verdict",
        false => "not shown",
        true if as_promised => "held",
        true => "opposite",
    }
}

/// Whether the measure means the same for both: losses of routers that see what they predict do not.
fn comparable(results: &Results, claim: &Claim) -> bool {
    let blind = |router: &str| {
        let entry = results.summary.iter().find(|entry| entry.router == router);
        entry.is_some_and(|entry| entry.verdict == NOT_COMPARABLE)
    };
    let loss =
        matches!(claim.measure, "valid_loss" | "half_loss") || claim.measure.starts_with(UNDER);
    !(loss && (blind(claim.router) || blind(claim.against)))
}

/// Method less baseline at every seed that both have.
fn differences(
    results: &Results,
    under: &dyn Fn(&Row, &str) -> Option<f64>,
    claim: &Claim,
) -> Vec<f64> {
    let of = |router: &str, seed: u64| {
        let run = results.rows.iter().find(|row| row.router == router && row.seed == seed)?;
        match claim.measure.strip_prefix(UNDER) {
            Some(attack) => under(run, attack),
            None => value(run.metrics.as_ref()?, claim.measure),
        }
    };
    let seeds = results.rows.iter().filter(|row| row.router == claim.router).map(|row| row.seed);
    let pairs = seeds.filter_map(|seed| Some(of(claim.router, seed)? - of(claim.against, seed)?));
    pairs.filter(|difference| difference.is_finite()).collect()
}

/// A measure of one run: `half_loss` is the validation loss at the first evaluation in the second half of
/// training, the others are fields of [`Metrics`] and of its routing part.
fn value(metrics: &Metrics, measure: &str) -> Option<f64> {
    match measure {
        "valid_loss" => Some(metrics.valid_loss),
        "gate_entropy" => Some(metrics.gate_entropy),
        "half_loss" => {
            let last = metrics.valid_curve.last()?.0;
            metrics.valid_curve.iter().find(|(step, _)| 2 * step >= last).map(|point| point.1)
        }
        _ => {
            let scalars = metrics.routing.as_ref()?.scalars();
            scalars.into_iter().find(|(name, _)| *name == measure)?.1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::entered;
    use crate::probe::RoutingMetrics;
    use crate::report::fixture::from_rows;
    use moe_data::corrupt::TextAttack;

    fn row(router: &str, seed: u64, loss: f64, collapse: f64) -> Row {
        let routing =
            RoutingMetrics { representation_collapse: Some(collapse), ..RoutingMetrics::default() };
        let metrics = Metrics {
            valid_loss: loss,
            valid_curve: vec![(0, 9.0), (10, loss + 1.0), (20, loss)],
            routing: Some(routing),
            ..Metrics::default()
        };
        Row { router: router.into(), seed, metrics: Some(metrics), error: None }
    }

    /// Over eight seeds x-moe is lower in loss, as promised, and more collapsed, against the promise.
    #[test]
    fn claims_hold_or_do_not() {
        let noise = |seed: u64| 1e-3 * (seed % 3) as f64;
        let rows = (0..8).flat_map(|s| {
            [row("smoe", s, 2.0, 5.0), row("x-moe", s, 1.9 + noise(s), 4.0 + noise(s))]
        });
        let found = findings(&from_rows(rows.collect()), &|_, _| None);
        let brief: Vec<_> =
            found.iter().map(|(claim, f)| (claim.measure, f.pairs, f.verdict)).collect();
        let want = [("valid_loss", 8, "held"), ("representation_collapse", 8, "opposite")];
        assert_eq!(brief, want);
        assert!((found[0].1.p_holm - 2.0 * 2.0 / 256.0).abs() < 1e-12);
    }

    #[test]
    fn few_seeds_give_no_verdict_and_one_none_at_all() {
        let rows = |seeds: u64| {
            (0..seeds).flat_map(|s| [row("smoe", s, 2.0, 5.0), row("x-moe", s, 1.9, 4.0)]).collect()
        };
        let found = findings(&from_rows(rows(5)), &|_, _| None);
        assert!(found.iter().all(|(_, finding)| finding.verdict == "no verdict"));
        assert!(findings(&from_rows(rows(1)), &|_, _| None).is_empty());
    }

    /// What an attack costs comes from outside, and only where it was asked about.
    #[test]
    fn claims_under_attack() {
        let rows =
            (0..8).flat_map(|s| [row("smoe", s, 2.0, 5.0), row("smoe+momentum", s, 2.0, 5.0)]);
        let cost = |row: &Row, attack: &str| {
            let noise = 1e-3 * (row.seed % 3) as f64;
            (attack == "word-swap").then_some(if row.router == "smoe" { 0.1 } else { 0.05 + noise })
        };
        let found = findings(&from_rows(rows.collect()), &cost);
        let brief: Vec<_> = found.iter().map(|(claim, f)| (claim.measure, f.verdict)).collect();
        assert_eq!(brief, [("loss under word-swap", "held"), ("valid_loss", "not shown")]);
    }

    #[test]
    fn every_claim_is_about_a_method_and_a_measure_that_exist() {
        let mut known = entered();
        // Comparisons of images enter what text cannot.
        known.extend(PAPERS.iter().map(|paper| paper.id.to_owned()));
        let json = serde_json::to_value(RoutingMetrics::default()).unwrap();
        for claim in CLAIMS {
            for name in [claim.router, claim.against] {
                assert!(known.iter().any(|router| router == name), "{name}");
            }
            assert!(!claim.arxiv().is_empty(), "{}", claim.router);
            let own = ["valid_loss", "half_loss", "gate_entropy"].contains(&claim.measure);
            let attacks = TextAttack::ALL.map(TextAttack::name);
            let attack = claim.measure.strip_prefix(UNDER);
            let own = own || attack.is_some_and(|a| a == CORRUPTIONS || attacks.contains(&a));
            assert!(own || json.get(claim.measure).is_some(), "{}", claim.measure);
        }
        assert_eq!(value(row("a", 0, 1.0, 0.0).metrics.as_ref().unwrap(), "half_loss"), Some(2.0));
    }
}
