//! What damaged data cost each router, from the `robustness.json` of every run that has one.
//!
//! Axis letters: `l` sparse layers.

use crate::results::Results;
use crate::table::columns::ABSENT;
use crate::table::markdown;
use anyhow::{Context, Result};
use moe_core::stats::mean;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The part of the file that the table shows.
#[derive(Debug, Deserialize)]
struct Robustness {
    clean: Score,
    rows: Vec<Attack>,
}

#[derive(Debug, Deserialize)]
struct Score {
    loss: f64,
}

#[derive(Debug, Deserialize)]
struct Attack {
    attack: String,
    level: f64,
    score: Score,
    clean: Option<Score>,
    #[serde(default)]
    flip_rate_l: Vec<f64>,
}

/// What all seeds of one router lost under one attack, and the share of their routes that changed.
#[derive(Debug, Default)]
struct Cost {
    losses: Vec<f64>,
    flips: Vec<f64>,
}

/// Cost by router and attack, each attack at its highest level.
type Costs = BTreeMap<String, BTreeMap<String, Cost>>;

/// The table; empty where no run was attacked.
pub(super) fn table(dir: &Path, results: &Results) -> Result<String> {
    let mut costs = Costs::new();
    for row in &results.rows {
        let run = crate::cells::run_dir(dir, &row.router, row.seed);
        if let Some(found) = read(&run.join("robustness.json"))? {
            add(costs.entry(row.router.clone()).or_default(), found);
        }
    }
    let attacks: Vec<&String> = {
        let mut all: Vec<&String> = costs.values().flat_map(BTreeMap::keys).collect();
        all.sort();
        all.dedup();
        all
    };
    if attacks.is_empty() {
        return Ok(String::new());
    }
    let rows = costs.iter().map(|(router, costs)| {
        let cells = attacks.iter().map(|attack| costs.get(*attack).map_or(ABSENT.into(), show));
        std::iter::once(router.clone()).chain(cells).collect()
    });
    let titles: Vec<&str> =
        std::iter::once("router").chain(attacks.iter().map(|attack| attack.as_str())).collect();
    let table = markdown(&titles, rows.collect());
    Ok(format!(
        "### Robustness\n\n{table}\n\nLoss under attack less the loss on the same data clean, nats, mean over \
         seeds; in brackets the share of tokens that then have other experts. Each attack at its highest \
         level; all levels are in the runs' `robustness.json`."
    ))
}

fn read(path: &Path) -> Result<Option<Robustness>> {
    if !path.exists() {
        return Ok(None);
    }
    let context = || format!("cannot read {}", path.display());
    let text = fs::read_to_string(path).with_context(context)?;
    serde_json::from_str(&text).map(Some).with_context(context)
}

fn add(costs: &mut BTreeMap<String, Cost>, found: Robustness) {
    let mut highest: BTreeMap<&str, &Attack> = BTreeMap::new();
    for attack in &found.rows {
        let known = highest.entry(&attack.attack).or_insert(attack);
        if attack.level > known.level {
            *known = attack;
        }
    }
    for attack in highest.into_values() {
        let cost = costs.entry(format!("{} {}", attack.attack, attack.level)).or_default();
        let clean = attack.clean.as_ref().unwrap_or(&found.clean);
        cost.losses.push(attack.score.loss - clean.loss);
        if !attack.flip_rate_l.is_empty() {
            cost.flips.push(mean(&attack.flip_rate_l));
        }
    }
}

fn show(cost: &Cost) -> String {
    let loss = format!("{:+.3}", mean(&cost.losses));
    if cost.flips.is_empty() {
        loss
    } else {
        format!("{loss} ({:.0} %)", 100.0 * mean(&cost.flips))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::results;

    /// Losses 3 and 3.5 over clean ones of 2 and 2.25: +1.125; a quarter and three quarters of the routes.
    #[test]
    fn the_highest_level_is_averaged_over_seeds() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(1, 2);
        assert_eq!(table(dir.path(), &results).unwrap(), "");
        let write = |seed: u64, text: &str| {
            let run = crate::cells::run_dir(dir.path(), "dense", seed);
            fs::create_dir_all(&run).unwrap();
            fs::write(run.join("robustness.json"), text).unwrap();
        };
        write(
            1,
            r#"{"clean": {"loss": 2}, "rows": [
            {"attack": "swap", "level": 0.1, "score": {"loss": 9}, "flip_rate_l": [0.9]},
            {"attack": "swap", "level": 0.2, "score": {"loss": 3}, "flip_rate_l": [0.2, 0.3]}]}"#,
        );
        write(
            2,
            r#"{"clean": {"loss": 7}, "rows": [
            {"attack": "swap", "level": 0.2, "score": {"loss": 3.5}, "clean": {"loss": 2.25}, "flip_rate_l": [0.75]}]}"#,
        );
        let text = table(dir.path(), &results).unwrap();
        assert!(text.contains("swap 0.2") && text.contains("+1.125 (50 %)"), "{text}");
        write(2, "{");
        assert!(
            format!("{:#}", table(dir.path(), &results).unwrap_err()).contains("robustness.json")
        );
    }
}
