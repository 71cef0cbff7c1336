//! SMoE-Dropout: a random router that is never trained, and ever more experts per token.
//!
//! *Sparse MoE as the New Dropout: Scaling Dense and Self-Slimmable Transformers*, Chen, Zhang,
//! Jaiswal, Liu, Wang, 2023, arXiv 2303.01610.
//!
//! ```text
//! l = W x,  W random and frozen                                                          (1)
//! T = top-k of l,  g = softmax of l over T                                               (2)
//! k = k(s) grows with the training step s, from k_min to k_max over S steps              (3)
//!   linear_increase  r((k_max - k_min) s/S) + k_min      linear_decrease  the mirror image
//!   cosine_increase  r((k_min - k_max) cos(pi s/(2S))) + k_max
//!   cosine_decrease  r((k_max - k_min) cos(pi s/(2S))) + k_min
//!   exp_increase     r((k_min - k_max) 0.99^(s div (S div 300))) + k_max
//! ```
//!
//! `r` rounds half to even; k is clipped to `[k_min, k_max]`. Numbers in brackets count the steps
//! of the method.

use crate::config::{ConfigError, Part, Preset, RouterConfig, Settings, Tie, resolve, to_settings};
use crate::convert::to_host;
use crate::params::{Init, Params, Role};
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError, score};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "smoe-dropout",
    title: "Sparse MoE as the New Dropout: Scaling Dense and Self-Slimmable Transformers",
    authors: "Chen et al. 2023",
    arxiv: "2303.01610",
    idea: "The router is random and frozen; the number of experts per token grows during training.\n\
        Trained routers can collapse, and a model trained with few experts gains little from more of them later.\n\
        No expert can rely on the company of certain others, which is meant to regularise as dropout does.\n\
        Afterwards the model may run with any number of experts.",
    state: "no parameters; buffer: frozen router W [e, d]",
    cost: "k expert calls, k from `k_min` to `k_max` over the training (preset `paper`: half of the experts to all); a selection of k and a softmax over e",
    equations: &[("(1)-(2)", "SmoeDropout::route"), ("(3)", "Schedule::top_k")],
    deviations: &[
        "preset `paper` grows from half of the experts to all, as on enwik8 (8 to 16 of 16)",
        "preset `compete_smoe` is CompeteSMoE's version: the gate is frozen, k stays 2",
        "`steps_total` is a number of steps; a recipe that does not give it takes the length of its run",
        "experts are sized for the k of evaluation; training is cheaper until k has grown",
    ],
    unverified: &["the schedule and range of k of each experiment"],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// How k changes (3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Evenly up.
    LinearIncrease,
    /// Evenly down.
    LinearDecrease,
    /// Up, fastest at the end.
    CosineIncrease,
    /// Down, fastest at the end.
    CosineDecrease,
    /// Up, fastest at the start; needs 300 steps.
    ExpIncrease,
}

/// Ends of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Least k.
    pub k_min: usize,
    /// Most k.
    pub k_max: usize,
    /// Steps between them, `S`.
    pub steps_total: u64,
}

impl Schedule {
    /// Refuses a range that has no steps, or too few of them.
    ///
    /// # Errors
    /// Names `k_min` or `steps_total`.
    pub fn check(self, range: Range) -> Result<(), ConfigError> {
        let Range { k_min, k_max, steps_total } = range;
        if k_min == 0 || k_min > k_max {
            let reason = format!("{k_min} is outside 1..={k_max} (k_max)");
            return Err(ConfigError::setting("k_min", reason));
        }
        let least = if self == Self::ExpIncrease { 300 } else { 1 };
        if steps_total < least {
            let reason = format!("{steps_total} must be at least {least}");
            return Err(ConfigError::setting("steps_total", reason));
        }
        Ok(())
    }

