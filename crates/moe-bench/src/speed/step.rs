//! A whole training step: ours, a dense model's, other programs', each in a process of its own.
//!
//! A process each, because allocator settings, thread pools and peak memory belong to processes, and so
//! that other programs are treated as ours are. The processes live through the measurement and take turns
//! by rounds; while one computes, the others wait for a line on standard input.

pub mod model;
pub mod serve;
pub mod stream;

use super::child::{Answer, Server, Started};
use super::peers::STEPS;
use super::rounds::{Candidate, Rounds, median};
use super::{Dtype, Missing, Pass, Row, StepMeasures};
use crate::cli::SpeedArgs;
use anyhow::{Context, Result};
use model::StepSize;
use serve::Variant;
use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;

/// A candidate's answers, round by round.
type Answers = Rc<RefCell<Vec<Answer>>>;

/// The rows of one size and dtype, and the peers that are not there.
///
/// # Errors
/// A variant that is none, or a process that ended.
pub fn rows(args: &SpeedArgs, size: &StepSize, dtype: Dtype) -> Result<(Vec<Row>, Vec<Missing>)> {
    let mut turns = Turns::default();
    for name in &args.variants {
        let variant = Variant::named(name)?;
        turns.join(variant.name, &mut this_program(args, size, dtype, variant)?)?;
    }
    if let Some(python) = args.python()? {
        for (name, loss) in STEPS {
            turns.join(name, &mut python.step(size, dtype, loss))?;
        }
    }
    turns.measure(args, size, dtype)
}

/// This program, serving rounds of `variant`.
fn this_program(
    args: &SpeedArgs,
    size: &StepSize,
    dtype: Dtype,
    variant: Variant,
) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    let threads = args.machine.thread_count().to_string();
    let device = crate::environment::device_name(args.machine.device);
    command
        .args(["speed", "--pass", "step", "--sizes", size.name, "--dtype", dtype.name()])
        .args(["--serve", variant.name, "--threads", &threads, "--device", &device])
        .env("RAYON_NUM_THREADS", &threads)
        .env("OMP_NUM_THREADS", &threads);
    Ok(command)
}

/// Processes that take turns.
#[derive(Default)]
struct Turns {
    candidates: Vec<Candidate>,
    answers: Vec<Answers>,
    missing: Vec<Missing>,
}

impl Turns {
    fn join(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let mut server = match Server::start(name, command)? {
            Started::Ready(server) => server,
            Started::Missing(what) => {
                self.missing.push(Missing { peer: name.into(), what });
                return Ok(());
            }
        };
        let answers = Answers::default();
        let kept = Rc::clone(&answers);
        self.candidates.push(Candidate::timed(name, move || {
            let answer = server.round()?;
            let seconds = answer.seconds;
            kept.borrow_mut().push(answer);
            Ok(seconds)
        }));
        self.answers.push(answers);
        Ok(())
    }

    fn measure(
        mut self,
        args: &SpeedArgs,
        size: &StepSize,
        dtype: Dtype,
    ) -> Result<(Vec<Row>, Vec<Missing>)> {
        let rounds = Rounds::run(&mut self.candidates, args.rounds, args.seconds)?;
        let of = |name: &str| self.candidates.iter().position(|c| c.name == name);
        let (moe, dense) = (of(Variant::ALL[0].name), of("dense-model"));
        let row = |(index, candidate): (usize, &Candidate)| {
            let seconds = rounds.median(index);
            let ratio = |over: Option<usize>| over.map(|over| rounds.ratio_of(over, index));
            let answers = self.answers[index].borrow();
            Row {
                size: size.name.into(),
                dtype,
                pass: Pass::Step,
                name: candidate.name.clone(),
                ms: seconds * 1e3,
                gflops: Some(size.flops() / seconds / 1e9),
                gbps: None,
                ratio_to_dense: ratio(dense).map(|dense| dense.ratio),
                ci: ratio(dense).map(|dense| dense.ci),
                moe_is_faster: moe.map(|moe| rounds.ratio_of(index, moe)),
                routing_share: None,
                step: Some(measures(&answers, rounds.count(), size.tokens() as f64 / seconds)),
            }
        };
        let rows = self.candidates.iter().enumerate().map(row).collect();
        Ok((rows, self.missing))
    }
}

