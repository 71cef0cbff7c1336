//! What a routing decision costs by router, as a multiple of plain softmax top-k, as Markdown:
//! `cargo bench -p benches --bench route_ratios`, with parts of names behind `--` to take only some.
//!
//! Every time is divided by that of `smoe` measured right before it, and the routers take turns: what
//! else the machine does meanwhile falls on all alike. A cell has the median of these ratios, the
//! interval that has the true median in 95 cases of 100, and the ratio of the least times, which is the
//! figure to read where the machine is so busy that the interval says nothing.

use benches::interval::Median;
use benches::scene::{EXPERTS, Subject, THREADS, entries, subject};
use moe_routers::Phase;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 21;
const PHASES: [(&str, Phase); 2] = [("train", Phase::Train { step: 0 }), ("eval", Phase::Eval)];

/// A router's name and cells, by its place among the entries.
type Rows = BTreeMap<usize, (String, Vec<String>)>;

fn seconds(subject: &Subject, phase: Phase) -> f64 {
    let start = Instant::now();
    black_box(subject.route(phase)).expect("routed before");
    start.elapsed().as_secs_f64()
}

/// Times of every subject, in turn, each behind that of `smoe` right before it.
fn measured(smoe: &Subject, subjects: &[Subject], phase: Phase) -> Vec<Vec<(f64, f64)>> {
    let mut times = vec![Vec::with_capacity(ROUNDS); subjects.len()];
    for _ in 0..ROUNDS {
        for (subject, times) in subjects.iter().zip(&mut times) {
            times.push((seconds(smoe, phase), seconds(subject, phase)));
        }
    }
    times
}

fn cell(times: &[(f64, f64)]) -> String {
    let Median { middle, low, high } = Median::of(times.iter().map(|(unit, s)| s / unit).collect());
    let least = |of: fn(&(f64, f64)) -> f64| times.iter().map(of).fold(f64::INFINITY, f64::min);
    let least = least(|pair| pair.1) / least(|pair| pair.0);
    format!("{middle:.2} [{low:.2}, {high:.2}], {least:.2}")
}

/// Adds the column of `phase` over `experts`.
fn column(rows: &mut Rows, wanted: &[String], experts: i64, phase: Phase) {
    let named = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let (mut places, mut subjects) = (Vec::new(), Vec::new());
    for (place, (paper, preset)) in entries().enumerate() {
        let name = format!("{}:{preset}", paper.id);
        if !named(&name) {
            continue;
        }
        match subject((paper, preset), experts, &[phase]) {
            Ok(subject) => {
                rows.entry(place).or_insert_with(|| (subject.name.clone(), Vec::new()));
                places.push(place);
                subjects.push(subject);
            }
            Err(reason) => {
                let row = rows.entry(place).or_insert_with(|| (name, Vec::new()));
                row.1.push(format!("refused: {reason}"));
            }
        }
    }
    for (place, times) in places.iter().zip(measured(&Subject::smoe(experts), &subjects, phase)) {
        rows.entry(*place).and_modify(|(_, cells)| cells.push(cell(&times)));
    }
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn main() {
    tch::set_num_threads(THREADS);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (mut rows, mut head) = (Rows::new(), vec!["router".to_owned()]);
    for (phase_name, phase) in PHASES {
        for experts in EXPERTS {
            head.push(format!("{phase_name}, e = {experts}"));
            column(&mut rows, &wanted, experts, phase);
        }
    }
    println!("| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for (name, cells) in rows.into_values() {
        println!("| {name} | {} |", cells.join(" | "));
    }
}
