//! `moe speed`: every way to run a sparse layer, interleaved in one process, against the dense bound.
//!
//! The bound is libtorch's matmul of the same FLOPs over the same number of rows, without routing,
//! activation or combine: what a layer could reach if everything but the products were free. For the
//! decode sizes it is the time to read the visited experts' weights at the measured read bandwidth.
//!
//! Machines are shared and noisy. Candidates take turns, a ratio is taken within a round, and the
//! figure is the median over rounds with an interval.

pub mod bandwidth;
pub mod layers;
pub mod machine;
pub mod rounds;
pub mod size;
pub mod table;

use crate::cli::SpeedArgs;
use anyhow::Result;
use rounds::{Candidate, Rounds};
use serde::{Deserialize, Serialize};
use size::Size;
use tch::Kind;

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
    /// Median over rounds of the bound's time over this one's; for `route`, of the first router's.
    pub ratio_to_dense: f64,
    /// 95 % interval of that median.
    pub ci: [f64; 2],
    /// Share of the time spent outside the experts: routing, plan, losses. Absent where not measured.
    pub routing_share: Option<f64>,
}

/// Everything that `moe speed` measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine.
    pub machine: machine::Machine,
    /// All rows.
    pub rows: Vec<Row>,
}

/// Measures what `args` ask for.
///
/// # Errors
/// A size or a device that cannot be used.
pub fn measure(args: &SpeedArgs) -> Result<Report> {
    let device = args.machine.ready()?;
    let sizes = Size::parse_list(&args.sizes)?;
    let mut report = Report { machine: machine::Machine::now(device), rows: Vec::new() };
    let bandwidth = bandwidth::read_gbps();
    report.machine.read_gbps = bandwidth;
    for size in &sizes {
        for &dtype in &args.dtype {
            let bank = layers::Bank::new(size, dtype, device);
            for &pass in &args.pass {
                let bound = layers::bound(&bank, pass, bandwidth);
                let candidates = layers::candidates(&bank, pass)?;
                report.rows.extend(rows(args, &bank, pass, bound, candidates));
            }
        }
    }
    Ok(report)
}

/// Runs the candidates of one size, dtype and pass in turns.
fn rows(
    args: &SpeedArgs,
    bank: &layers::Bank,
    pass: Pass,
    bound: layers::Bound,
    mut candidates: Vec<Candidate>,
) -> Vec<Row> {
    let fixed = match bound {
        layers::Bound::Products(candidate) => {
            candidates.insert(0, candidate);
            None
        }
        layers::Bound::Seconds(seconds) => Some(seconds),
        layers::Bound::First => None,
    };
    let rounds = Rounds::run(&mut candidates, args.rounds, args.seconds);
    let size = &bank.size;
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
            ratio_to_dense: ratio,
            ci,
            routing_share: candidate.routing_share(),
        }
    };
    candidates.iter().enumerate().map(|(index, candidate)| row(index, candidate)).collect()
}
