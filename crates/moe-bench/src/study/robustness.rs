//! What damaged data cost each router, from the `robustness.json` of every run that has one.
//!
//! Axis letters: `l` sparse layers.

use crate::claims::CORRUPTIONS;
use crate::results::{Results, Row};
use crate::table::columns::ABSENT;
use crate::table::markdown;
use anyhow::{Context, Result};
use moe_core::stats::mean;
use moe_data::corrupt::ImageCorruption;
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

/// What one run lost under one attack at its highest level.
#[derive(Debug)]
struct Cost {
    level: f64,
    /// Loss less that on the same data clean.
    loss: f64,
    /// Share of the routes that changed; none without experts to choose from.
    flips: Option<f64>,
}

/// What attacks cost the runs of a comparison, by router and seed, then by attack.
#[derive(Debug, Default)]
pub(super) struct Costs(BTreeMap<(String, u64), BTreeMap<String, Cost>>);

impl Costs {
    /// From the files of the runs; empty where no run was attacked.
    pub(super) fn read(dir: &Path, results: &Results) -> Result<Self> {
        let mut costs = Self::default();
        for row in &results.rows {
            let run = crate::cells::run_dir(dir, &row.router, row.seed);
            if let Some(found) = read(&run.join("robustness.json"))? {
                costs.0.insert((row.router.clone(), row.seed), of_run(&found));
            }
        }
        Ok(costs)
    }

    /// What an attack, or all of [`CORRUPTIONS`] on average, cost a run.
    pub(super) fn of(&self, row: &Row, attack: &str) -> Option<f64> {
        let costs = self.0.get(&(row.router.clone(), row.seed))?;
        if attack != CORRUPTIONS {
            return Some(costs.get(attack)?.loss);
        }
        let damages = ImageCorruption::ALL.iter().filter_map(|c| Some(costs.get(c.name())?.loss));
        let damages: Vec<f64> = damages.collect();
        (!damages.is_empty()).then(|| mean(&damages))
    }

    /// The table: a row for each router, a column for each attack.
    pub(super) fn table(&self) -> String {
        let mut attacks = BTreeMap::new();
        for (attack, cost) in self.0.values().flatten() {
            let level: &mut f64 = attacks.entry(attack.as_str()).or_insert(cost.level);
            *level = level.max(cost.level);
        }
        if attacks.is_empty() {
            return String::new();
        }
        let mut routers: Vec<&str> = self.0.keys().map(|(router, _)| router.as_str()).collect();
        routers.dedup();
        let row = |router: &str| {
            let cells = attacks.keys().map(|attack| self.cell(router, attack));
            std::iter::once(router.to_owned()).chain(cells).collect()
        };
        let titles = attacks.iter().map(|(attack, level)| format!("{attack} {level}"));
        let titles: Vec<String> = std::iter::once("router".to_owned()).chain(titles).collect();
        let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
        let table = markdown(&titles, routers.into_iter().map(row).collect());
        format!(
            "### Robustness\n\n{table}\n\nLoss under attack less the loss on the same data clean, nats, mean over \
             seeds; in brackets the share of tokens that then have other experts. Each attack at its highest \
             level; all levels are in the runs' `robustness.json`."
        )
    }

    /// The mean over the seeds of a router.
    fn cell(&self, router: &str, attack: &str) -> String {
        let runs = self.0.iter().filter(|((name, _), _)| name == router);
        let costs: Vec<&Cost> = runs.filter_map(|(_, costs)| costs.get(attack)).collect();
        if costs.is_empty() {
            return ABSENT.into();
        }
        let loss = mean(&costs.iter().map(|cost| cost.loss).collect::<Vec<_>>());
        let flips: Vec<f64> = costs.iter().filter_map(|cost| cost.flips).collect();
        match flips.is_empty() {
            true => format!("{loss:+.3}"),
            false => format!("{loss:+.3} ({:.0} %)", 100.0 * mean(&flips)),
        }
    }
}

fn read(path: &Path) -> Result<Option<Robustness>> {
    if !path.exists() {
        return Ok(None);
    }
    let context = || format!("cannot read {}", path.display());
    let text = fs::read_to_string(path).with_context(context)?;
    serde_json::from_str(&text).map(Some).with_context(context)
}

/// Each attack at its highest level.
fn of_run(found: &Robustness) -> BTreeMap<String, Cost> {
    let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
    for attack in &found.rows {
        if costs.get(&attack.attack).is_some_and(|known| known.level >= attack.level) {
            continue;
        }
        let clean = attack.clean.as_ref().unwrap_or(&found.clean);
        let flips = (!attack.flip_rate_l.is_empty()).then(|| mean(&attack.flip_rate_l));
        let cost = Cost { level: attack.level, loss: attack.score.loss - clean.loss, flips };
        costs.insert(attack.attack.clone(), cost);
    }
    costs
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
        let read = || Costs::read(dir.path(), &results);
        assert_eq!(read().unwrap().table(), "");
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
        let costs = read().unwrap();
        let text = costs.table();
        assert!(text.contains("swap 0.2") && text.contains("+1.125 (50 %)"), "{text}");
        let of = |attack: &str| {
            let run = results.rows.iter().find(|row| row.router == "dense" && row.seed == 2);
            costs.of(run.unwrap(), attack)
        };
        assert_eq!([of("swap"), of("fog"), of(CORRUPTIONS)], [Some(1.25), None, None]);
        write(2, "{");
        assert!(format!("{:#}", read().unwrap_err()).contains("robustness.json"));
    }
}
