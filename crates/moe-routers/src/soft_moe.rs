//! Soft MoE: slots read mixtures of tokens, tokens read mixtures of slots.
//!
//! *From Sparse to Soft Mixtures of Experts*, Puigcerver, Riquelme, Mustafa, Houlsby, 2023,
//! arXiv 2308.00951.
//!
//! ```text
//! L = norm(X) (scale norm(Phi))          norm: v / sqrt(sum v^2 + 1e-6) over d       (sec. 2.3)
//! D = softmax over tokens of L           how a slot reads the tokens                 (1)
//! C = softmax over slots of L            how a token reads the slots                 (2)
//! Y = C f(D^T X)                         with the unnormalised X                     (3)
//! p = round(T cf / E)                    slots of an expert
//! ```

use crate::config::{
    ConfigError, Part, Preset, RouterConfig, Settings, check_positive, check_weight, resolve,
    to_settings,
};
use crate::convert::to_host;
use crate::params::Params;
use crate::plan::{SoftSlots, TensorPlan};
use crate::router::{Dims, Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{HostInput, HostRouting, Plan, Reference, RouteError, SoftPlan, score};
use ndarray::{Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "soft-moe",
    title: "From Sparse to Soft Mixtures of Experts",
    authors: "Puigcerver et al. 2023",
    arxiv: "2308.00951",
    idea: "Every expert slot reads a weighted mean of all tokens, every token a weighted mean of all slots.\n\
        A hard choice drops tokens, leaves experts unequal, and lets no gradient through the choice itself.\n\
        Here nothing is chosen: every weight has a gradient, and every expert gets the same number of slots.\n\
        Every token sees every other: for encoders, not for language models.",
    state: "parameters: slots Phi [d, s], s = e p for p slots per expert; scale [1]",
    cost: "s / t expert calls for a group of t tokens; X Phi in the place of W x, softmaxes over tokens and over slots, and 2 s d multiply-adds to mix",
    equations: &[
        ("sec. 2.3", "slot_logits"),
        ("(1)-(2)", "SoftMoe::route"),
        ("(3)", "TensorPlan::combine"),
    ],
    deviations: &[
        "not causal: every token reads every other of its group; for encoders only, so no language-model comparison enters it",
        "the number of slots per expert is fixed by the settings, not by the number of tokens, so that parameters do not depend on the batch",
    ],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &[],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Slots of one expert, `p`.
    pub slots_per_expert: usize,
    /// Whether tokens and slot parameters are normalised (section 2.3).
    pub normalize: bool,
    /// Initial value of the learned scale.
    pub scale: f64,
    /// Floor inside the norm.
    pub eps: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper"];

    fn preset(_: &str) -> Self {
        Self { slots_per_expert: 1, normalize: true, scale: 1.0, eps: 1e-6 }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        check_positive("slots_per_expert", self.slots_per_expert as f64)?;
        check_positive("scale", self.scale)?;
        check_weight("eps", self.eps)
    }

    /// One slot per expert costs as much as one token; spread over tokens this is far below one
    /// expert a token, but the width of an expert is not tied to it.
    fn active_experts(&self, _: usize) -> f64 {
        1.0
    }

    fn causal(&self) -> bool {
        false
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => Some("its slots are its capacity (`slots_per_expert`)"),
            Part::Balance => Some("every slot of every expert is filled"),
            Part::ZLoss => Some("its logits are of slots, for which no z-loss is defined"),
        }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let slots = dims.experts * self.slots_per_expert as i64;
        // LeCun normal, as in the released code.
        let std = (1.0 / dims.width as f64).sqrt();
        Box::new(SoftMoe {
            phi_ds: params.matrix("phi", &[dims.width, slots], std),
            scale: params.constant("scale", &[1], self.scale),
            config: self.clone(),
        })
    }
}

/// The trainable router.
#[derive(Debug)]
struct SoftMoe {
    phi_ds: Tensor,
    scale: Tensor,
    config: Config,
}

/// `L`, `[g, t, d] -> [g, t, s]` (section 2.3).
pub fn slot_logits(config: &Config, x_gtd: &Tensor, phi_ds: &Tensor, scale: &Tensor) -> Tensor {
    if !config.normalize {
        return x_gtd.matmul(&(phi_ds * scale));
    }
    unit(x_gtd, -1, config.eps).matmul(&(unit(phi_ds, 0, config.eps) * scale))
}

