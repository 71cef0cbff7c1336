//! What the figures were measured on, and whether it was idle.

use crate::environment::environment;
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Duration;
use tch::Device;

/// The machine of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Instruction sets that matter.
    pub cpu_features: Vec<String>,
    /// Threads that libtorch uses.
    pub threads: usize,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// libtorch's version.
    pub libtorch: String,
    /// Commit of this build.
    pub commit: String,
    /// Measured read bandwidth, GB/s, where it is a bound.
    pub read_gbps: Option<f64>,
    /// Share of the machine that others used just before the measurement, 0 to 1; `None` where the
    /// system does not say.
    pub busy: Option<f64>,
}

impl Machine {
    /// This machine now; looks at it for half a second.
    pub fn now(device: Device) -> Self {
        let environment = environment(device);
        Self {
            cpu: environment.cpu,
            cpu_features: environment.cpu_features,
            threads: tch::get_num_threads() as usize,
            device: environment.device,
            libtorch: environment.libtorch,
            commit: environment.commit,
            read_gbps: None,
            busy: busy_share(Duration::from_millis(500)),
        }
    }
}

/// Share of all processors' time that was not idle while this thread rested.
fn busy_share(rest: Duration) -> Option<f64> {
    let before = ticks(&fs::read_to_string("/proc/stat").ok()?)?;
    std::thread::sleep(rest);
    let after = ticks(&fs::read_to_string("/proc/stat").ok()?)?;
    let (all, idle) = (after.0.checked_sub(before.0)?, after.1.checked_sub(before.1)?);
    (all > 0).then(|| 1.0 - idle as f64 / all as f64)
}

/// All ticks and idle ones (idle and waiting for disks) in the first line of `/proc/stat`.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let values: Vec<u64> =
        line.split_whitespace().map(|v| v.parse().ok()).collect::<Option<_>>()?;
    // Guests' time is counted in user time already.
    Some((values.iter().take(8).sum(), values.get(3)? + values.get(4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_by_hand() {
        let stat = "cpu  10 1 4 80 5 0 0 0 7 0\ncpu0 1 2 3\n";
        assert_eq!(ticks(stat), Some((100, 85)));
        assert_eq!(ticks("intr 5"), None);
    }
}
