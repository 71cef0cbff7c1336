//! What was recorded, and how far a run may be from it.

use super::short_run::ShortRun;
use crate::environment::environment;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use tch::Device;

/// Version of the file's layout.
pub(super) const SCHEMA: &str = "moe.gate/1";

/// Nats by which a loss may differ on another class of machine. Between the AVX-512, AVX2, SSE and plain code
/// of libtorch, oneDNN and MKL on one processor, losses differ by 5e-7 at most, but those of [`UNSTEADY`]
/// rules by 0.11; other processors were not tried.
const LOSS_BAND: f64 = 0.02;
const UNSTEADY_BAND: f64 = 0.2;

/// In the names of rules whose steps divide by small second moments: a rounding grows to another curve.
const UNSTEADY: &str = "adam";

/// How far a loss of this router may be from the recorded one on another class of machine.
pub(super) fn loss_band(router: &str) -> f64 {
    if router.contains(UNSTEADY) { UNSTEADY_BAND } else { LOSS_BAND }
}

/// A band is wider than what the seeds span by this share of it to both sides, and at least by
/// [`FLOOR`] of the value and [`LEAST`].
const MARGIN: f64 = 1.0;
const FLOOR: f64 = 0.02;
const LEAST: f64 = 1e-3;

/// Machines on which the same program gives the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Class {
    platform: String,
    cpu: String,
    cpu_features: Vec<String>,
    threads: usize,
    libtorch: String,
    /// Variables that keep libraries from instructions of the machine, `NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    limits: Vec<String>,
}

/// The variables of libtorch, oneDNN and MKL by which a user takes other instructions than the machine's best.
const LIMITS: [&str; 5] = [
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
];

/// Those that are set.
fn limits(variable: impl Fn(&str) -> Option<OsString>) -> Vec<String> {
    let set = |name| Some(format!("{name}={}", variable(name)?.to_string_lossy()));
    LIMITS.into_iter().filter_map(set).collect()
}

impl Class {
    /// This one; gates run on one thread.
    pub(super) fn here() -> Self {
        let found = environment(Device::Cpu);
        Self {
            platform: found.platform,
            cpu: found.cpu,
            cpu_features: found.cpu_features,
            threads: 1,
            libtorch: found.libtorch,
            limits: limits(|name| std::env::var_os(name)),
        }
    }
}

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Baselines {
    /// Always [`SCHEMA`].
    pub(super) schema: String,
    /// Where losses are exact.
    pub(super) class: Class,
    /// By name, as `moe compare --routers` takes it.
    pub(super) routers: BTreeMap<String, Baseline>,
}

/// One router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// Training loss of every step, then the validation loss.
    losses: Vec<f64>,
    /// Bands of routing measures, lowest and highest value.
    quality: BTreeMap<String, [f64; 2]>,
}

/// A gate that is crossed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    router: String,
    gate: &'static str,
    what: String,
}

impl Fault {
    pub(super) fn new(router: &str, gate: &'static str, what: String) -> Self {
        Self { router: router.into(), gate, what }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {}: {}", self.gate, self.router, self.what)
    }
}

impl Baselines {
    /// Nothing recorded yet, on this machine.
    pub(super) fn empty() -> Self {
        Self { schema: SCHEMA.into(), class: Class::here(), routers: BTreeMap::new() }
    }
}

impl Baseline {
    /// The losses of the first run, and bands around what all runs measured.
    pub(super) fn of(runs: &[ShortRun]) -> Self {
        let names = runs[0].quality.keys();
        let band = |name: &String| {
            let values = || runs.iter().filter_map(|run| run.quality.get(name).copied());
            (
                name.clone(),
                band(values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max)),
            )
        };
        Self { losses: runs[0].losses.clone(), quality: names.map(band).collect() }
    }

    /// What is wrong with a run: gate and reason. Losses lie within `nats`, or are the same bits without.
    pub(super) fn faults(&self, run: &ShortRun, nats: Option<f64>) -> Vec<(&'static str, String)> {
        let curve = self.curve_fault(&run.losses, nats).map(|what| ("curve", what));
        let quality =
            self.quality.iter().filter_map(|(name, &[low, high])| match run.quality.get(name) {
                Some(value) if (low..=high).contains(value) => None,
                Some(value) => Some(format!("{name} {value:.4}, expected {low:.4} to {high:.4}")),
                None => Some(format!("{name} is gone")),
            });
        let new = run.quality.keys().filter(|name| !self.quality.contains_key(*name));
        let new = new.map(|name| format!("{name} has no band"));
        curve.into_iter().chain(quality.chain(new).map(|what| ("quality", what))).collect()
    }

    fn curve_fault(&self, losses: &[f64], nats: Option<f64>) -> Option<String> {
        if losses.len() != self.losses.len() {
            return Some(format!("{} losses, expected {}", losses.len(), self.losses.len()));
        }
        let off = |(got, want): (&f64, &f64)| match nats {
            None => got.to_bits() != want.to_bits(),
            // A NaN is in no band.
            Some(nats) => got.is_nan() || (got - want).abs() > nats,
        };
        let at = losses.iter().zip(&self.losses).position(off)?;
        let (got, want) = (losses[at], self.losses[at]);
        let where_ = match at + 1 == losses.len() {
            true => "validation".to_owned(),
            false => format!("step {}", at + 1),
        };
        Some(format!("{where_}: loss {got}, expected {want} ({:+.2e})", got - want))
    }
}

