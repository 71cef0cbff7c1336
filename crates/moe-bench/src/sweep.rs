//! `moe eval RUN --sweep KEY=V1,V2`: one trained model under several settings, as a table.

use crate::cli::EvalArgs;
use crate::error::Misuse;
use crate::log::EvalLine;
use crate::run::load;
use crate::say::{say_json, say_line};
use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// One setting of every swept key, and what came out.
#[derive(Debug, Serialize)]
struct Row {
    settings: Vec<String>,
    #[serde(flatten)]
    line: EvalLine,
}

/// Evaluates every combination of the swept values.
///
/// # Errors
/// A sweep without values, a stop, or what `moe eval` refuses.
pub fn sweep(args: &EvalArgs, stop: &Arc<AtomicBool>) -> Result<()> {
    let device = args.machine.ready()?;
    let combinations = combinations(&args.sweeps)?;
    let bar = ProgressBar::new(combinations.len() as u64);
    let style = "{bar:32} {pos}/{len} settings  {elapsed_precise}, about {eta_precise} left  {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
    let mut rows = Vec::new();
    for settings in combinations {
        bar.set_message(settings.join(" "));
        let sets: Vec<String> = args.sets.iter().chain(&settings).cloned().collect();
        let prepared = load((&args.run, args.checkpoint), &sets, device, stop)?;
        let line = prepared.evaluate(args.split.into(), args.batches)?;
        rows.push(Row { settings, line });
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        return say_json(&rows);
    }
    Ok(say_line(table(&rows))?)
}

/// Every way to take one value of each sweep, as settings; the last sweep varies fastest.
fn combinations(sweeps: &[String]) -> Result<Vec<Vec<String>>, Misuse> {
    let mut all = vec![Vec::new()];
    for sweep in sweeps {
        let (key, values) = sweep
            .split_once('=')
            .filter(|(key, values)| !key.is_empty() && !values.is_empty())
            .ok_or_else(|| Misuse::new(format!("--sweep {sweep}: expected key=value,value")))?;
        let with = |before: &Vec<String>, value: &str| {
            before.iter().cloned().chain([format!("{key}={value}")]).collect()
        };
        all = all
            .iter()
            .flat_map(|before| values.split(',').map(move |value| with(before, value)))
            .collect();
    }
    Ok(all)
}

fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let mut table = Table::new();
    table.load_style(NOTHING);
    let names = first.line.report.measures.keys().map(|name| name.replace('_', " "));
    let head = ["setting", "loss"].map(str::to_owned).into_iter().chain(names);
    let tail = ["left behind".to_owned(), "time".to_owned()];
    table.set_header(head.chain(tail).collect::<Vec<_>>());
    for Row { settings, line } in rows {
        let report = &line.report;
        let layers = report.layers.len().max(1) as f64;
        let left: f64 = report.layers.iter().map(|l| l.fraction_tokens_left_behind).sum();
        let cells = [settings.join(" "), format!("{:.4}", report.loss)].into_iter();
        let cells = cells.chain(report.measures.iter().map(|(name, value)| shown(name, *value)));
        // Of a token, text or image, everything included.
        let micros = 1e6 * line.seconds / report.tokens.max(1) as f64;
        let tail = [format!("{:.2} %", 100.0 * left / layers), format!("{micros:.1} µs")];
        table.add_row(cells.chain(tail).collect::<Vec<_>>());
    }
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    table.trim_fmt()
}

/// A measure for people: FLOPs in millions, anything else as it is.
pub(crate) fn shown(name: &str, value: f64) -> String {
    match name.starts_with("flops") {
        true => format!("{:.3} M", value / 1e6),
        false => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_once() {
        let sweeps = ["a.b=1,2".to_owned(), "c=x,y".to_owned()];
        let found: Vec<String> =
            combinations(&sweeps).unwrap().iter().map(|s| s.join(" ")).collect();
        assert_eq!(found, ["a.b=1 c=x", "a.b=1 c=y", "a.b=2 c=x", "a.b=2 c=y"]);
        for bad in ["a", "=1", "a="] {
            assert!(combinations(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