/// `v / sqrt(sum v^2 + eps)` along `axis`.
fn unit(v: &Tensor, axis: i64, eps: f64) -> Tensor {
    v / (v.square().sum_dim_intlist(axis, true, None) + eps).sqrt()
}

impl Router for SoftMoe {
    fn route(&self, x_gtd: &Tensor, _: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gts = slot_logits(&self.config, x_gtd, &self.phi_ds, &self.scale);
        let (g, t, s) = axes3(&logits_gts);
        let kind = logits_gts.kind();
        let combine_gts = logits_gts.softmax(2, kind);
        let p = self.config.slots_per_expert as i64;
        let per_expert =
            |x_gts: &Tensor| x_gts.view([g, t, s / p, p]).sum_dim_intlist(-1, false, None::<Kind>);
        Ok(Routing {
            chosen: None,
            gate_gte: per_expert(&combine_gts.detach()),
            logits_gte: per_expert(&logits_gts) / p as f64,
            plan: TensorPlan::Soft(SoftSlots {
                dispatch_gts: logits_gts.softmax(1, kind),
                combine_gts,
                slots_per_expert: p,
            }),
            aux: Vec::new(),
        })
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host {
            phi_ds: to_host(&self.phi_ds),
            scale: self.scale.double_value(&[0]),
            config: self.config.clone(),
        })
    }
}

struct Host {
    phi_ds: Array2<f64>,
    scale: f64,
    config: Config,
}

/// `L` of one group on the host, `[t, d] -> [t, s]`.
pub fn slot_logits_host(
    config: &Config,
    x_td: ArrayView2<'_, f64>,
    phi_ds: ArrayView2<'_, f64>,
    scale: f64,
) -> Array2<f64> {
    if !config.normalize {
        return x_td.dot(&phi_ds) * scale;
    }
    unit_rows(x_td, config.eps).dot(&unit_rows(phi_ds.t(), config.eps).t()) * scale
}

/// Rows divided by `sqrt(sum v^2 + eps)`.
fn unit_rows(v: ArrayView2<'_, f64>, eps: f64) -> Array2<f64> {
    let norm = v.mapv(|v| v * v).sum_axis(Axis(1)).mapv(|sum| (sum + eps).sqrt());
    &v / &norm.insert_axis(Axis(1))
}

/// Sums the `p` columns that belong to one expert.
fn per_expert(x_ts: &Array2<f64>, p: usize) -> Array2<f64> {
    Array2::from_shape_fn((x_ts.nrows(), x_ts.ncols() / p), |(t, e)| {
        (0..p).map(|slot| x_ts[[t, e * p + slot]]).sum()
    })
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_ts = slot_logits_host(&self.config, input.x_td, self.phi_ds.view(), self.scale);
        let dispatch_ts = score::softmax(logits_ts.t()).reversed_axes(); // (1)
        let combine_ts = score::softmax(logits_ts.view()); // (2)
        let p = self.config.slots_per_expert;
        Ok(HostRouting {
            chosen: None,
            gate_te: per_expert(&combine_ts, p),
            logits_te: per_expert(&logits_ts, p) / p as f64,
            plan: Plan::Soft(SoftPlan { dispatch_ts, combine_ts, slots_per_expert: p }),
            aux: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;
    use ndarray::array;

    /// The preset has one slot per expert, which hides the order of slots: here there are three.
    #[test]
    fn slots_of_an_expert_lie_together() {
        let method = Method::Router(|settings| {
            Ok(Box::new(Config { slots_per_expert: 3, ..resolve(settings)? }))
        });
        let report = suite::check(&Paper { method, ..PAPER }, "paper").unwrap();
        assert!(report.violations.is_empty(), "{:?}", report.violations);
    }

    /// Two tokens `x = (0, ln 3)`, one expert, one slot, `phi = 1`, unnormalised. The slot reads
    /// them with weights (1/4, 3/4); the only slot returns to both tokens with weight 1. With the
    /// identity as expert both tokens become `3/4 ln 3`.
    #[test]
    fn by_hand() {
        let config = Config { normalize: false, ..Config::preset("paper") };
        let host = Host { phi_ds: array![[1.0]], scale: 1.0, config };
        let x_td = array![[0.0], [3f64.ln()]];
        let routing = host.route(&HostInput::new(x_td.view())).unwrap();
        let y_td = routing.plan.apply(x_td.view(), |_, rows| rows.to_owned());
        let want = 0.75 * 3f64.ln();
        assert!(y_td.iter().all(|y| (y - want).abs() < 1e-12), "{y_td}");
    }
}
