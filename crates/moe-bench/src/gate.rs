//! Regression gates: every router trains for a moment, and its loss and routing are held against
//! committed baselines.
//!
//! Losses must be the same bits on the class of machine that recorded them, and lie in a narrow band
//! elsewhere; routing measures lie in a band per router that several seeds span. Speed is compared only
//! in turns, by [`ab`].

pub mod ab;
mod baseline;
mod short_run;

use crate::cli::GateArgs;
use crate::compare::entered;
use crate::error::Misuse;
use crate::say::say_line;
use anyhow::{Context, Result, ensure};
use baseline::{Baseline, Baselines, Fault};
use indicatif::{ProgressBar, ProgressStyle};
use short_run::ShortRun;
use std::fs;

/// Seeds whose runs span the bands of routing measures; the first one's losses are the golden curve.
const SEEDS: [u64; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// `moe gate`: checks, or records with `--bless`.
///
/// # Errors
/// Baselines that cannot be read or written, a run that fails, or a gate that is crossed.
pub fn run(args: &GateArgs) -> Result<()> {
    one_thread()?;
    let routers = if args.routers.is_empty() { entered() } else { args.routers.clone() };
    if args.bless {
        let recorded = record(&routers)?;
        let text = serde_json::to_string_pretty(&recorded)? + "\n";
        fs::write(&args.baselines, text)
            .with_context(|| format!("cannot write {}", args.baselines.display()))?;
        let (count, place) = (routers.len(), args.baselines.display());
        return Ok(say_line(format_args!("{count} routers recorded in {place}"))?);
    }
    let baselines = read(args)?;
    let exact = baselines.class == baseline::Class::here();
    let faults = check(&baselines, &routers, args.routers.is_empty(), exact)?;
    faults.iter().try_for_each(say_line)?;
    let how = match exact {
        true => "exact losses: the class of machine that recorded them".to_owned(),
        false => "losses within bands: another class of machine".to_owned(),
    };
    let (count, crossed) = (routers.len(), faults.len());
    ensure!(crossed == 0, "{crossed} faults in {count} routers ({how}); `--bless` records anew");
    Ok(say_line(format_args!("curves and quality of {count} routers as recorded ({how})"))?)
}

/// libtorch's sums depend on how many threads share them.
fn one_thread() -> Result<()> {
    tch::set_num_threads(1);
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().context("threads were started")
}

fn read(args: &GateArgs) -> Result<Baselines> {
    let path = args.baselines.display();
    let text = fs::read_to_string(&args.baselines)
        .map_err(|e| Misuse::new(format!("{path}: {e}; `--bless` records it")))?;
    let baselines: Baselines = serde_json::from_str(&text).with_context(|| format!("{path}"))?;
    ensure!(baselines.schema == baseline::SCHEMA, "{path}: schema {}", baselines.schema);
    Ok(baselines)
}

fn record(routers: &[String]) -> Result<Baselines> {
    let bar = bar(routers.len() * SEEDS.len());
    let mut recorded = Baselines::empty();
    for router in routers {
        let runs: Result<Vec<ShortRun>> = SEEDS
            .iter()
            .map(|&seed| {
                bar.inc(1);
                ShortRun::of(router, seed)
            })
            .collect();
        recorded.routers.insert(router.clone(), Baseline::of(&runs?));
    }
    Ok(recorded)
}

/// Every fault of every router; `all` asks for a baseline of each router that exists, and for no other.
fn check(baselines: &Baselines, routers: &[String], all: bool, exact: bool) -> Result<Vec<Fault>> {
    let bar = bar(routers.len());
    let mut faults = Vec::new();
    for router in routers {
        bar.inc(1);
        match baselines.routers.get(router) {
            Some(baseline) => {
                let run = ShortRun::of(router, SEEDS[0]);
                let nats = (!exact).then(|| baseline::loss_band(router));
                let found = run.map(|run| baseline.faults(&run, nats));
                let broken = |e: anyhow::Error| vec![("run", format!("{e:#}"))];
                let found = found.unwrap_or_else(broken);
                faults.extend(found.into_iter().map(|(gate, what)| Fault::new(router, gate, what)));
            }
            None => faults.push(Fault::new(router, "set", "no baseline".into())),
        }
    }
    let gone = baselines.routers.keys().filter(|router| all && !routers.contains(router));
    faults.extend(gone.map(|router| Fault::new(router, "set", "no such router any more".into())));
    Ok(faults)
}

fn bar(runs: usize) -> ProgressBar {
    let style = "{bar:32} {pos}/{len} runs  {elapsed_precise}, about {eta_precise} left";
    ProgressBar::new(runs as u64)
        .with_style(ProgressStyle::with_template(style).expect("a valid template"))
}
