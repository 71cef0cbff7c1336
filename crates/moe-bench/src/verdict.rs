//! Every router against one reference, over seeds: what a test supports, and what it does not.
//!
//! Runs of one seed saw the same batches in the same order, so differences are taken seed by seed. All
//! routers against the reference in the validation loss are one family of tests, corrected by Holm.

use crate::results::{Judgement, Judgements, Row};
use crate::summary::{DENSE, VERDICT_SEEDS};
use moe_core::stats::{Paired, PairedOptions, holm, smallest_p};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Chance, per family, of calling any difference one that is none.
pub const ALPHA: f64 = 0.05;

/// The measure that earns verdicts.
const MEASURE: &str = "valid_loss";

/// Significantly lower loss than the reference.
pub const BETTER: &str = "better";
/// Significantly higher loss.
pub const WORSE: &str = "worse";
/// Tested, and no difference was shown.
pub const NO_DIFFERENCE: &str = "no difference";
/// Too few seeds for any claim, or runs that failed.
pub const NO_VERDICT: &str = "no verdict";
/// Its loss means something else: the router sees tokens it must predict.
pub const NOT_COMPARABLE: &str = "not comparable";
/// The router that the others are compared with.
pub const REFERENCE: &str = "reference";

/// The reference unless one was asked for: the plain sparse mixture that papers start from, else the
/// dense control, else the first router.
pub fn default_reference<'a>(routers: &[&'a str]) -> Option<&'a str> {
    let find = |name: &str| routers.iter().find(|router| **router == name);
    find("smoe").or_else(|| find(DENSE)).or(routers.first()).copied()
}

/// Compares every router with `reference`; `causal` says whose losses may be compared at all.
pub fn judge(rows: &[Row], reference: &str, causal: &dyn Fn(&str) -> bool) -> Judgements {
    let options = PairedOptions::default();
    let mut entries = Vec::new();
    for router in routers(rows).into_iter().filter(|router| *router != reference) {
        entries.extend(entry(rows, (router, reference), options));
    }
    let complete = |entry: &Judgement| {
        causal(&entry.router) && whole(rows, &entry.router) && whole(rows, reference)
    };
    let family: Vec<usize> = (0..entries.len()).filter(|&i| complete(&entries[i])).collect();
    let p: Vec<f64> = family.iter().map(|&i| entries[i].paired.p).collect();
    let adjusted = holm(&p).expect("p-values are shares");
    for (&index, p_holm) in family.iter().zip(adjusted) {
        let entry = &mut entries[index];
        entry.p_holm = Some(p_holm);
        entry.verdict = verdict(entry, p_holm, family.len(), options.resamples).into();
    }
    for entry in entries.iter_mut().filter(|entry| !causal(&entry.router)) {
        entry.verdict = NOT_COMPARABLE.into();
    }
    Judgements {
        reference: reference.into(),
        measure: MEASURE.into(),
        alpha: ALPHA,
        family: family.len(),
        resamples: options.resamples,
        entries,
    }
}

/// What a corrected p-value allows to say. Where not even the clearest outcome could be significant,
/// nothing was tested in earnest: that is no verdict rather than no difference.
fn verdict(entry: &Judgement, p_holm: f64, family: usize, resamples: usize) -> &'static str {
    let pairs = entry.seeds.len();
    let hopeless = family as f64 * smallest_p(pairs, resamples as u64) > ALPHA;
    match p_holm <= ALPHA {
        _ if pairs < VERDICT_SEEDS || hopeless => NO_VERDICT,
        false => NO_DIFFERENCE,
        true if entry.paired.mean < 0.0 => BETTER,
        true => WORSE,
    }
}

/// The verdict on `router`, or why there is none.
pub fn of(judgements: &Judgements, router: &str) -> String {
    if judgements.reference == router {
        return REFERENCE.into();
    }
    let entry = judgements.entries.iter().find(|entry| entry.router == router);
    entry.map_or_else(|| NO_VERDICT.into(), |entry| entry.verdict.clone())
}

/// Fewest seeds at which a family of `family` tests can find anything.
pub fn seeds_needed(family: usize) -> usize {
    let enough = |n: &usize| family as f64 * smallest_p(*n, u64::MAX - 1) <= ALPHA;
    (VERDICT_SEEDS..=64).find(enough).unwrap_or(64)
}

fn routers(rows: &[Row]) -> Vec<&str> {
    let mut routers: Vec<&str> = Vec::new();
    for row in rows {
        if !routers.contains(&row.router.as_str()) {
            routers.push(&row.router);
        }
    }
    routers
}

/// Whether every run of the router finished with a loss: the seeds that survive divergence flatter.
fn whole(rows: &[Row], router: &str) -> bool {
    rows.iter().filter(|row| row.router == router).all(|row| loss(row).is_some())
}

fn loss(row: &Row) -> Option<f64> {
    row.metrics.as_ref().map(|metrics| metrics.valid_loss).filter(|loss| loss.is_finite())
}

