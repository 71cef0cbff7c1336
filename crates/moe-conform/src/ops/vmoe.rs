//! V-MoE: routing, layer, capacity, losses, placement (`moe_routers::v_moe`).
//!
//! Logits are handed to the router as tokens with the identity as its gate, so that the router itself
//! runs, not a copy of its parts.

use super::{
    Route, binary, config, grouped, host_universal, replace, stacked, torch_universal, value_of,
};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::HostRouting;
use moe_routers::Routing;
use moe_routers::v_moe::{self, Config};
use ndarray::{Array1, Axis};
use tch::{Device, Tensor};

const ROUTE_KEYS: &[&str] = &[
    "preset",
    "top_k",
    "capacity",
    "capacity_factor",
    "capacity_round",
    "capacity_multiple",
    "batch_priority",
    "priority_score",
    "group_size",
    "noise_std",
    "normalize",
];

/// The operations.
pub const OPS: &[Op] = &[Op {
    name: "vmoe.route",
    config: ROUTE_KEYS,
    tensors: &["logits", "probs", "noise"],
    reference: Some(route_reference),
    torch: Some(route_torch),
}];

/// What `vmoe.route` reads: settings, and either logits or probabilities in groups.
struct Input {
    config: Config,
    group: usize,
    experts: usize,
    /// `[T, E]`.
    scores: Tensor,
    probs: bool,
    noise: Option<Tensor>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let probs = args.has("probs");
        if probs == args.has("logits") {
            return Err(OpError::new(
                "exactly one of logits and probs is needed; one is missing or too many",
            ));
        }
        let name = if probs { "probs" } else { "logits" };
        let (tokens, experts) = args.matrix(name)?.dim();
        args.top_k(2, experts)?;
        let group = args.usize_or_null("group_size", None)?.unwrap_or(tokens);
        if group == 0 || tokens % group != 0 {
            return Err(OpError::new(format!(
                "group_size: {group} does not divide {tokens} tokens"
            )));
        }
        let noise = args.optional("noise", Args::matrix)?;
        if let Some(noise) = &noise {
            expect_shape("noise", noise.shape(), &[tokens, experts])?;
        }
        let config: Config = config(args, &["group_size"], experts)?;
        let noise =
            if probs || config.noise_std == 0.0 { None } else { args.torch_optional("noise")? };
        Ok(Self { config, group, experts, scores: args.torch(name)?, probs, noise })
    }

    fn route(&self) -> Route<'_> {
        let identity = Tensor::eye(self.experts as i64, (self.scores.kind(), Device::Cpu));
        let noise = self.noise.iter().map(|n| (v_moe::NOISE, grouped(n, self.group)));
        Route {
            config: &self.config,
            params: vec![("gate", identity)],
            x_gtd: grouped(&self.scores, self.group),
            experts: self.experts,
            draws: noise.collect(),
        }
    }
}

fn route_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let routings = if input.probs { assigned(&input)? } else { input.route().reference()? };
    let order = routings.iter().enumerate().flat_map(|(g, r)| {
        let order_t = r.chosen.iter().flat_map(|c| c.queue.order_t.iter());
        order_t.map(move |t| (g * input.group + t) as f64)
    });
    let order = order.collect::<Vec<f64>>();
    let mut outputs = host_universal(&routings);
    if input.config.normalize {
        let gates = routings.iter().filter_map(|r| r.chosen.as_ref());
        let gates = stacked(gates.map(|c| c.choices.clone().renormalised().gate_tk));
        replace(&mut outputs, "gates", gates.into());
    }
    outputs.push(("probs", stacked(routings.iter().map(|r| r.gate_te.clone())).into()));
    outputs.push(("order", order.into()));
    outputs.extend(counts(&outputs, input.group));
    Ok(outputs)
}

/// Routings from given probabilities.
fn assigned(input: &Input) -> Result<Vec<HostRouting>, OpError> {
    let prob_gte = grouped(&input.scores, input.group);
    let group = |g: i64| {
        let gate_te = moe_routers::convert::to_host(&prob_gte.get(g));
        let (chosen, plan) = v_moe::assign_host(&input.config, gate_te.view(), None)?;
        let logits_te = gate_te.mapv(f64::ln);
        Ok(HostRouting { plan, chosen: Some(chosen), logits_te, gate_te, aux: Vec::new() })
    };
    (0..prob_gte.size()[0]).map(group).collect()
}

fn route_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let routing = if input.probs {
        let gate_gte = grouped(&input.scores, input.group);
        let (chosen, plan) = v_moe::assign(&input.config, &gate_gte, None)?;
        Routing {
            plan,
            chosen: Some(chosen),
            logits_gte: gate_gte.log(),
            gate_gte,
            aux: Vec::new(),
        }
    } else {
        input.route().torch()?
    };
    let mut outputs = torch_universal(&routing);
    if let (true, Some(chosen)) = (input.config.normalize, &routing.chosen) {
        let gate_tk = chosen.choices.gate_gtk.flatten(0, 1);
        let sum_t1 = gate_tk.sum_dim_intlist(-1, true, None);
        replace(&mut outputs, "gates", (gate_tk / sum_t1).into());
    }
    outputs.push(("probs", routing.gate_gte.flatten(0, 1).into()));
    outputs.push(("order", visiting(&routing).into()));
    outputs.extend(counts(&outputs, input.group));
    Ok(outputs)
}

/// The visiting order of tokens, global numbers, group after group.
fn visiting(routing: &Routing) -> Tensor {
    let chosen = routing.chosen.as_ref().expect("tokens choose");
    chosen.choices.visiting_tokens(chosen.room.1).flatten(0, -1)
}

/// What follows from `kept` and `combine`: drops, success, sums, processed tokens per group.
fn counts(outputs: &Outputs, group: usize) -> Outputs {
    let kept = value_of(outputs, "kept").into_dimensionality::<ndarray::Ix2>().expect("[T, k]");
    let combine = value_of(outputs, "combine");
    let any_t: Array1<f64> = kept.map_axis(Axis(1), |row| binary(row.iter().any(|v| *v > 0.0)));
    let per_group =
        any_t.as_slice().expect("contiguous").chunks(group).map(|c| c.iter().sum::<f64>());
    vec![
        ("dropped", any_t.mapv(|any| 1.0 - any).into()),
        ("success_rate", kept.mean().unwrap_or(0.0).into()),
        ("weight_sum", combine.sum_axis(Axis(1)).into()),
        ("processed", per_group.collect::<Vec<f64>>().into()),
    ]
}