/// What a step tells besides its time; the last `rounds` answers are the measured ones.
fn measures(answers: &[Answer], rounds: usize, tokens_per_s: f64) -> StepMeasures {
    let measured = &answers[answers.len().saturating_sub(rounds)..];
    let phase = |i: usize| {
        let mut ms: Vec<f64> =
            measured.iter().filter_map(|a| a.phases).map(|p| p[i] * 1e3).collect();
        median(&mut ms)
    };
    StepMeasures {
        tokens_per_s,
        forward_ms: phase(0),
        backward_ms: phase(1),
        update_ms: phase(2),
        peak_mib: answers.last().and_then(|a| a.peak_bytes).map(|b| b as f64 / 1048576.0),
        first_loss: answers.first().and_then(|a| a.loss),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::tolerance::{relative_error, tolerance};
    use tch::{Device, Kind};

    /// Cross-entropies of the first steps.
    fn losses(size: &str, dtype: Dtype, lr: f64, steps: usize) -> Vec<f64> {
        let size = StepSize::named(size).unwrap();
        let mut trainer = Variant::ALL[0].trainer(&size, dtype, lr, Device::Cpu);
        (0..steps).map(|_| trainer.train_step().unwrap().loss).collect()
    }

    #[track_caller]
    fn assert_losses(got: &[f64], want: &[(usize, f64)]) {
        let limit = tolerance(Kind::Float).gradient;
        for (step, want) in want {
            let off = relative_error(got[*step], *want);
            assert!(off < limit, "step {step}: {} for {want}", got[*step]);
        }
    }

    /// What PyTorch 2.11.0 printed for the same model written in Python, learning rate 3e-4, AdamW and
    /// clipping as ours (its weight decay reaches norms too, which does not show in ten steps).
    #[test]
    fn a_tiny_model_takes_the_course_of_another_program() {
        let want = [(0, 4.16472), (1, 4.20136), (5, 4.18903), (10, 4.15073)];
        assert_losses(&losses("tiny", Dtype::F32, 3e-4, 11), &want);
    }

    /// Likewise, and as published with that program for size s: 9.06092, 9.06403.
    #[test]
    fn size_s_begins_where_another_program_begins() {
        assert_losses(&losses("s", Dtype::F32, 3e-4, 2), &[(0, 9.060_92), (1, 9.064_03)]);
    }

    /// Products in `bf16` follow the course of `f32` within the tolerance of `bf16`, and not to the bit.
    #[test]
    fn a_tiny_model_takes_the_same_course_in_bf16() {
        let want = losses("tiny", Dtype::F32, 3e-4, 11);
        let got = losses("tiny", Dtype::Bf16, 3e-4, 11);
        assert_ne!(got, want);
        for (got, want) in got.iter().zip(&want) {
            assert!(relative_error(*got, *want) < tolerance(Kind::BFloat16).value, "{got} {want}");
        }
    }

    /// 196.6 and 877.8 GF as published with that program, within its rounding.
    #[test]
    fn the_sizes_have_the_published_work() {
        for (size, want) in [("s", 196.6), ("m", 877.8)] {
            let giga = StepSize::named(size).unwrap().flops() / 1e9;
            assert!((giga / want - 1.0).abs() < 2e-3, "{size}: {giga}");
        }
    }

    #[test]
    fn variants_train_the_same_model_or_a_dense_one() {
        let size = StepSize::named("tiny").unwrap();
        let first = |name: &str| {
            let variant = Variant::named(name).unwrap();
            variant.trainer(&size, Dtype::F32, 0.0, Device::Cpu).train_step().unwrap()
        };
        let (moe, dense) = (first("moe"), first("dense-model"));
        assert!(moe.loss != dense.loss && moe.aux.len() == 1 && dense.aux.is_empty());
        let off = relative_error(first("accumulate").loss, moe.loss);
        assert!(off < tolerance(Kind::Float).value, "{off}");
        assert!(Variant::named("fastest").unwrap_err().to_string().contains("dense-model"));
    }
}