    /// (3): experts per token at step `step`.
    pub fn top_k(self, range: Range, step: u64) -> usize {
        let [min, max] = [range.k_min, range.k_max].map(|k| k as f64);
        let (s, steps) = (step as f64, range.steps_total as f64);
        let cos = (PI * s / (2.0 * steps)).cos();
        let k = match self {
            Self::LinearIncrease => ((max - min) * s / steps).round_ties_even() + min,
            Self::LinearDecrease => ((min - max) * s / steps).round_ties_even() + max,
            Self::CosineIncrease => ((min - max) * cos).round_ties_even() + max,
            Self::CosineDecrease => ((max - min) * cos).round_ties_even() + min,
            Self::ExpIncrease => {
                let stage = step / (range.steps_total / 300);
                ((min - max) * 0.99f64.powf(stage as f64)).round_ties_even() + max
            }
        };
        k.clamp(min, max) as usize
    }
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How k changes.
    pub schedule: Schedule,
    /// Least k; `null` is half of the experts, at least 1.
    pub k_min: Option<usize>,
    /// Most k; `null` is all experts.
    pub k_max: Option<usize>,
    /// Steps from one to the other.
    pub steps_total: u64,
    /// k of evaluation; `null` is `k_max`.
    pub k_eval: Option<usize>,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper", "compete_smoe"];

    fn preset(name: &str) -> Self {
        let k = (name == "compete_smoe").then_some(2);
        let schedule = Schedule::LinearIncrease;
        Self { schedule, k_min: k, k_max: k, steps_total: 10_000, k_eval: None }
    }
}

impl Config {
    fn range(&self, experts: usize) -> Range {
        Range {
            k_min: self.k_min.unwrap_or((experts / 2).max(1)),
            k_max: self.k_max.unwrap_or(experts),
            steps_total: self.steps_total,
        }
    }

    /// k in training step `Some(s)`, or of evaluation.
    fn top_k(&self, experts: usize, step: Option<u64>) -> usize {
        let range = self.range(experts);
        let eval = self.k_eval.unwrap_or(range.k_max);
        step.map_or(eval, |step| self.schedule.top_k(range, step))
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        let range = self.range(experts);
        self.schedule.check(range)?;
        for (key, k) in [("k_max", range.k_max), ("k_eval", self.top_k(experts, None))] {
            if !(1..=experts).contains(&k) {
                let reason = format!("{k} is outside 1..={experts} (experts)");
                return Err(ConfigError::setting(key, reason));
            }
        }
        Ok(())
    }

    fn ties(&self) -> &'static [(&'static str, Tie)] {
        &[("steps_total", Tie::ShareOfSteps(1.0))]
    }

    fn active_experts(&self, experts: usize) -> f64 {
        self.top_k(experts, None) as f64
    }

    fn causal(&self) -> bool {
        true
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => None,
            Part::Balance | Part::ZLoss => Some("its router is frozen; no gradient reaches it"),
        }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let (shape, std) = ([dims.experts, dims.width], (1.0 / dims.width as f64).sqrt());
        let gate_ed = params.add("gate", &shape, Init::Normal(std), Role::Buffer);
        Box::new(SmoeDropout { gate_ed, config: self.clone() })
    }
}

/// The frozen router.
#[derive(Debug)]
struct SmoeDropout {
    gate_ed: Tensor,
    config: Config,
}

impl Router for SmoeDropout {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>); // (1)
        let ((_, t, e), kind) = (axes3(&logits_gte), logits_gte.kind());
        let k = self.config.top_k(e as usize, cx.step()); // (3)
        let choices = ChoicesGtk::top_k(&logits_gte, k as i64); // (2)
        let gate_gtk = choices.gate_gtk.softmax(-1, kind);
        let room = room(cx.capacity, None, (t as usize, e as usize, k))?;
        let chosen = Chosen { choices: choices.with_gates(gate_gtk), experts: e, room };
        let gate_gte = logits_gte.detach().softmax(-1, kind);
        Ok(chosen.routing(logits_gte, gate_gte, Vec::new()))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host { gate_ed: to_host(&self.gate_ed), config: self.config.clone() })
    }
}

struct Host {
    gate_ed: Array2<f64>,
    config: Config,
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t()); // (1)
        let (t, e) = logits_te.dim();
        let k = self.config.top_k(e, input.train.then_some(input.step)); // (3)
        let choices = Choices::top_k(logits_te.view(), k); // (2)
        let gate_tk = score::softmax(choices.gate_tk.view());
        let room = room(input.capacity, None, (t, e, k))?;
        let chosen = moe_core::Chosen::new(choices.with_gates(gate_tk), e, room)?;
        let gate_te = score::softmax(logits_te.view());
        Ok(chosen.routing(logits_te, gate_te, Vec::new())?)
    }
}

#[cfg(test)]
mod tests;
