//! The measures of a log as a table in the terminal.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use moe_core::routing_log::{LayerMeasures, RoutingReport};

const HEADER: [&str; 12] = [
    "layer",
    "tokens",
    "load_\nimbalance",
    "load\nCV",
    "load\nentropy",
    "dead",
    "left\nbehind %",
    "router_\nconfidence",
    "gate\nentropy",
    "fluctu-\nation %",
    "cross-\nlayer",
    "labels\nNMI",
];

/// One line per layer and what the columns mean.
pub fn table(report: &RoutingReport) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(HEADER);
    table.add_rows(report.layers.iter().map(row));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n\n{}\n\n{LEGEND}\n", head(report), table.trim_fmt())
}

fn head(report: &RoutingReport) -> String {
    let guess = match report.experts_given {
        true => "",
        false => " (the largest index seen plus 1; --experts N counts dead ones beyond)",
    };
    format!(
        "{} decisions, {} layers, {} experts{guess}, {} steps from {} to {}",
        report.totals.decisions,
        report.layers.len(),
        report.experts,
        report.steps,
        report.first_step,
        report.last_step
    )
}

fn row(layer: &LayerMeasures) -> [String; 12] {
    let shown = |value: Option<f64>, factor: f64| {
        value.map_or_else(|| "–".to_owned(), |v| format!("{:.3}", v * factor))
    };
    [
        layer.layer.clone(),
        layer.tokens.to_string(),
        shown(layer.load_imbalance, 1.0),
        shown(layer.load_cv, 1.0),
        shown(layer.load_entropy, 1.0),
        layer.dead_experts.to_string(),
        shown(Some(layer.fraction_tokens_left_behind), 100.0),
        shown(layer.router_confidence, 1.0),
        shown(layer.gate_entropy.or(layer.chosen_entropy), 1.0),
        shown(layer.routing_fluctuation.or(layer.routing_fluctuation_set), 100.0),
        shown(layer.cross_layer_instability, 1.0),
        shown(layer.specialisation.map(|s| s.normalised), 1.0),
    ]
}

const LEGEND: &str = "\
  load_imbalance     largest over mean load; 1 is even
  load CV, entropy   deviation over mean; entropy over ln E, 1 is even
  dead               experts without a row
  left behind        tokens that no expert read (fraction_tokens_left_behind)
  router_confidence  mean weight of the kept choices
  gate entropy       over ln E; of the chosen weights alone, over ln k, where the log has no whole gate
  fluctuation        tokens whose first expert (the set, where no order is known) changed since the step before
  cross-layer        token pairs that share an expert in this layer or the next, not in both
  labels NMI         what the first expert says of the label; 1 is everything
  –                  needs what the log does not say
Expert pairs, loads over time and all digits: --json.";
