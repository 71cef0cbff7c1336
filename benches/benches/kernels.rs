//! The kernels without libtorch, on the best instruction set of the machine: forward, forward and
//! backward, decode, packing, and the routing around them. About a minute.
//!
//! `MOE_ISA=avx2 cargo bench -p benches --bench kernels` takes a lesser set.

#[path = "../../crates/moe-kernels/examples/hot_paths/layer.rs"]
mod layer;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use layer::{Choices, Layer, Size};
use moe_kernels::{Dtype, Isa, KernelError};
use std::time::Duration;

const TRAINING: Size = Size { tokens: 512, width: 256, hidden: 256, experts: 16, choices: 2 };
const DECODING: [Size; 2] = [
    Size { tokens: 1, width: 512, hidden: 1024, experts: 16, choices: 8 },
    Size { tokens: 8, width: 512, hidden: 1024, experts: 16, choices: 8 },
];
const ROUTING: Size = Size { tokens: 4096, width: 1, hidden: 1, experts: 64, choices: 8 };
const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// The set to measure.
fn isa() -> Isa {
    match std::env::var("MOE_ISA") {
        Ok(name) => Isa::named(&name).unwrap_or_else(|| panic!("MOE_ISA: there is no {name} here")),
        Err(_) => Isa::detect(),
    }
}

/// One bench of a layer for each element type, in floating-point operations a second.
fn layers(
    c: &mut Criterion,
    name: &str,
    size: Size,
    products: u64,
    run: fn(&mut Layer) -> Result<(), KernelError>,
) {
    let isa = isa();
    let mut group = c.benchmark_group(format!("{name}, {}", isa.name()));
    let rows = (size.tokens * size.choices) as u64;
    group.throughput(Throughput::Elements(2 * rows * products * (size.width * size.hidden) as u64));
    for dtype in DTYPES {
        let mut layer = Layer::new(size, isa, dtype).expect("a layer that fits into memory");
        let id = BenchmarkId::from_parameter(format!("{dtype:?}"));
        group.bench_function(id, |b| b.iter(|| run(&mut layer).expect("sizes that fit")));
    }
}

fn passes(c: &mut Criterion) {
    layers(c, "forward", TRAINING, 3, Layer::forward);
    layers(c, "forward and backward", TRAINING, 9, Layer::forward_backward);
    for size in DECODING {
        layers(c, &format!("decode {} tokens", size.tokens), size, 3, Layer::decode);
    }
    let mut group = c.benchmark_group(format!("repack, {}", isa().name()));
    for dtype in DTYPES {
        let mut layer = Layer::new(TRAINING, isa(), dtype).expect("a layer that fits into memory");
        let id = BenchmarkId::from_parameter(format!("{dtype:?}"));
        group.bench_function(id, |b| b.iter(|| layer.repack().expect("sizes that fit")));
    }
}

fn routing(c: &mut Criterion) {
    let mut choices = Choices::new(ROUTING).expect("sizes that fit");
    let mut group = c.benchmark_group("routing of 4096 tokens, e64-k8");
    group.bench_function("top_k", |b| b.iter(|| choices.select().expect("sizes that fit")));
    group.bench_function("counting sort", |b| b.iter(|| choices.sort().expect("sizes that fit")));
}

/// Short: these are to be run often.
fn short() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(500), Duration::from_secs(2));
    Criterion::default().sample_size(30).warm_up_time(warm_up).measurement_time(measurement)
}

criterion_group! { name = benches; config = short(); targets = passes, routing }
criterion_main!(benches);