fn band(low: f64, high: f64) -> [f64; 2] {
    let room = (MARGIN * (high - low)).max(FLOOR * low.abs().max(high.abs())).max(LEAST);
    [low - room, high + room]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(losses: &[f64], imbalance: f64) -> ShortRun {
        let quality = BTreeMap::from([("load_imbalance".to_owned(), imbalance)]);
        ShortRun { losses: losses.to_vec(), quality }
    }

    fn baseline() -> Baseline {
        Baseline::of(&[run(&[3.0, 2.0], 1.0), run(&[9.0, 9.0], 2.0)])
    }

    #[test]
    fn the_first_seed_is_the_curve_and_all_seeds_are_the_band() {
        assert_eq!(baseline().losses, [3.0, 2.0]);
        assert_eq!(baseline().quality["load_imbalance"], [0.0, 3.0]);
        assert_eq!(band(2.0, 2.0), [2.0 - 0.04, 2.0 + 0.04]);
        assert_eq!(band(0.0, 0.0), [-LEAST, LEAST]);
        assert!(baseline().faults(&run(&[3.0, 2.0], 1.5), None).is_empty());
    }

    #[test]
    fn a_machine_held_back_is_of_another_class() {
        let class = Class::here();
        let recorded = serde_json::to_string(&class).unwrap();
        assert_eq!(serde_json::from_str::<Class>(&recorded).unwrap(), class);
        let avx2 = limits(|name| (name == "ATEN_CPU_CAPABILITY").then(|| "avx2".into()));
        assert_eq!(avx2, ["ATEN_CPU_CAPABILITY=avx2"]);
        assert_ne!(
            Class { limits: avx2, ..class.clone() },
            Class { limits: limits(|_| None), ..class }
        );
    }

    #[test]
    fn one_bit_counts_where_it_was_recorded_and_only_there() {
        let off = run(&[3.0, f64::from_bits(2f64.to_bits() + 1)], 1.5);
        let faults = baseline().faults(&off, None);
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].0 == "curve"
                && faults[0].1.starts_with("validation: loss 2.0000000000000004")
        );
        let nats = Some(loss_band("smoe"));
        assert!(baseline().faults(&off, nats).is_empty());
        let far = run(&[3.0 + 1.1 * LOSS_BAND, 2.0], 1.5);
        let unsteady = Some(loss_band("smoe+momentum:adam_model"));
        assert!(baseline().faults(&far, unsteady).is_empty());
        assert!(baseline().faults(&far, nats)[0].1.starts_with("step 1: loss"));
        assert_eq!(baseline().faults(&run(&[f64::NAN, 2.0], 1.5), nats).len(), 1);
        assert!(baseline().faults(&run(&[3.0], 1.5), nats)[0].1.contains("1 losses"));
    }

    #[test]
    fn routing_leaves_its_band() {
        let of = |imbalance| baseline().faults(&run(&[3.0, 2.0], imbalance), None);
        assert_eq!(
            of(3.1),
            [("quality", "load_imbalance 3.1000, expected 0.0000 to 3.0000".to_owned())]
        );
        assert_eq!(of(f64::NAN).len(), 1);
        let mut bare = run(&[3.0, 2.0], 1.0);
        bare.quality = BTreeMap::from([("load_cv".to_owned(), 0.0)]);
        let faults = baseline().faults(&bare, None);
        let want = ["load_imbalance is gone", "load_cv has no band"];
        assert_eq!(faults.iter().map(|f| f.1.as_str()).collect::<Vec<_>>(), want);
    }

    #[test]
    fn baselines_survive_json_bit_by_bit() {
        let mut all = Baselines::empty();
        all.routers.insert("a".into(), Baseline::of(&[run(&[0.1 + 0.2, 1.0 / 3.0], 1e-300)]));
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Baselines>(&json).unwrap(), all);
    }
}
