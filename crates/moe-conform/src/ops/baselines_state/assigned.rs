//! BASE and Sinkhorn (`moe_routers::base`, `moe_routers::sinkhorn`).

use super::serve::{Serve, identity};
use crate::args::Args;
use crate::op::{OpError, Outputs};
use crate::ops::{config, host_universal, torch_universal};
use moe_core::assignment;
use moe_routers::{base, sinkhorn};
use ndarray::Axis;
use tch::{Kind, Tensor};

/// Whether `mode` is training, the default.
fn training(args: &Args<'_>) -> Result<bool, OpError> {
    Ok(args.word("mode", "train", &["train", "eval"])? == "train")
}

/// Hands `x_td`, `[T, E]`, through the gate named `gate`.
fn through<'a>(
    config: &'a dyn moe_routers::RouterConfig,
    gate: &'static str,
    x_td: Tensor,
    train: bool,
) -> Serve<'a> {
    let experts = x_td.size()[1] as usize;
    let params = vec![(gate, identity(experts, &x_td))];
    Serve { config, params, x_td, experts, train, token_t: None }
}

fn base_config(args: &Args<'_>) -> Result<base::Config, OpError> {
    config(args, &["mode"], args.matrix("scores")?.ncols())
}

pub(super) fn base_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, score_te) = (base_config(args)?, args.matrix("scores")?);
    let routing =
        through(&config, "centroids", args.torch("scores")?, training(args)?).reference()?;
    let choices = routing.chosen.iter().map(|c| &c.choices.expert_tk);
    let expert_t: Vec<usize> = choices.flatten().copied().collect();
    let mut outputs = host_universal(std::slice::from_ref(&routing));
    let combine_te = routing.plan.combine_te();
    outputs.push(("residual_weight", base::residual_weight_host(combine_te.view()).into()));
    outputs.push(("objective", assignment::objective(score_te.view(), &expert_t).into()));
    Ok(outputs)
}

pub(super) fn base_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = base_config(args)?;
    let routing = through(&config, "centroids", args.torch("scores")?, training(args)?).torch()?;
    let mut outputs = torch_universal(&routing);
    let (_, combine_te) = crate::ops::dense_forms(&routing.plan, routing.logits_gte.size()[2]);
    let chosen = routing.chosen.as_ref().expect("tokens choose");
    let score_gtk = routing.logits_gte.gather(-1, &chosen.choices.expert_gtk, false);
    outputs.push(("residual_weight", base::residual_weight(&combine_te).into()));
    outputs.push(("objective", score_gtk.sum(Kind::Double).into()));
    Ok(outputs)
}

fn sinkhorn_config(args: &Args<'_>) -> Result<sinkhorn::Config, OpError> {
    let experts = args.matrix("logits")?.ncols();
    args.top_k(1, experts)?;
    config(args, &["mode"], experts)
}

pub(super) fn sinkhorn_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, train) = (sinkhorn_config(args)?, training(args)?);
    let routing = through(&config, "gate", args.torch("logits")?, train).reference()?;
    let mut outputs = host_universal(&[routing]);
    if train {
        let transport = sinkhorn::transport_host(&config, args.matrix("logits")?.view())?;
        outputs.push(("row_sums", transport.plan_te.sum_axis(Axis(1)).into()));
        outputs.push(("col_sums", transport.plan_te.sum_axis(Axis(0)).into()));
        outputs.push(("plan", transport.plan_te.into()));
        outputs.push(("iterations", (transport.iterations as f64).into()));
    }
    Ok(outputs)
}

pub(super) fn sinkhorn_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, train) = (sinkhorn_config(args)?, training(args)?);
    let logits_te = args.torch("logits")?;
    let mut outputs =
        torch_universal(&through(&config, "gate", logits_te.shallow_clone(), train).torch()?);
    if train {
        let transport = sinkhorn::transport(&config, &logits_te)?;
        let sums = |axis: i64| transport.plan_te.sum_dim_intlist(axis, false, None::<Kind>);
        outputs.push(("row_sums", sums(1).into()));
        outputs.push(("col_sums", sums(0).into()));
        outputs.push(("iterations", (transport.iterations as f64).into()));
        outputs.push(("plan", transport.plan_te.into()));
    }
    Ok(outputs)
}
