//! Learning rate as a function of the step.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate falls after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// It does not.
    Constant,
    /// Half a cosine, from the peak to the floor.
    Cosine,
    /// A straight line, from the peak to the floor.
    Linear,
}

/// Linear warm-up, then decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Lowest one after decay, as a share of the peak.
    pub floor: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// Learning rate of step `step`, counted from 0.
    ///
    /// Warm-up ends at the peak on step `warmup - 1`; the floor is reached on the last step.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.steps.saturating_sub(self.warmup + 1).max(1);
        let progress = ((step - self.warmup) as f64 / length as f64).min(1.0);
        let fall = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1.0 - progress,
        };
        self.peak * (self.floor + (1.0 - self.floor) * fall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 1.0, floor: 0.1, warmup: 4, steps: 15, decay }
    }

    #[test]
    fn warms_up_to_the_peak_and_falls_to_the_floor() {
        for decay in [Decay::Cosine, Decay::Linear] {
            let s = schedule(decay);
            assert_eq!([s.at(0), s.at(1), s.at(3), s.at(4)], [0.25, 0.5, 1.0, 1.0]);
            // Steps 4..=14 are eleven, ten apart: half way at step 9.
            assert!((s.at(9) - 0.55).abs() < 1e-12, "{decay:?}");
            assert!((s.at(14) - 0.1).abs() < 1e-12, "{decay:?}");
            assert!((s.at(99) - 0.1).abs() < 1e-12, "{decay:?}");
        }
    }

    #[test]
    fn constant_stays_at_the_peak_and_one_step_is_enough() {
        assert_eq!(schedule(Decay::Constant).at(14), 1.0);
        let single = Schedule { warmup: 0, steps: 1, ..schedule(Decay::Cosine) };
        assert_eq!(single.at(0), 1.0);
    }
}
