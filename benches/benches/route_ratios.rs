//! What a routing decision costs by router, as a multiple of plain softmax top-k, as Markdown:
//! `cargo bench -p benches --bench route_ratios`, with parts of names behind `--` to take only some.
//!
//! Every time is divided by that of `smoe` measured right before it, and the routers take turns: what
//! else the machine does meanwhile falls on all alike.

use benches::interval::Median;
use benches::scene::{EXPERTS, Subject, THREADS, entries, subject};
use moe_routers::Phase;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 21;
const PHASES: [(&str, Phase); 2] = [("train", Phase::Train { step: 0 }), ("eval", Phase::Eval)];

/// The cells of a router's row, by its first entry's name.
type Rows = BTreeMap<usize, (String, Vec<String>)>;

fn seconds(subject: &Subject, phase: Phase) -> f64 {
    let start = Instant::now();
    black_box(subject.route(phase)).expect("routed before");
    start.elapsed().as_secs_f64()
}

/// Ratios to `smoe` of every subject, in turn.
fn measured(smoe: &Subject, subjects: &[Subject], phase: Phase) -> Vec<Median> {
    let mut ratios = vec![Vec::with_capacity(ROUNDS); subjects.len()];
    for _ in 0..ROUNDS {
        for (subject, ratios) in subjects.iter().zip(&mut ratios) {
            let unit = seconds(smoe, phase);
            ratios.push(seconds(subject, phase) / unit);
        }
    }
    ratios.into_iter().map(Median::of).collect()
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
    for (place, ratio) in places.iter().zip(measured(&Subject::smoe(experts), &subjects, phase)) {
        let Median { middle, low, high } = ratio;
        rows.entry(*place).and_modify(|(_, cells)| {
            cells.push(format!("{middle:.2} [{low:.2}, {high:.2}]"));
        });
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
