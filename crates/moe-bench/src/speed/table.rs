//! Measurements as a table.

use super::{Dtype, Pass, Report, Row};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

/// Others' share of the machine above which figures are doubtful.
const BUSY: f64 = 0.1;

/// The report as text, with a warning if the machine was not idle.
pub fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} threads, {}, libtorch {}, reads {:.1} GB/s\n\n",
        machine.cpu, machine.threads, machine.device, machine.libtorch, machine.read_gbps
    );
    if let Some(busy) = machine.busy.filter(|busy| *busy > BUSY) {
        text += &format!(
            "The machine was {:.0} % busy with other work: ratios hold better than times, and neither holds well.\n\n",
            busy * 100.0
        );
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "size",
        "dtype",
        "pass",
        "impl",
        "ms",
        "GFLOP/s",
        "GB/s",
        "of the bound",
        "routing",
    ]);
    for row in &report.rows {
        table.add_row(cells(row));
    }
    text + &table.trim_fmt() + "\n"
}

fn cells(row: &Row) -> Vec<Cell> {
    let dtype = match row.dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
    };
    let pass = match row.pass {
        Pass::Forward => "forward",
        Pass::ForwardBackward => "forward+backward",
        Pass::Route => "route",
    };
    let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.0}"));
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let ratio = match row.pass {
        Pass::Route => String::new(),
        _ => format!("{:.2} [{:.2}, {:.2}]", row.ratio_to_dense, row.ci[0], row.ci[1]),
    };
    let share = row.routing_share.map_or(String::new(), |share| format!("{:.1} %", share * 100.0));
    let mut cells: Vec<Cell> = [&*row.size, dtype, pass, &row.name].map(Cell::new).into();
    let gbps = row.gbps.map_or(String::new(), |v| format!("{v:.1}"));
    let numbers = [format!("{:.3}", row.ms), number(row.gflops), gbps, ratio, share];
    cells.extend(numbers.map(right));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speed::machine::Machine;

    #[test]
    fn a_busy_machine_is_said_so_and_rows_are_complete() {
        let machine = Machine {
            cpu: "Some CPU".into(),
            cpu_features: Vec::new(),
            threads: 2,
            device: "cpu".into(),
            libtorch: "2.11.0".into(),
            commit: "abc".into(),
            read_gbps: 30.0,
            busy: Some(0.5),
        };
        let row = Row {
            size: "A".into(),
            dtype: Dtype::F32,
            pass: Pass::Forward,
            name: "loop".into(),
            ms: 100.0,
            gflops: Some(257.7),
            gbps: None,
            ratio_to_dense: 0.75,
            ci: [0.7, 0.8],
            routing_share: Some(0.031),
        };
        let text = render(&Report { machine, rows: vec![row] });
        assert!(text.contains("50 % busy"), "{text}");
        for part in ["| A ", "| loop ", "100.000", "258", "0.75 [0.70, 0.80]", "3.1 %"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
