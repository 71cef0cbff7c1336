//! `moe speed`: every way to run a sparse layer, interleaved in one process, against the dense bound.
//!
//! The bound is libtorch's matmul of the same FLOPs over the same number of rows, without routing,
//! activation or combine: what a layer could reach if everything but the products were free. For the
//! decode sizes it is the time to read the visited experts' weights at the measured read bandwidth.
//!
//! Machines are shared and noisy. Candidates take turns, a ratio is taken within a round, and the
//! figure is the median over rounds with an interval.

pub mod bandwidth;
pub mod child;
pub mod layers;
pub mod machine;
pub mod peers;
pub mod rounds;
pub mod scaling;
pub mod size;
pub mod step;
pub mod table;

use crate::cli::SpeedArgs;
use crate::error::Misuse;
use anyhow::Result;
use moe_models::Precision;
use rounds::{Candidate, Rounds};
use serde::{Deserialize, Serialize};
use size::Size;
use step::model::StepSize;
use step::serve::Variant;
use tch::{Device, Kind};

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Pass {
    /// The whole layer, routing included, without gradients.
    Forward,
    /// The whole layer and the gradients of tokens, experts and router.
    ForwardBackward,
    /// The router alone: logits, choices, losses, plan.
    Route,
    /// A whole training step of a language model ([`step`]).
    Step,
}

/// Element type of tokens and experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of 32.
    Bf16,
}

impl Dtype {
    /// As libtorch calls it.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// What products are carried out in where parameters stay `f32`.
    pub fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::Fp32,
            Self::Bf16 => Precision::Bf16,
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// One measured candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the size.
    pub size: String,
    /// Element type.
    pub dtype: Dtype,
    /// What was timed.
    pub pass: Pass,
    /// Which implementation; `dense` is the bound, `moe` the default path.
    #[serde(rename = "impl")]
    pub name: String,
    /// Median time, milliseconds.
    pub ms: f64,
    /// Work of the expert products over the median time; absent for `route`.
    pub gflops: Option<f64>,
    /// Weight bytes over the median time, GB/s, for the decode sizes.
    pub gbps: Option<f64>,
    /// Median over rounds of the bound's time over this one's; for `route`, the first router's; for `step`, that of a model with
    /// dense layers of the width that a token uses.
    pub ratio_to_dense: Option<f64>,
    /// 95 % interval of that median.
    pub ci: Option<[f64; 2]>,
    /// This one's time over that of the default path.
    pub moe_is_faster: Option<Ratio>,
    /// Share of the time spent outside the experts: routing, plan, losses. Absent where not measured.
    pub routing_share: Option<f64>,
    /// What a training step tells besides its time.
    #[serde(flatten)]
    pub step: Option<StepMeasures>,
}

/// A ratio of times, the median over rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The median.
    pub ratio: f64,
    /// Its 95 % interval.
    pub ci: [f64; 2],
}

/// What a training step tells besides its time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMeasures {
    /// Tokens over the median time.
    pub tokens_per_s: f64,
    /// Median time of forward pass and losses, milliseconds.
    pub forward_ms: f64,
    /// Median time of the backward pass.
    pub backward_ms: f64,
    /// Median time of norm, clipping and update.
    pub update_ms: f64,
    /// Largest resident set of the process, MiB.
    pub peak_mib: Option<f64>,
    /// Cross-entropy of the first batch under the initial weights, nats per token: programs that train
    /// the same model say the same.
    pub first_loss: Option<f64>,
}

/// Everything that `moe speed` measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine.
    pub machine: machine::Machine,
    /// All rows.
    pub rows: Vec<Row>,
    /// Peers that were asked for and are not there.
    #[serde(default)]
    pub missing: Vec<Missing>,
}

/// A peer that does not take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its name.
    pub peer: String,
    /// What it lacks.
    pub what: String,
}

impl Report {
    fn begin(device: Device) -> Self {
        let machine = machine::Machine::now(device);
        Self { machine, rows: Vec::new(), missing: Vec::new() }
    }

    /// Names who is missing, once.
    fn miss(&mut self, missing: Vec<Missing>) {
        let new = missing.into_iter().filter(|one| !self.missing.contains(one));
        let new: Vec<Missing> = new.collect();
        self.missing.extend(new);
    }
}