/// The differences over the seeds that both have; nothing for fewer than two of them.
fn entry(
    rows: &[Row],
    (router, reference): (&str, &str),
    options: PairedOptions,
) -> Option<Judgement> {
    let partner = |row: &Row| rows.iter().find(|r| r.router == reference && r.seed == row.seed);
    let pairs = rows.iter().filter(|row| row.router == router);
    let pairs = pairs.filter_map(|row| Some((row.seed, loss(row)? - loss(partner(row)?)?)));
    let (seeds, differences): (Vec<u64>, Vec<f64>) = pairs.unzip();
    // The same draws for every router: adding one to a comparison moves no other's interval.
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let paired = Paired::of(&differences, options, &mut || generator.next_u64()).ok()?;
    let verdict = NO_VERDICT.to_owned();
    Some(Judgement { router: router.into(), seeds, paired, p_holm: None, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Metrics;

    fn row(router: &str, seed: u64, valid_loss: f64) -> Row {
        let metrics = Metrics { valid_loss, ..Metrics::default() };
        Row { router: router.to_owned(), seed, metrics: Some(metrics), error: None }
    }

    /// Per seed 0, 1, 2, … a loss of `2 + seed / 8 + shift(seed)`: seeds differ more than routers.
    fn rows(router: &str, seeds: u64, shift: impl Fn(u64) -> f64) -> Vec<Row> {
        (0..seeds).map(|seed| row(router, seed, 2.0 + seed as f64 / 8.0 + shift(seed))).collect()
    }

    /// A reference and routers that are lower in every seed, higher in every seed, and neither.
    fn field(seeds: u64) -> Vec<Row> {
        let wobble = |seed: u64| (seed % 3) as f64 / 64.0;
        [
            rows("smoe", seeds, |_| 0.0),
            rows("low", seeds, |seed| -0.125 - wobble(seed)),
            rows("high", seeds, |seed| 0.125 + wobble(seed)),
            rows("even", seeds, |seed| if seed % 2 == 0 { 0.125 } else { -0.125 }),
        ]
        .concat()
    }

    fn verdicts(rows: &[Row]) -> Vec<String> {
        let judged = judge(rows, "smoe", &|_| true);
        ["smoe", "low", "high", "even"].map(|router| of(&judged, router)).into()
    }

    /// Eight seeds: p = 2/256 for both extremes, times 3 and 2: 0.0234 and 0.0156, which may not fall.
    #[test]
    fn what_the_test_supports_is_said() {
        assert_eq!(verdicts(&field(8)), [REFERENCE, BETTER, WORSE, NO_DIFFERENCE]);
        let judged = judge(&field(8), "smoe", &|_| true);
        assert_eq!(judged.family, 3);
        assert_eq!(judged.entries[0].p_holm, Some(6.0 / 256.0));
        assert_eq!(judged.entries[1].p_holm, Some(6.0 / 256.0));
        assert_eq!(judged.entries[0].seeds, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    /// Six seeds and three tests: the smallest corrected p is 3 * 2/64 = 0.094, above 0.05.
    #[test]
    fn too_few_seeds_for_the_family_earn_no_verdict() {
        assert_eq!(verdicts(&field(6)), [REFERENCE, NO_VERDICT, NO_VERDICT, NO_VERDICT]);
        assert_eq!((seeds_needed(1), seeds_needed(3), seeds_needed(25)), (6, 7, 10));
        // One test alone may speak at six.
        let two: Vec<Row> = field(6).into_iter().filter(|r| r.router.len() < 5).take(12).collect();
        assert_eq!(of(&judge(&two, "smoe", &|_| true), "low"), BETTER);
        assert_eq!(of(&judge(&field(5)[..10], "smoe", &|_| true), "low"), NO_VERDICT);
    }

    #[test]
    fn a_router_that_sees_what_it_predicts_is_not_compared() {
        let judged = judge(&field(8), "smoe", &|router| router != "low");
        assert_eq!((of(&judged, "low").as_str(), judged.family), (NOT_COMPARABLE, 2));
    }

    #[test]
    fn a_failed_run_takes_the_verdict_with_it() {
        let mut rows = field(8);
        let lost = rows.iter_mut().find(|row| row.router == "low").unwrap();
        lost.metrics = None;
        assert_eq!(verdicts(&rows), [REFERENCE, NO_VERDICT, WORSE, NO_DIFFERENCE]);
        let judged = judge(&rows, "smoe", &|_| true);
        assert_eq!(judged.entries[0].seeds.len(), 7);
        rows[0].metrics.as_mut().unwrap().valid_loss = f64::NAN;
        assert_eq!(verdicts(&rows), [REFERENCE, NO_VERDICT, NO_VERDICT, NO_VERDICT]);
    }

    #[test]
    fn another_router_moves_no_interval() {
        let alone = judge(&field(8)[..16], "smoe", &|_| true);
        let among = judge(&field(8), "smoe", &|_| true);
        assert_eq!(alone.entries[0].paired, among.entries[0].paired);
    }

    #[test]
    fn the_reference_is_the_plainest_router_there() {
        assert_eq!(default_reference(&["ssr", "dense", "smoe"]), Some("smoe"));
        assert_eq!(default_reference(&["ssr", "dense"]), Some("dense"));
        assert_eq!((default_reference(&["ssr"]), default_reference(&[])), (Some("ssr"), None));
    }
}
