//! Measurements as a table.

use super::{Missing, Pass, Report, Row};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

/// Others' share of the machine above which figures are doubtful.
const BUSY: f64 = 0.1;

/// The report as text, with a warning if the machine was not idle.
pub fn render(report: &Report) -> String {
    let machine = &report.machine;
    let reads = machine.read_gbps.map_or(String::new(), |gbps| format!(", reads {gbps:.1} GB/s"));
    let mut text = format!(
        "{}, {} threads, {}, libtorch {}{reads}\n\n",
        machine.cpu, machine.threads, machine.device, machine.libtorch
    );
    if let Some(busy) = machine.busy.filter(|busy| *busy > BUSY) {
        text += &format!(
            "The machine was {:.0} % busy with other work: ratios hold better than times, and neither holds well.\n\n",
            busy * 100.0
        );
    }
    let steps = report.rows.iter().any(|row| row.step.is_some());
    let header: &[&str] = if steps { &STEP_HEADER } else { &HEADER };
    let cells = if steps { step_cells } else { layer_cells };
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in &report.rows {
        table.add_row(cells(row));
    }
    text += &table.trim_fmt();
    text.push('\n');
    for Missing { peer, what } in &report.missing {
        text += &format!("{peer}: {what} is missing\n");
    }
    text
}

const HEADER: [&str; 10] = [
    "size",
    "dtype",
    "pass",
    "impl",
    "ms",
    "GFLOP/s",
    "GB/s",
    "of the bound",
    "moe is faster by",
    "routing",
];

const STEP_HEADER: [&str; 12] = [
    "size",
    "dtype",
    "impl",
    "step ms",
    "forward",
    "backward",
    "update",
    "tokens/s",
    "of the dense model",
    "moe is faster by",
    "peak MiB",
    "first loss",
];

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A ratio with its interval.
fn interval(ratio: Option<f64>, ci: Option<[f64; 2]>) -> String {
    let shown = ratio.zip(ci).map(|(ratio, [a, b])| format!("{ratio:.2} [{a:.2}, {b:.2}]"));
    shown.unwrap_or_default()
}

fn faster(row: &Row) -> String {
    interval(row.moe_is_faster.map(|r| r.ratio), row.moe_is_faster.map(|r| r.ci))
}

fn layer_cells(row: &Row) -> Vec<Cell> {
    let pass = match row.pass {
        Pass::Forward => "forward",
        Pass::ForwardBackward => "forward+backward",
        Pass::Route => "route",
        Pass::Step => "step",
    };
    let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.0}"));
    let ratio = match row.pass {
        Pass::Route => String::new(),
        _ => interval(row.ratio_to_dense, row.ci),
    };
    let share = row.routing_share.map_or(String::new(), |share| format!("{:.1} %", share * 100.0));
    let mut cells: Vec<Cell> =
        [&*row.size, row.dtype.name(), pass, &row.name].map(Cell::new).into();
    let gbps = row.gbps.map_or(String::new(), |v| format!("{v:.1}"));
    let numbers = [format!("{:.3}", row.ms), number(row.gflops), gbps, ratio, faster(row), share];
    cells.extend(numbers.map(right));
    cells
}

fn step_cells(row: &Row) -> Vec<Cell> {
    let mut cells: Vec<Cell> = [&*row.size, row.dtype.name(), &row.name].map(Cell::new).into();
    let optional = |value: Option<f64>, digits: usize| {
        value.map_or(String::new(), |value| format!("{value:.digits$}"))
    };
    let step = row.step;
    let numbers = [
        format!("{:.1}", row.ms),
        optional(step.map(|s| s.forward_ms), 1),
        optional(step.map(|s| s.backward_ms), 1),
        optional(step.map(|s| s.update_ms), 1),
        optional(step.map(|s| s.tokens_per_s), 0),
        interval(row.ratio_to_dense, row.ci),
        faster(row),
        optional(step.and_then(|s| s.peak_mib), 0),
        optional(step.and_then(|s| s.first_loss), 5),
    ];
    cells.extend(numbers.map(right));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speed::machine::Machine;
    use crate::speed::{Dtype, Ratio, StepMeasures};

    fn machine() -> Machine {
        Machine {
            cpu: "Some CPU".into(),
            cpu_features: Vec::new(),
            threads: 2,
            device: "cpu".into(),
            libtorch: "2.11.0".into(),
            commit: "abc".into(),
            read_gbps: Some(30.0),
            busy: Some(0.5),
        }
    }

    fn row(pass: Pass) -> Row {
        Row {
            size: "A".into(),
            dtype: Dtype::F32,
            pass,
            name: "loop".into(),
            ms: 100.0,
            gflops: Some(257.7),
            gbps: None,
            ratio_to_dense: Some(0.75),
            ci: Some([0.7, 0.8]),
            moe_is_faster: Some(Ratio { ratio: 1.25, ci: [1.2, 1.3] }),
            routing_share: Some(0.031),
            step: None,
        }
    }

    fn absent() -> Missing {
        Missing { peer: "hf-eager".into(), what: "the module transformers".into() }
    }

    #[track_caller]
    fn assert_shown(rows: Vec<Row>, parts: &[&str]) {
        let text = render(&Report { machine: machine(), rows, missing: vec![absent()] });
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_busy_machine_is_said_so_and_rows_are_complete() {
        let parts = ["50 % busy", "reads 30.0 GB/s", "| A ", "| loop ", "100.000", "258", "3.1 %"];
        assert_shown(vec![row(Pass::Forward)], &parts);
        assert_shown(vec![row(Pass::Forward)], &["0.75 [0.70, 0.80]", "1.25 [1.20, 1.30]"]);
        assert_shown(Vec::new(), &["hf-eager: the module transformers is missing"]);
    }

    #[test]
    fn a_step_shows_its_parts_and_its_memory() {
        let step = StepMeasures {
            tokens_per_s: 4096.4,
            forward_ms: 30.04,
            backward_ms: 61.26,
            update_ms: 8.5,
            peak_mib: Some(1234.4),
            first_loss: Some(9.060_92),
        };
        let parts = ["100.0", "30.0", "61.3", "8.5", "4096", "1.25 [1.20", "1234", "9.06092"];
        assert_shown(vec![Row { step: Some(step), ..row(Pass::Step) }], &parts);
    }
}
