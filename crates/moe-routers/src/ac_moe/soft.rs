//! ACMoE in front of Soft MoE: slots read scaled tokens through scaled scores.
//!
//! ```text
//! x    = x / max(|x|, 1e-12),  phi = scale * phi / max(|phi|, 1e-12) per column      (1)
//! x'   = W_t * x, statistics over the normalised tokens of the whole batch           (2)
//! l    = x' phi                                                  [b, t, s]           (3)
//! D    = softmax of l over the tokens of an example, C = softmax of l over slots     (4)
//! slots read D^T x', tokens read C
//! ```
//!
//! The next layer's labels are the experts of the slots with the largest logits; its mixing scores are
//! those logits. It reads and hands on labels of its own shape and mixes over the batch, so it is a
//! layer rule and not a [`Router`](crate::Router): a stack calls [`route`] and gives the result's
//! `next` to the following layer.
//!
//! Axis letters: `b` batch, `t` tokens of an example, `d` width, `e` experts, `p` slots of one expert,
//! `s = e p` slots (expert-major), `k` labels, `c` clusters.

use super::config::Config;
use super::reference::{HostLabels, HostScaling, host_scale};
use super::scaling::{Labels, Scaling, scale};
use crate::plan::{ChoicesGtk, SoftSlots, TensorPlan};
use crate::router::axes3;
use moe_core::{Choices, Plan, RouteError, SoftPlan, score};
use ndarray::{Array2, ArrayView2, Axis, s};
use tch::{Kind, Tensor};

/// Floor of the norms (1).
const NORM_FLOOR: f64 = 1e-12;

/// How a soft layer is put together.
#[derive(Debug, Clone)]
pub struct SoftConfig {
    /// The scaling's settings.
    pub scaling: Config,
    /// Whether tokens and slots are normalised (1); if not, both stay as given, without `scale`.
    pub normalize: bool,
    /// Labels per token for the next layer.
    pub mix_k: usize,
    /// Slots of one expert.
    pub slots_per_expert: usize,
}

impl SoftConfig {
    /// Refuses a `mix_k` below 1 or above the number of slots.
    ///
    /// # Errors
    /// Names `mix_k`.
    pub fn check(&self, slots: usize) -> Result<(), RouteError> {
        if (1..=slots).contains(&self.mix_k) {
            return Ok(());
        }
        let reason = format!("{} is outside 1..={slots} (slots)", self.mix_k);
        Err(RouteError::Setting { key: "mix_k", reason })
    }
}

/// What a soft layer decided.
#[derive(Debug)]
pub struct SoftDecision {
    /// The scaled tokens; all examples are one group, `[1, b t, d]`.
    pub scaling: Scaling,
    /// What slots read, `[b, t, d]`: apply the plan to it.
    pub scaled_btd: Tensor,
    /// (3), `[b, t, s]`.
    pub logits_bts: Tensor,
    /// (4).
    pub plan: TensorPlan,
    /// Labels of the next layer, `[b, t, k]`.
    pub next: Labels,
}

/// Divides by the norm along `axis`.
fn unit(v: &Tensor, axis: i64) -> Tensor {
    v / v.norm_scalaropt_dim(2.0, [axis].as_slice(), true).clamp_min(NORM_FLOOR)
}

