//! `moe speed --scaling`: time and memory of a layer against one of its sizes, the others held.
//!
//! Every point is a process of its own, so that its peak memory is its own. A slope is that of the
//! logarithms: 1 is in proportion, 0 is not at all. Where the sizes beside it stay, neither time nor memory
//! should grow faster than in proportion; a step between neighbours that does is named.

pub mod draw;

use super::child::{Answer, Hello, Server, Started, serve};
use super::layers::{self, DEFAULT};
use super::machine::Machine;
use super::rounds::median;
use super::size::Size;
use super::{Dtype, Pass};
use crate::cli::SpeedArgs;
use crate::environment::{device_name, peak_memory_bytes};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::process::Command;
use std::time::Instant;
use tch::Device;

/// Name under which this program serves the points of a curve.
pub const SERVED: &str = "layer";

/// Rounds before the measured ones of a point.
const WARM_UP: usize = 2;

/// A slope between neighbours above this is named: more than in proportion, and more than noise.
pub const STEEP: f64 = 1.15;

/// Which size grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Tokens, 256 to 65,536.
    Tokens,
    /// Experts, 8 to 1,024.
    Experts,
    /// Experts of a token, 1 to 8.
    K,
    /// Model width, 64 to 1,024.
    Width,
}

impl Axis {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Experts => "experts",
            Self::K => "k",
            Self::Width => "width",
        }
    }

    /// The values of the points.
    fn values(self) -> &'static [i64] {
        match self {
            Self::Tokens => &[256, 1024, 4096, 16_384, 65_536],
            Self::Experts => &[8, 32, 128, 512, 1024],
            Self::K => &[1, 2, 4, 8],
            Self::Width => &[64, 128, 256, 512, 1024],
        }
    }

    /// Tokens, width, hidden width, experts and k at a point: 4096/256/512/16/2 but for this axis.
    fn size(self, value: i64) -> [i64; 5] {
        let place = match self {
            Self::Tokens => 0,
            Self::Width => 1,
            Self::Experts => 3,
            Self::K => 4,
        };
        let mut numbers = [4096, 256, 512, 16, 2];
        numbers[place] = value;
        numbers
    }
}

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Value of the size that grows.
    pub value: i64,
    /// Median time of a round, milliseconds.
    pub ms: f64,
    /// Fastest and slowest round.
    pub range_ms: [f64; 2],
    /// What the process's largest resident set grew by for the layer, its gradients and its work, MiB.
    pub peak_mib: f64,
}

/// Time and memory against one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The size that grows.
    pub axis: Axis,
    /// What is timed.
    pub pass: Pass,
    /// Element type of the products.
    pub dtype: Dtype,
    /// By value.
    pub points: Vec<Point>,
    /// Fitted slope of the times.
    pub time_slope: f64,
    /// Fitted slope of the memory.
    pub memory_slope: f64,
    /// Values up to which a step of time or memory was steeper than [`STEEP`].
    pub super_linear: Vec<i64>,
}

/// All curves of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The machine.
    pub machine: Machine,
    /// One for each axis, pass and element type.
    pub curves: Vec<Curve>,
}

impl Curve {
    fn new((axis, pass, dtype): (Axis, Pass, Dtype), points: Vec<Point>) -> Self {
        let times: Vec<_> = points.iter().map(|p| (p.value as f64, p.ms)).collect();
        let memory: Vec<_> = points.iter().map(|p| (p.value as f64, p.peak_mib)).collect();
        let steep = |ends: &[(f64, f64)]| slope(ends) > STEEP;
        let steps = times.windows(2).zip(memory.windows(2));
        let super_linear = steps.filter(|(time, memory)| steep(time) || steep(memory));
        Self {
            axis,
            pass,
            dtype,
            time_slope: slope(&times),
            memory_slope: slope(&memory),
            super_linear: super_linear.map(|(time, _)| time[1].0 as i64).collect(),
            points,
        }
    }
}

/// The slope of `ln y` over `ln x` by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|p| p.0), mean(|p| p.1));
    let shared: f64 = logs.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    shared / logs.iter().map(|(x, _)| (x - x_mean).powi(2)).sum::<f64>()
}

/// Measures every curve that `args` ask for; `before` gets the name of each point before it.
///
/// # Errors
/// A process that ended.
pub fn measure(args: &SpeedArgs, before: impl Fn(&str)) -> Result<Scaling> {
    let machine = Machine::now(args.machine.ready()?);
    let mut curves = Vec::new();
    for &axis in &args.scaling {
        for &dtype in &args.dtype {
            for &pass in args.pass.iter().filter(|pass| !matches!(pass, Pass::Route | Pass::Step)) {
                let points = axis.values().iter().map(|&value| {
                    before(&format!("{} {value}, {}", axis.name(), dtype.name()));
                    point(args, axis, value, (pass, dtype))
                });
                curves.push(Curve::new((axis, pass, dtype), points.collect::<Result<_>>()?));
            }
        }
    }
    Ok(Scaling { machine, curves })
}

