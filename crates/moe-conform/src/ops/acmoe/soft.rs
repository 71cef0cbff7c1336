//! `acmoe.soft_layer` (`moe_routers::ac_moe::soft`).
//!
//! Axis letters: `b` batch, `m` tokens of an example, `t = b m`, `d` width, `e` experts, `p` slots of one
//! expert, `s = e p`, `k` labels.

use super::{AC_KEYS, ANY_LABEL, torch_labels};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use crate::ops::experts::{HostBank, TorchBank};
use moe_core::Plan;
use moe_routers::TensorPlan;
use moe_routers::ac_moe::soft::{self, SoftConfig};
use moe_routers::ac_moe::{Config, HostLabels, Mix};
use moe_routers::config::resolve;
use moe_routers::{RouterConfig, Settings};
use ndarray::{Array2, Array3, ArrayD, Dimension, IntoDimension, IxDyn};
use tch::Tensor;

pub(super) const OP: Op = Op {
    name: "acmoe.soft_layer",
    config: &[
        "preset",
        "measure",
        "eps",
        "clip",
        "rescale",
        "empty",
        "min_count",
        "num_clusters",
        "mix",
        "normalize",
        "mix_k",
    ],
    tensors: &["x", "phi", "scale", "prev", "prev_scores", "W1", "b1", "W2", "b2"],
    reference: Some(reference),
    torch: Some(torch),
};

/// Labels kept for the next layer where the case does not say.
const MIX_K: usize = 8;

struct Input {
    config: SoftConfig,
    x_bmd: Array3<f64>,
    phi_dep: Array3<f64>,
    scale: f64,
    /// Examples under each other.
    labels: Option<HostLabels>,
    experts: usize,
}

/// `[b, m, …]` to `[b m, rest]`, or the other way.
fn reshaped<A: Clone, D: Dimension, S: IntoDimension<Dim = E>, E: Dimension>(
    array: &ndarray::Array<A, D>,
    shape: S,
) -> ndarray::Array<A, E> {
    array.to_shape(shape).expect("the same number of values").to_owned()
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_bmd, phi_dep) = (args.cube("x")?, args.cube("phi")?);
        let ((b, m, d), (_, e, p)) = (x_bmd.dim(), phi_dep.dim());
        expect_shape("phi", phi_dep.shape(), &[d, e, p])?;
        if x_bmd.is_empty() || phi_dep.is_empty() {
            return Err(OpError::new("x and phi: an empty shape"));
        }
        let config = SoftConfig {
            scaling: scaling(args)?,
            normalize: args.bool("normalize", true)?,
            mix_k: args.usize("mix_k", MIX_K.min(e * p))?,
            slots_per_expert: p,
        };
        let labels = labels(args, &config.scaling, (b, m, e))?;
        let scale = args.optional("scale", Args::scalar)?.unwrap_or(1.0);
        Ok(Self { config, x_bmd, phi_dep, scale, labels, experts: e })
    }

    fn has_experts(args: &Args<'_>) -> bool {
        args.has("W1") && args.has("W2")
    }

    fn slots(&self) -> usize {
        self.experts * self.config.slots_per_expert
    }
}

/// The scaling's settings, over preset `soft` unless the case names another.
fn scaling(args: &Args<'_>) -> Result<Config, OpError> {
    let keyed = args.settings().filter(|(key, _)| AC_KEYS.contains(&key.as_str()));
    let mut settings: Settings = [("preset".to_owned(), "soft".into())].into_iter().collect();
    settings.extend(keyed);
    let config: Config = resolve(&settings)?;
    config.check(ANY_LABEL)?;
    Ok(config)
}

fn labels(
    args: &Args<'_>,
    config: &Config,
    (b, m, e): (usize, usize, usize),
) -> Result<Option<HostLabels>, OpError> {
    if !args.has("prev") {
        return Ok(None);
    }
    let label_bmk = args.indices("prev", e)?;
    let k = label_bmk.shape().last().copied().unwrap_or_default().max(1);
    expect_shape("prev", label_bmk.shape(), &[b, m, k])?;
    let mut labels = HostLabels { expert_tk: reshaped(&label_bmk, (b * m, k)), score_tk: None };
    let mixes = config.mix != Mix::Top1;
    let score_bmk = if mixes { args.optional("prev_scores", Args::cube)? } else { None };
    if let Some(score_bmk) = score_bmk {
        expect_shape("prev_scores", score_bmk.shape(), &[b, m, k])?;
        labels.score_tk = Some(reshaped(&score_bmk, (b * m, k)));
    }
    Ok(Some(labels))
}