/// Measures what `args` ask for; `None` where this process only served rounds to another.
///
/// # Errors
/// A size or a device that cannot be used, or another process that ended.
pub fn measure(args: &SpeedArgs) -> Result<Option<Report>> {
    let device = args.machine.ready()?;
    if args.pass.contains(&Pass::Step) {
        return measure_steps(args, device);
    }
    let sizes = Size::parse_list(&args.sizes_or("A"))?;
    if args.serve.is_some() {
        scaling::run(&sizes[0], args.dtype[0], args.pass[0], device)?;
        return Ok(None);
    }
    let mut report = Report::begin(device);
    let bandwidth = bandwidth::read_gbps();
    report.machine.read_gbps = Some(bandwidth);
    for size in &sizes {
        for &dtype in &args.dtype {
            let bank = layers::Bank::new(size, dtype, device);
            for &pass in &args.pass {
                let bound = layers::bound(&bank, pass, bandwidth);
                let mut candidates = layers::candidates(&bank, pass)?;
                if pass != Pass::Route {
                    let (found, missing) = peers::layers(args, &bank, pass)?;
                    candidates.extend(found);
                    report.miss(missing);
                }
                report.rows.extend(rows(args, &bank, pass, bound, candidates)?);
            }
        }
    }
    Ok(Some(report))
}

/// The same for training steps, whose sizes are others.
fn measure_steps(args: &SpeedArgs, device: Device) -> Result<Option<Report>> {
    if args.pass.iter().any(|pass| *pass != Pass::Step) {
        return Err(Misuse::new("--pass step: has sizes of its own and stands alone").into());
    }
    let names = args.sizes_or("s");
    let sizes: Vec<StepSize> =
        names.iter().map(|name| StepSize::named(name)).collect::<Result<_, _>>()?;
    if let Some(name) = &args.serve {
        step::serve::run(Variant::named(name)?, &sizes[0], args.dtype[0], device)?;
        return Ok(None);
    }
    let mut report = Report::begin(device);
    for size in &sizes {
        for &dtype in &args.dtype {
            let (rows, missing) = step::rows(args, size, dtype)?;
            report.rows.extend(rows);
            report.miss(missing);
        }
    }
    Ok(Some(report))
}

/// Runs the candidates of one size, dtype and pass in turns.
fn rows(
    args: &SpeedArgs,
    bank: &layers::Bank,
    pass: Pass,
    bound: layers::Bound,
    mut candidates: Vec<Candidate>,
) -> Result<Vec<Row>> {
    let fixed = match bound {
        layers::Bound::Products(candidate) => {
            candidates.insert(0, candidate);
            None
        }
        layers::Bound::Seconds(seconds) => Some(seconds),
        layers::Bound::First => None,
    };
    let rounds = Rounds::run(&mut candidates, args.rounds, args.seconds)?;
    let size = &bank.size;
    let moe = candidates.iter().position(|candidate| candidate.name == layers::DEFAULT);
    let row = |index: usize, candidate: &Candidate| {
        // Who reads half the bytes could be done in half the time.
        let read = fixed.map(|s| vec![s * candidate.weight_share; rounds.count()]);
        let bound = read.unwrap_or_else(|| rounds.seconds[0].clone());
        let (ratio, ci) = rounds.ratio(&bound, index);
        let seconds = rounds.median(index);
        Row {
            size: size.name.clone(),
            dtype: bank.dtype,
            pass,
            name: candidate.name.clone(),
            ms: seconds * 1e3,
            gflops: size.flops(pass).map(|flops| flops / seconds / 1e9),
            gbps: bank
                .decode_bytes()
                .filter(|_| pass == Pass::Forward)
                .map(|bytes| bytes * candidate.weight_share / seconds / 1e9),
            ratio_to_dense: Some(ratio),
            ci: Some(ci),
            moe_is_faster: moe.map(|moe| rounds.ratio_of(index, moe)),
            routing_share: candidate.routing_share(),
            step: None,
        }
    };
    Ok(candidates.iter().enumerate().map(|(index, candidate)| row(index, candidate)).collect())
}