fn point(args: &SpeedArgs, axis: Axis, value: i64, (pass, dtype): (Pass, Dtype)) -> Result<Point> {
    let name = format!("{} {value}", axis.name());
    let mut server = match Server::start(&name, &mut command(args, axis.size(value), pass, dtype)?)?
    {
        Started::Ready(server) => server,
        Started::Missing(what) => bail!("{name}: {what}"),
    };
    for _ in 0..WARM_UP {
        server.round()?;
    }
    let start = Instant::now();
    let (mut ms, mut peak) = (Vec::new(), 0);
    while ms.len() < 3 || ms.len() < args.rounds && start.elapsed().as_secs_f64() < args.seconds {
        let answer = server.round()?;
        ms.push(answer.seconds * 1e3);
        peak = answer.peak_bytes.unwrap_or(0);
    }
    let ends = |of: fn(f64, f64) -> f64| ms.iter().copied().reduce(of).unwrap_or(f64::NAN);
    let range_ms = [ends(f64::min), ends(f64::max)];
    Ok(Point { value, ms: median(&mut ms), range_ms, peak_mib: peak as f64 / 1_048_576.0 })
}

/// This program, serving a layer.
fn command(args: &SpeedArgs, numbers: [i64; 5], pass: Pass, dtype: Dtype) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    let threads = args.machine.thread_count().to_string();
    let pass = if pass == Pass::Forward { "forward" } else { "forward_backward" };
    command
        .args(["speed", "--pass", pass, "--sizes", &numbers.map(|n| n.to_string()).join("/")])
        .args(["--dtype", dtype.name(), "--serve", SERVED, "--threads", &threads])
        .args(["--device", &device_name(args.machine.device)])
        .env("RAYON_NUM_THREADS", &threads)
        .env("OMP_NUM_THREADS", &threads);
    Ok(command)
}

/// Serves rounds of the default path of a layer until standard input ends. The peak that it tells is what
/// the process grew by since before the layer was made.
///
/// # Errors
/// A router that does not fit the size, or a parent that is gone.
pub fn run(size: &Size, dtype: Dtype, pass: Pass, device: Device) -> Result<()> {
    let before = peak_memory_bytes();
    let bank = layers::Bank::new(size, dtype, device);
    let found = layers::candidates(&bank, pass)?;
    let mut layer = found.into_iter().find(|one| one.name == DEFAULT).context("no default path")?;
    serve(&Hello::Ready(SERVED.into()), || {
        let seconds = layer.time()?;
        let peak_bytes = Some(peak_memory_bytes() - before);
        Ok(Answer { seconds, peak_bytes, ..Answer::default() })
    })
}

/// For people: a line a point, and the slopes.
pub fn render(scaling: &Scaling) -> String {
    let mut text = String::new();
    for curve in &scaling.curves {
        let _ = writeln!(
            text,
            "{} {:?} {}: slope of time {:.2}, of memory {:.2}",
            curve.axis.name(),
            curve.pass,
            curve.dtype.name(),
            curve.time_slope,
            curve.memory_slope
        );
        for point in &curve.points {
            let steep = curve.super_linear.contains(&point.value);
            let note = if steep { "  steeper than in proportion" } else { "" };
            let (low, high) = (point.range_ms[0], point.range_ms[1]);
            let _ = writeln!(
                text,
                "{:>8} {:>10.2} ms [{low:.2}, {high:.2}] {:>9.1} MiB{note}",
                point.value, point.ms, point.peak_mib
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_by_hand() {
        assert!((slope(&[(1.0, 5.0), (2.0, 10.0), (4.0, 20.0)]) - 1.0).abs() < 1e-12);
        assert!((slope(&[(10.0, 3.0), (100.0, 300.0)]) - 2.0).abs() < 1e-12);
        assert!(slope(&[(8.0, 7.0), (16.0, 7.0), (32.0, 7.0)]).abs() < 1e-12);
    }

    /// In proportion up to 4, then four times the memory for twice the value.
    #[test]
    fn steep_steps_are_named() {
        let point = |value: i64, peak_mib| {
            let ms = value as f64;
            Point { value, ms, range_ms: [ms, ms], peak_mib }
        };
        let points = vec![point(2, 10.0), point(4, 20.0), point(8, 80.0)];
        let curve = Curve::new((Axis::K, Pass::Forward, Dtype::F32), points);
        assert_eq!(curve.super_linear, [8]);
        assert!((curve.time_slope - 1.0).abs() < 1e-12 && curve.memory_slope > STEEP);
    }

    /// Every point is a size, and only the axis's number moves.
    #[test]
    fn points_are_sizes() {
        for axis in [Axis::Tokens, Axis::Experts, Axis::K, Axis::Width] {
            let names =
                axis.values().iter().map(|v| axis.size(*v).map(|n| n.to_string()).join("/"));
            let sizes = Size::parse_list(&names.collect::<Vec<_>>()).unwrap();
            let rows: Vec<i64> = sizes.iter().map(Size::rows).collect();
            assert!(rows.is_sorted() && sizes.len() >= 4, "{axis:?}");
        }
    }
}
