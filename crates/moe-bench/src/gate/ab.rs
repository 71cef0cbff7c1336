//! Speed of two builds: the same run in turns on one machine, and the interval of the ratio. Nothing else
//! about speed is worth a gate on a shared machine.

use crate::cli::AbArgs;
use crate::error::Misuse;
use crate::results::Metrics;
use crate::say::say_line;
use anyhow::{Context, Result, ensure};
use moe_core::stats::{Paired, PairedOptions};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::fs;
use std::path::Path;
use std::process::Command;

const RECIPE: &str = include_str!("../../../../recipes/gate.toml");

/// Slower than this with 95 % confidence is a fault: the interval of the ratio lies wholly above.
const SLOWER: f64 = 1.02;

/// The runs are longer than those of the other gates, so that start-up weighs little.
const SETS: [&str; 5] = [
    "train.steps=60",
    "train.eval_every=60",
    "train.eval_batches=1",
    "model.width=64",
    "model.active_hidden=256",
];

/// Times of one round: before, after; seconds.
type Round = [f64; 2];

/// `moe ab`: runs both programs in turns and compares.
///
/// # Errors
/// A program that does not run, or one that became slower.
pub fn run(args: &AbArgs) -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("moe-ab-{}", std::process::id()));
    let rounds = rounds(args, &scratch);
    // Left behind, it would only lie there.
    let _ = fs::remove_dir_all(&scratch);
    let rounds = rounds?;
    let found = ratio(&rounds)?;
    let [low, high] = [found.interval.low.exp(), found.interval.high.exp()];
    say_line(format_args!(
        "{}: after/before {:.4}, 95 % interval {low:.4} to {high:.4}, p {:.4}, {} rounds",
        args.router,
        found.mean.exp(),
        found.p,
        rounds.len()
    ))?;
    ensure!(low <= SLOWER, "{} became slower: the interval lies above {SLOWER}", args.router);
    Ok(())
}

/// The logarithms of the ratios, judged as paired differences.
fn ratio(rounds: &[Round]) -> Result<Paired> {
    let logs: Vec<f64> = rounds.iter().map(|[before, after]| (after / before).ln()).collect();
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    Ok(Paired::of(&logs, PairedOptions::default(), &mut || generator.next_u64())?)
}

fn rounds(args: &AbArgs, scratch: &Path) -> Result<Vec<Round>> {
    fs::create_dir_all(scratch)?;
    let recipe = scratch.join("ab.toml");
    fs::write(&recipe, RECIPE).with_context(|| format!("cannot write {}", recipe.display()))?;
    let time = |program: &Path| seconds(program, &recipe, &args.router, scratch);
    // The first run of each pays for cold caches.
    time(&args.before)?;
    time(&args.after)?;
    (0..args.rounds)
        .map(|round| {
            // In turns, and in turn first: what drifts hits both alike.
            if round % 2 == 0 {
                let before = time(&args.before)?;
                Ok([before, time(&args.after)?])
            } else {
                let after = time(&args.after)?;
                Ok([time(&args.before)?, after])
            }
        })
        .collect()
}

/// Training time of one run of `program`.
fn seconds(program: &Path, recipe: &Path, router: &str, scratch: &Path) -> Result<f64> {
    let out = scratch.join("run");
    let _ = fs::remove_dir_all(&out);
    let mut command = Command::new(program);
    command.arg("train").arg(recipe).arg("--out").arg(&out).args(["--threads", "1"]);
    let router = format!("router='{router}'");
    let sets = SETS.iter().copied().chain([router.as_str()]);
    command.args(sets.flat_map(|set| ["--set", set]));
    command.env("RAYON_NUM_THREADS", "1").env("OMP_NUM_THREADS", "1");
    let output =
        command.output().map_err(|e| Misuse::new(format!("{}: {e}", program.display())))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", program.display(), said.trim());
    let result = fs::read_to_string(out.join("result.json")).context("the run left no result")?;
    Ok(serde_json::from_str::<Metrics>(&result)?.train_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every round 10 % slower, whatever the machine does meanwhile.
    #[test]
    fn ratios_do_not_see_drift() {
        let rounds: Vec<Round> = (1..=8).map(|t| [f64::from(t), 1.1 * f64::from(t)]).collect();
        let found = ratio(&rounds).unwrap();
        assert!((found.mean.exp() - 1.1).abs() < 1e-12);
        assert!(found.interval.low.exp() > SLOWER && found.p < 0.01);
    }
}
