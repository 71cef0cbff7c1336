//! Every router's `route`, in training and evaluation, over 16, 64 and 256 experts.
//!
//! Times are of this machine and this moment; to compare routers run `route_ratios`, which interleaves
//! them.

use benches::scene::{EXPERTS, THREADS, entries, subject};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use moe_routers::Phase;
use std::hint::black_box;

const PHASES: [(&str, Phase); 2] = [("train", Phase::Train { step: 0 }), ("eval", Phase::Eval)];

#[expect(clippy::print_stderr, reason = "a router that is left out says why")]
fn route(c: &mut Criterion) {
    tch::set_num_threads(THREADS);
    for experts in EXPERTS {
        for (phase_name, phase) in PHASES {
            let mut group = c.benchmark_group(format!("route, {phase_name}, e{experts}"));
            // The least that criterion takes: an exact assignment of 4096 tokens takes seconds.
            group.sample_size(10);
            for entry in entries() {
                match subject(entry, experts, &[phase]) {
                    Err(reason) => eprintln!("left out at e{experts}: {reason}"),
                    Ok(subject) => {
                        let id = BenchmarkId::from_parameter(&subject.name);
                        group.bench_function(id, |b| b.iter(|| black_box(subject.route(phase))));
                    }
                }
            }
        }
    }
}

criterion_group!(benches, route);
criterion_main!(benches);