/// (1)-(4). `x_btd`, slots `phi_ds`, their `scale`; labels of the previous layer, `[b, t, k]`.
///
/// # Errors
/// As [`scale`], and a `mix_k` above the number of slots.
pub fn route(
    config: &SoftConfig,
    x_btd: &Tensor,
    (phi_ds, scale_phi): (&Tensor, &Tensor),
    labels: Option<&Labels>,
) -> Result<SoftDecision, RouteError> {
    let (slots, p) = (phi_ds.size()[1], config.slots_per_expert as i64);
    config.check(slots as usize)?;
    let (x_btd, phi_ds) = match config.normalize {
        true => (unit(x_btd, -1), unit(phi_ds, 0) * scale_phi),
        false => (x_btd.shallow_clone(), phi_ds.shallow_clone()),
    };
    let flat = |v: &Tensor| v.flatten(0, 1).unsqueeze(0);
    let flat_labels = labels.map(|labels| Labels {
        expert_gtk: flat(&labels.expert_gtk),
        score_gtk: labels.score_gtk.as_ref().map(flat),
        experts: labels.experts,
    });
    let scaling = scale(&config.scaling, &flat(&x_btd), flat_labels.as_ref(), None)?;
    let (b, t, _) = axes3(&x_btd);
    let scaled_btd = scaling.scaled_gtd.view([b, t, -1]);
    let logits_bts = scaled_btd.matmul(&phi_ds);
    let best = ChoicesGtk::top_k(&logits_bts, config.mix_k as i64);
    let next = Labels {
        expert_gtk: best.expert_gtk.divide_scalar_mode(p, "floor"),
        score_gtk: Some(best.gate_gtk),
        experts: (slots / p) as usize,
    };
    let plan = TensorPlan::Soft(SoftSlots {
        dispatch_gts: logits_bts.softmax(1, None::<Kind>),
        combine_gts: logits_bts.softmax(-1, None::<Kind>),
        slots_per_expert: p,
    });
    Ok(SoftDecision { scaling, scaled_btd, logits_bts, plan, next })
}

/// The same on the host; examples lie under each other, `[b t, …]`.
#[derive(Debug, Clone)]
pub struct HostSoftDecision {
    /// The scaled tokens of all examples.
    pub scaling: HostScaling,
    /// (3), `[b t, s]`.
    pub logits_ts: Array2<f64>,
    /// (4), one plan per example.
    pub plans: Vec<Plan>,
    /// Labels of the next layer, `[b t, k]`.
    pub next: HostLabels,
}

/// Divides every row by its norm.
fn unit_rows(v: ArrayView2<'_, f64>) -> Array2<f64> {
    let norm = v.map_axis(Axis(1), |row| row.dot(&row).sqrt().max(NORM_FLOOR));
    &v / &norm.insert_axis(Axis(1))
}

/// (1)-(4). Examples of `tokens` rows each lie under each other in `x_td` and in the labels.
///
/// # Errors
/// As [`route`].
///
/// # Panics
/// If the rows are no multiple of `tokens`.
pub fn host_route(
    config: &SoftConfig,
    (x_td, tokens): (ArrayView2<'_, f64>, usize),
    (phi_ds, scale_phi): (ArrayView2<'_, f64>, f64),
    labels: Option<&HostLabels>,
) -> Result<HostSoftDecision, RouteError> {
    assert_eq!(x_td.nrows() % tokens, 0, "{:?} in examples of {tokens}", x_td.dim());
    let p = config.slots_per_expert;
    config.check(phi_ds.ncols())?;
    let (x_td, phi_ds) = match config.normalize {
        true => (unit_rows(x_td), unit_rows(phi_ds.t()).reversed_axes() * scale_phi),
        false => (x_td.to_owned(), phi_ds.to_owned()),
    };
    let scaling = host_scale(&config.scaling, x_td.view(), labels, None)?;
    let logits_ts = scaling.scaled_td.dot(&phi_ds);
    let best = Choices::top_k(logits_ts.view(), config.mix_k);
    let next = HostLabels {
        expert_tk: best.expert_tk.mapv(|slot| slot / p),
        score_tk: Some(best.gate_tk),
    };
    let plan = |from: usize| {
        let logits_ts = logits_ts.slice(s![from..from + tokens, ..]);
        Plan::Soft(SoftPlan {
            dispatch_ts: score::softmax(logits_ts.t()).reversed_axes(),
            combine_ts: score::softmax(logits_ts),
            slots_per_expert: p,
        })
    };
    let plans = (0..x_td.nrows()).step_by(tokens).map(plan).collect();
    Ok(HostSoftDecision { scaling, logits_ts, plans, next })
}