fn reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let ((b, m, d), e, k) = (input.x_bmd.dim(), input.experts, input.config.mix_k);
    let x_td: Array2<f64> = reshaped(&input.x_bmd, (b * m, d));
    let phi_ds: Array2<f64> = reshaped(&input.phi_dep, (d, input.slots()));
    let phi = (phi_ds.view(), input.scale);
    let found = soft::host_route(&input.config, (x_td.view(), m), phi, input.labels.as_ref())?;
    let four = |v: &Array2<f64>| -> ArrayD<f64> {
        reshaped(v, IxDyn(&[b, m, e, input.config.slots_per_expert]))
    };
    let three = |v: &Array2<f64>| -> ArrayD<f64> { reshaped(v, IxDyn(&[b, m, v.ncols()])) };
    let plan_of = |of: fn(&moe_core::SoftPlan) -> &Array2<f64>| {
        let parts = found.plans.iter().filter_map(|plan| match plan {
            Plan::Soft(plan) => Some(of(plan).clone()),
            Plan::Sparse(_) => None,
        });
        four(&crate::ops::stacked(parts))
    };
    let next_tk = found.next.expert_tk.mapv(|e| e as f64);
    let mut outputs: Outputs = vec![
        ("token_weights", three(&found.scaling.token_weights_td).into()),
        ("logits", four(&found.logits_ts).into()),
        ("dispatch", plan_of(|plan| &plan.dispatch_ts).into()),
        ("combine_slots", plan_of(|plan| &plan.combine_ts).into()),
        ("next_indices", reshaped(&next_tk, (b, m, k)).into()),
    ];
    outputs.extend(found.next.score_tk.iter().map(|s| ("next_scores", three(s).into())));
    outputs.extend(found.scaling.weights_cd.iter().map(|w| ("weights", w.clone().into())));
    if Input::has_experts(args) {
        let bank = HostBank::read(args, e, d)?;
        let rows = found.scaling.scaled_td.axis_chunks_iter(ndarray::Axis(0), m);
        let y = found.plans.iter().zip(rows).map(|(plan, x_md)| bank.apply(plan, x_md));
        outputs.push(("y", three(&crate::ops::stacked(y)).into()));
    }
    Ok(outputs)
}

fn torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let ((b, m, d), e) = (input.x_bmd.dim(), input.experts);
    let [b, m, slots] = [b, m, input.slots()].map(|n| n as i64);
    let x_bmd = args.torch("x")?;
    let scale = args.torch_optional("scale")?.unwrap_or_else(|| super::zeros(&[]) + 1.0);
    let phi_ds = args.torch("phi")?.reshape([d as i64, slots]);
    let labels = match &input.labels {
        None => None,
        Some(labels) => {
            let scored = labels.score_tk.is_some();
            let score_bmk = if scored { args.torch_optional("prev_scores")? } else { None };
            let mut labels = torch_labels(labels, score_bmk);
            labels.expert_gtk = labels.expert_gtk.view([b, m, -1]);
            Some(labels)
        }
    };
    let found = soft::route(&input.config, &x_bmd, (&phi_ds, &scale), labels.as_ref())?;
    let four = |v: &Tensor| v.view([b, m, e as i64, -1]);
    let TensorPlan::Soft(plan) = &found.plan else { unreachable!("a soft plan") };
    let mut outputs: Outputs = vec![
        ("token_weights", found.scaling.token_weights_gtd.view([b, m, -1]).into()),
        ("logits", four(&found.logits_bts).into()),
        ("dispatch", four(&plan.dispatch_gts).into()),
        ("combine_slots", four(&plan.combine_gts).into()),
        ("next_indices", found.next.expert_gtk.shallow_clone().into()),
    ];
    outputs.extend(found.next.score_gtk.iter().map(|s| ("next_scores", s.shallow_clone().into())));
    outputs.extend(found.scaling.weights_gcd.iter().map(|w| ("weights", w.get(0).into())));
    if Input::has_experts(args) {
        let bank = TorchBank::read(args, e, d)?;
        outputs.push(("y", bank.apply(&found.plan, &found.scaled_btd).into()));
    }
    Ok(outputs)
}
