//! The columns of the comparison, shared by the table in the terminal and the one in the report.

use crate::results::{DRAWING, Results, RouterSummary, Spread};
use crate::summary::{DENSE, mean};

/// What stands where a router has no such measure.
pub(crate) const ABSENT: &str = "–";

/// One measured column.
pub(crate) struct Column {
    /// Title.
    pub(crate) name: &'static str,
    /// Title in two short lines, so that the terminal holds all columns side by side.
    pub(crate) short: [&'static str; 2],
    /// What the number means, in one sentence; empty where the title says it.
    pub(crate) legend: &'static str,
    /// The cell of one router.
    pub(crate) cell: fn(&RouterSummary) -> String,
    /// Whether the column is about experts, of which the dense control has none.
    routed: bool,
    /// Which comparisons have the column.
    of: Of,
}

/// Comparisons that have a column.
enum Of {
    All,
    /// Those of language models.
    Text,
    /// Those whose loss is a cross-entropy.
    Likelihood,
    /// Those of models that draw.
    Drawings,
    /// Those in which a run has this measure.
    Measure(&'static str),
}

impl Column {
    /// The cell of one router, or [`ABSENT`] where the column says nothing about it.
    pub(crate) fn show(&self, entry: &RouterSummary) -> String {
        if self.routed && entry.router == DENSE { ABSENT.to_owned() } else { (self.cell)(entry) }
    }
}

/// The columns of `results` between the router's name and its verdict.
pub(crate) fn columns(results: &Results) -> Vec<&'static Column> {
    let has = |column: &&Column| match column.of {
        Of::All => true,
        Of::Text => results.terms.unit == "token",
        Of::Likelihood => results.terms.unit != DRAWING,
        Of::Drawings => results.terms.unit == DRAWING,
        Of::Measure(name) => results.summary.iter().any(|entry| entry.metrics.contains_key(name)),
    };
    COLUMNS.iter().filter(has).collect()
}

/// No vocabulary has as many tokens: `exp` of what is no cross-entropy.
const MOST_TOKENS: f64 = 1e12;

const COLUMNS: &[Column] = &[
    Column {
        name: "valid loss",
        short: ["valid", "loss"],
        legend: "Cross-entropy on the validation split in nats, mean ± sample standard deviation \
                 over seeds.",
        cell: |entry| with_deviation(entry, "valid_loss", 3),
        routed: false,
        of: Of::Likelihood,
    },
    Column {
        name: "valid loss",
        short: ["valid", "loss"],
        legend: "Squared error of a drawing by the decoder that the gate chose, validation split, \
                 mean ± sample standard deviation over seeds.",
        cell: |entry| with_deviation(entry, "valid_loss", 3),
        routed: false,
        of: Of::Drawings,
    },
    Column {
        name: "accuracy",
        short: ["accu-", "racy"],
        legend: "Share of the validation targets that are predicted right.",
        cell: |entry| with_deviation(entry, "accuracy", 3),
        routed: false,
        of: Of::Measure("accuracy"),
    },
    Column {
        name: "perplexity",
        short: ["perplex-", "ity"],
        legend: "exp(valid loss): how many equally likely tokens the model hesitates between.",
        cell: |entry| match entry.metrics.get("valid_perplexity") {
            Some(spread) if spread.mean > MOST_TOKENS => absent(),
            _ => with_deviation(entry, "valid_perplexity", 2),
        },
        routed: false,
        of: Of::Text,
    },
    Column {
        name: "bits/byte",
        short: ["bits/", "byte"],
        legend: "Validation loss per byte of text, comparable across tokenisers.",
        cell: |entry| scaled(entry, "bits_per_byte", 1.0, 3),
        routed: false,
        of: Of::Text,
    },
    Column {
        name: "imbalance",
        short: ["imbal-", "ance"],
        legend: "Largest over mean expert load, mean over layers; 1 is perfect balance.",
        cell: |entry| scaled(entry, "load_imbalance", 1.0, 2),
        routed: true,
        of: Of::All,
    },
    Column {
        name: "dead experts",
        short: ["dead", "exp."],
        legend: "Experts that received no validation token, over all layers, mean over seeds.",
        cell: |entry| scaled(entry, "dead_experts", 1.0, 1),
        routed: true,
        of: Of::All,
    },
    Column {
        name: "dropped %",
        short: ["drop", "%"],
        legend: "Share of validation tokens that no expert kept, mean over layers.",
        cell: |entry| scaled(entry, "fraction_tokens_left_behind", 100.0, 1),
        routed: true,
        of: Of::All,
    },
    Column {
        name: "gate entropy",
        short: ["gate", "entr."],
        legend: "Entropy of a token's gate distribution as a share of its largest value; 0 is \
                 certain, 1 is even.",
        cell: |entry| scaled(entry, "gate_entropy", 1.0, 2),
        routed: true,
        of: Of::All,
    },
    Column {
        name: "tokens/s",
        short: ["", "tok/s"],
        legend: "Training tokens per second.",
        cell: |entry| mean(entry, "tokens_per_second").map_or_else(absent, rate),
        routed: false,
        of: Of::All,
    },
    Column {
        name: "routing %",
        short: ["route", "%"],
        legend: "Share of the forward pass spent deciding routes and building plans.",
        cell: |entry| scaled(entry, "routing_share", 100.0, 1),
        routed: true,
        of: Of::All,
    },
    Column {
        name: "memory MB",
        short: ["mem", "MB"],
        legend: "Largest resident memory of the process; 1 MB is 10^6 bytes.",
        cell: |entry| scaled(entry, "peak_memory_bytes", 1e-6, 0),
        routed: false,
        of: Of::All,
    },
    Column {
        name: "active param.",
        short: ["active", "param."],
        legend: "Parameters that one token uses.",
        cell: |entry| mean(entry, "params_active").map_or_else(absent, magnitude),
        routed: false,
        of: Of::All,
    },
    Column {
        name: "total param.",
        short: ["total", "param."],
        legend: "",
        cell: |entry| mean(entry, "params_total").map_or_else(absent, magnitude),
        routed: false,
        of: Of::All,
    },
    Column {
        name: "runs",
        short: ["", "runs"],
        legend: "Finished out of started runs; one run per seed.",
        cell: |entry| format!("{}/{}", entry.runs, entry.runs + entry.failed),
        routed: false,
        of: Of::All,
    },
];

fn absent() -> String {
    ABSENT.to_owned()
}

fn with_deviation(entry: &RouterSummary, measure: &str, decimals: usize) -> String {
    entry.metrics.get(measure).map_or_else(absent, |&spread| show_spread(spread, decimals))
}

/// `1.512 ±0.004`, or the mean alone for a single seed.
pub(crate) fn show_spread(spread: Spread, decimals: usize) -> String {
    match spread {
        Spread { mean, .. } if !mean.is_finite() => absent(),
        Spread { mean, sd: Some(sd) } if sd.is_finite() => {
            format!("{mean:.decimals$} ±{sd:.decimals$}")
        }
        Spread { mean, .. } => format!("{mean:.decimals$}"),
    }
}

fn scaled(entry: &RouterSummary, measure: &str, factor: f64, decimals: usize) -> String {
    mean(entry, measure).map_or_else(absent, |mean| format!("{:.decimals$}", mean * factor))
}

/// A speed in at most five characters: `9876`, `12.3k`, `1.2M`.
pub(crate) fn rate(value: f64) -> String {
    match value {
        _ if value < 1e4 => format!("{value:.0}"),
        _ if value < 99.95e3 => format!("{:.1}k", value / 1e3),
        _ if value < 999.5e3 => format!("{:.0}k", value / 1e3),
        _ => format!("{:.1}M", value / 1e6),
    }
}

/// A count with three significant digits: `987`, `45.6 k`, `1.23 M`.
pub(crate) fn magnitude(value: f64) -> String {
    let (scaled, unit) = match value {
        _ if value < 999.5 => return format!("{value:.0}"),
        _ if value < 999.5e3 => (value / 1e3, 'k'),
        _ if value < 999.5e6 => (value / 1e6, 'M'),
        _ => (value / 1e9, 'G'),
    };
    let decimals = if scaled < 9.995 { 2 } else { usize::from(scaled < 99.95) };
    format!("{scaled:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_three_digits() {
        let shown =
            [7.0, 999.4, 999.6, 45_600.0, 999_600.0, 1_230_000.0, 45.6e6, 7.1e9].map(magnitude);
        assert_eq!(shown, ["7", "999", "1.00 k", "45.6 k", "1.00 M", "1.23 M", "45.6 M", "7.10 G"]);
    }

    #[test]
    fn speeds_stay_short() {
        let shown = [0.4, 9876.0, 12_345.0, 99_960.0, 999_600.0].map(rate);
        assert_eq!(shown, ["0", "9876", "12.3k", "100k", "1.0M"]);
    }

    #[test]
    fn a_spread_without_numbers_is_absent() {
        assert_eq!(show_spread(Spread { mean: f64::NAN, sd: None }, 3), ABSENT);
        assert_eq!(show_spread(Spread { mean: 1.0, sd: Some(f64::NAN) }, 1), "1.0");
        assert_eq!(show_spread(Spread { mean: 1.0, sd: Some(0.25) }, 2), "1.00 ±0.25");
    }
}
