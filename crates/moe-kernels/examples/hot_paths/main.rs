//! Runs one hot path once, for tools that count what a processor does; `cargo xtask instructions` does
//! so for all of them. Without arguments it prints their names.
//!
//! `hot_paths NAME INSTRUCTION_SET`, after one run that is not measured: what counts is what happens
//! inside the function `measured`, all of it on one thread.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

mod attention;
mod layer;

use std::process::ExitCode;

use layer::{Choices, Layer, Size};
use moe_kernels::{Bf16, Dtype, Isa, KernelError};

/// Large enough that a call's fixed cost is small, small enough to run a hundred times slower.
const TRAINING: Size = Size { tokens: 256, width: 128, hidden: 128, experts: 8, choices: 2 };
const DECODING: Size = Size { tokens: 1, width: 256, hidden: 256, experts: 8, choices: 4 };
const ROUTING: Size = Size { tokens: 4096, width: 1, hidden: 1, experts: 64, choices: 8 };

/// What is run twice.
type Work = Box<dyn FnMut() -> Result<(), KernelError> + Send>;

/// Something to measure: its name, and what sets it up.
type Path = (&'static str, fn(Isa) -> Result<Work, KernelError>);

const PATHS: [Path; 11] = [
    ("forward-f32", |isa| layer(TRAINING, isa, Dtype::F32, Layer::forward)),
    ("forward-bf16", |isa| layer(TRAINING, isa, Dtype::Bf16, Layer::forward)),
    ("forward-backward-f32", |isa| layer(TRAINING, isa, Dtype::F32, Layer::forward_backward)),
    ("forward-backward-bf16", |isa| layer(TRAINING, isa, Dtype::Bf16, Layer::forward_backward)),
    ("decode-f32", |isa| layer(DECODING, isa, Dtype::F32, Layer::decode)),
    ("decode-bf16", |isa| layer(DECODING, isa, Dtype::Bf16, Layer::decode)),
    ("repack-bf16", |isa| layer(TRAINING, isa, Dtype::Bf16, Layer::repack)),
    ("attention-f32", |isa| Ok(attention::work::<f32>(isa))),
    ("attention-bf16", |isa| Ok(attention::work::<Bf16>(isa))),
    ("top-k", |_| choices(Choices::select)),
    ("counting-sort", |_| choices(Choices::sort)),
];

fn layer(
    size: Size,
    isa: Isa,
    dtype: Dtype,
    run: fn(&mut Layer) -> Result<(), KernelError>,
) -> Result<Work, KernelError> {
    let mut layer = Layer::new(size, isa, dtype)?;
    Ok(Box::new(move || run(&mut layer)))
}

fn choices(run: fn(&mut Choices) -> Result<(), KernelError>) -> Result<Work, KernelError> {
    let mut choices = Choices::new(ROUTING)?;
    Ok(Box::new(move || run(&mut choices)))
}

/// Counting starts and ends with this function.
#[inline(never)]
fn measured(work: &mut Work) -> Result<(), KernelError> {
    work()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [] => {
            PATHS.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        [name, isa] => run(name, isa),
        _ => Err("expected a name and an instruction set, or nothing".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, isa: &str) -> Result<(), String> {
    let path = PATHS.iter().find(|(known, _)| *known == name);
    let (_, set_up) = path.ok_or_else(|| format!("no hot path is called {name}"))?;
    let isa = Isa::named(isa).ok_or_else(|| format!("this machine has no {isa}"))?;
    // The caller is the pool's only thread, so that nothing happens out of the counter's sight.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    let pool = pool.map_err(|error| error.to_string())?;
    let twice = || {
        let mut work = set_up(isa)?;
        work()?;
        measured(&mut work)
    };
    pool.install(twice).map_err(|error| error.to_string())
}
