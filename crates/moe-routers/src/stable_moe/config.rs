//! Settings of StableMoE: stages, capacity, the size of the distilled router.

use super::{StableMoe, Student};
use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, Tie, check_positive, check_weight, to_settings,
};
use crate::params::{Init, Params, Role};
use crate::router::{Dims, Router, room};
use moe_core::{CapacityError, CapacityPolicy, CapacityRule, DropOrder, Limit};
use serde::{Deserialize, Serialize};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Training steps of stage 1.
    pub stage1_steps: u64,
    /// Rows that an expert keeps of a group; wins over the factor.
    pub capacity: Option<usize>,
    /// Capacity factor of `int(factor T / E)`; with no `capacity` either, room is unlimited.
    pub capacity_factor: Option<f64>,
    /// Weight of the balance loss (4).
    pub balance_weight: f64,
    /// Weight of the distillation loss (5).
    pub distill_weight: f64,
    /// Ids of the vocabulary.
    pub vocab: usize,
    /// Width of a word embedding; 0 is no distilled router, and then stage 1 is all there is.
    pub word_width: usize,
    /// Length of the orthogonal initial centroids.
    pub gain: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper"];

    fn preset(_: &str) -> Self {
        Self {
            stage1_steps: 6000,
            capacity: None,
            capacity_factor: Some(2.0),
            balance_weight: 0.3,
            distill_weight: 0.3,
            // Above the largest vocabulary in use here (50257).
            vocab: 1 << 16,
            word_width: 50,
            gain: 0.1,
        }
    }
}

impl Config {
    /// Whether training step `step` belongs to stage 1; evaluation, `None`, never does (6).
    pub(super) fn stage_1(&self, step: Option<u64>) -> bool {
        step.is_some_and(|step| step < self.stage1_steps)
    }

    /// The recipe's room if it has a policy, else the paper's own, handed out in token order.
    pub(super) fn room(
        &self,
        chosen: Option<&CapacityPolicy>,
        tokens: usize,
        experts: usize,
    ) -> Result<(Option<usize>, DropOrder), CapacityError> {
        let limit = match (self.capacity, self.capacity_factor) {
            (Some(rows), _) => Limit::Fixed(rows),
            (None, Some(factor)) => {
                Limit::Factor { factor, rule: CapacityRule::Floor, min: Some(1) }
            }
            (None, None) => Limit::Unlimited,
        };
        let own = CapacityPolicy { limit, order: DropOrder::Arrival };
        room(chosen, Some(&own), (tokens, experts, 1))
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        if self.capacity == Some(0) {
            return Err(ConfigError::setting("capacity", "0 must be at least 1"));
        }
        self.capacity_factor.map_or(Ok(()), |c| check_positive("capacity_factor", c))?;
        check_weight("balance_weight", self.balance_weight)?;
        check_weight("distill_weight", self.distill_weight)?;
        check_positive("vocab", self.vocab as f64)?;
        check_positive("gain", self.gain)
    }

    fn ties(&self) -> &'static [(&'static str, Tie)] {
        // 6000 of 60000 updates in the released example.
        &[("stage1_steps", Tie::ShareOfSteps(0.1)), ("vocab", Tie::Vocab)]
    }

    fn active_experts(&self, _: usize) -> f64 {
        1.0
    }

    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let centroids = |name: &str, width: i64| {
            let init = Init::Orthogonal(self.gain);
            params.add(name, &[dims.experts, width], init, Role::Decayed)
        };
        let width = self.word_width as i64;
        let student = || Student {
            word_emb_vw: params.matrix("word_emb", &[self.vocab as i64, width], 0.02),
            distilled_ew: centroids("distilled", width),
        };
        Box::new(StableMoe {
            centroids_ed: centroids("centroids", dims.width),
            student: (width > 0).then(student),
            config: self.clone(),
        })
    }
}
