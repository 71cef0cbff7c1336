//! V-MoE: routing, layer, capacity, losses, placement (`moe_routers::v_moe`).
//!
//! Logits are handed to the router as tokens with the identity as its gate, so that the router itself
//! runs, not a copy of its parts.

use super::experts::{HostBank, TorchBank};
use super::{
    Route, binary, config, grouped, host_universal, replace, stacked, torch_universal, value_of,
};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::HostRouting;
use moe_routers::Routing;
use moe_routers::convert::to_host;
use moe_routers::v_moe::{self, Config, HostLosses, Losses, Placement};
use moe_routers::{RouterConfig, Settings};
use ndarray::{Array1, Array2, Axis};
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
pub const OPS: &[Op] = &[
    Op {
        name: "vmoe.route",
        config: ROUTE_KEYS,
        tensors: &["logits", "probs", "noise"],
        reference: Some(route_reference),
        torch: Some(route_torch),
    },
    Op {
        name: "vmoe.layer",
        config: ROUTE_KEYS,
        tensors: &["x", "gate", "W1", "b1", "W2", "b2", "noise"],
        reference: Some(layer_reference),
        torch: Some(layer_torch),
    },
    Op {
        name: "vmoe.capacity",
        config: &[
            "preset",
            "tokens",
            "experts",
            "top_k",
            "capacity_factor",
            "capacity_round",
            "capacity_multiple",
        ],
        tensors: &[],
        reference: Some(capacity),
        torch: None,
    },
    Op {
        name: "vmoe.aux_losses",
        config: &[
            "preset",
            "top_k",
            "noise_std",
            "importance_weight",
            "load_weight",
            "gshard_weight",
            "group_size",
        ],
        tensors: &["logits", "noise"],
        reference: Some(losses_reference),
        torch: Some(losses_torch),
    },
    Op {
        name: "vmoe.placement",
        config: &["layers", "mode", "n"],
        tensors: &[],
        reference: Some(placement),
        torch: None,
    },
];

/// Tokens of a group: `group_size`, which divides the tokens, or all of them.
fn group_size(args: &Args<'_>, tokens: usize) -> Result<usize, OpError> {
    let group = args.usize_or_null("group_size", None)?.unwrap_or(tokens);
    if group == 0 || !tokens.is_multiple_of(group) {
        return Err(OpError::new(format!("group_size: {group} does not divide {tokens} tokens")));
    }
    Ok(group)
}

/// The noise, unless the settings leave it out.
fn noise(
    args: &Args<'_>,
    shape: (usize, usize),
    config: &Config,
) -> Result<Option<Tensor>, OpError> {
    if let Some(noise) = args.optional("noise", Args::matrix)? {
        expect_shape("noise", noise.shape(), &[shape.0, shape.1])?;
    }
    if config.noise_std == 0.0 { Ok(None) } else { args.torch_optional("noise") }
}

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
        let group = group_size(args, tokens)?;
        let config: Config = config(args, &["group_size"], experts)?;
        let noise = noise(args, (tokens, experts), &config)?.filter(|_| !probs);
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

/// What `vmoe.layer` reads.
struct Layer {
    config: Config,
    group: usize,
    experts: usize,
    /// `[T, d]`.
    x: Tensor,
    gate: Tensor,
    noise: Option<Tensor>,
}

impl Layer {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let ((tokens, width), gate) = (args.matrix("x")?.dim(), args.matrix("gate")?);
        let experts = gate.nrows();
        expect_shape("gate", gate.shape(), &[experts, width])?;
        args.top_k(2, experts)?;
        let group = group_size(args, tokens)?;
        let config: Config = config(args, &["group_size"], experts)?;
        let noise = noise(args, (tokens, experts), &config)?;
        let (x, gate) = (args.torch("x")?, args.torch("gate")?);
        Ok(Self { config, group, experts, x, gate, noise })
    }

    fn route(&self) -> Route<'_> {
        let noise = self.noise.iter().map(|n| (v_moe::NOISE, grouped(n, self.group)));
        Route {
            config: &self.config,
            params: vec![("gate", self.gate.shallow_clone())],
            x_gtd: grouped(&self.x, self.group),
            experts: self.experts,
            draws: noise.collect(),
        }
    }
}

fn layer_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layer = Layer::read(args)?;
    let bank = HostBank::read(args, layer.experts, layer.x.size()[1] as usize)?;
    let routings = layer.route().reference()?;
    let x_gtd = grouped(&layer.x, layer.group);
    let of_group = |(g, routing): (usize, &HostRouting)| {
        bank.apply(&routing.plan, to_host(&x_gtd.get(g as i64)).view())
    };
    let y = stacked(routings.iter().enumerate().map(of_group));
    let mut outputs = host_universal(&routings);
    outputs.extend(counts(&outputs, layer.group));
    outputs.push(("y", y.into()));
    Ok(outputs)
}

fn layer_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layer = Layer::read(args)?;
    let bank = TorchBank::read(args, layer.experts, layer.x.size()[1] as usize)?;
    let route = layer.route();
    let routing = route.torch()?;
    let mut outputs = torch_universal(&routing);
    outputs.extend(counts(&outputs, layer.group));
    outputs.push(("y", bank.apply(&routing.plan, &route.x_gtd).flatten(0, 1).into()));
    Ok(outputs)
}

fn capacity(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (tokens, experts) = (args.count("tokens")?, args.count("experts")?);
    args.top_k(2, experts)?;
    let config: Config = config(args, &["tokens", "experts"], experts)?;
    let slots = config.slots(tokens, experts)?;
    Ok(vec![("capacity", slots.map_or(-1.0, |rows| rows as f64).into())])
}

/// What `vmoe.aux_losses` reads.
struct Balance {
    config: Config,
    /// `[g, t, e]`.
    clean: Tensor,
    noisy: Option<Tensor>,
}

impl Balance {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (tokens, experts) = args.matrix("logits")?.dim();
        let group = group_size(args, tokens)?;
        let config = loss_config(args, experts)?;
        let clean = args.torch("logits")?;
        let noise = noise(args, (tokens, experts), &config)?;
        let noisy = noise.map(|noise| &clean + noise * config.noise_scale(experts));
        let in_groups = |t: Tensor| grouped(&t, group);
        Ok(Self { config, noisy: noisy.map(in_groups), clean: in_groups(clean) })
    }
}

/// Presets of the losses: `paper` and `reference`, which are the same, and `module_default`.
fn loss_config(args: &Args<'_>, experts: usize) -> Result<Config, OpError> {
    let preset = args.word("preset", "paper", &["paper", "reference", "module_default"])?;
    let base = if preset == "module_default" {
        Config::module_default()
    } else {
        moe_routers::Preset::preset(preset)
    };
    args.top_k(base.top_k, experts)?;
    let mut settings = base.settings();
    let given = args.settings().filter(|(key, _)| key != "preset" && key != "group_size");
    settings.extend::<Settings>(given.collect());
    let config: Config = moe_routers::config::resolve(&settings)?;
    config.check(experts)?;
    Ok(config)
}

fn losses_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Balance { config, clean, noisy } = Balance::read(args)?;
    let groups: Vec<HostLosses> = (0..clean.size()[0])
        .map(|g| {
            let noisy_te = noisy.as_ref().map(|noisy| to_host(&noisy.get(g)));
            let noisy_te = noisy_te.as_ref().map(|n| n.view());
            HostLosses::of(&config, to_host(&clean.get(g)).view(), noisy_te)
        })
        .collect();
    let mean =
        |of: fn(&HostLosses) -> f64| groups.iter().map(of).sum::<f64>() / groups.len() as f64;
    let (importance, load) = (mean(|l| l.importance), mean(|l| l.load.unwrap_or(0.0)));
    let gshard = mean(|l| l.gshard);
    let total = config.importance_weight * importance
        + config.load_weight * load
        + config.gshard_weight * gshard;
    let rows = |of: fn(&HostLosses) -> Option<&Array1<f64>>| -> Option<Array2<f64>> {
        let rows: Option<Vec<_>> = groups.iter().map(of).collect();
        Some(stacked(rows?.into_iter().map(|row| row.clone().insert_axis(Axis(0)))))
    };
    let mut outputs: Outputs = vec![
        ("l_importance", importance.into()),
        ("l_load", load.into()),
        ("l_gshard", gshard.into()),
        ("total", total.into()),
    ];
    outputs.extend(rows(|l| Some(&l.importance_e)).map(|rows| ("importance", rows.into())));
    outputs.extend(rows(|l| l.load_e.as_ref()).map(|rows| ("load", rows.into())));
    Ok(outputs)
}

fn losses_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Balance { config, clean, noisy } = Balance::read(args)?;
    let losses = Losses::of(&config, &clean, noisy.as_ref());
    let used = noisy.as_ref().unwrap_or(&clean);
    let gshard = v_moe::gshard(&used.softmax(-1, used.kind()));
    let mut outputs: Outputs = vec![("total", losses.total(&config, &gshard).into())];
    outputs.extend(losses.load_ge.map(|load| ("load", load.into())));
    let zero = || losses.importance.zeros_like();
    outputs.push(("l_load", losses.load.unwrap_or_else(zero).into()));
    outputs.push(("l_gshard", gshard.into()));
    outputs.push(("importance", losses.importance_ge.into()));
    outputs.push(("l_importance", losses.importance.into()));
    Ok(outputs)
}

fn placement(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layers = args.count("layers")?;
    let n = if args.key("n").is_some() { args.count("n")? } else { 2 };
    let rule = match args.word("mode", "every", &["every", "last"])? {
        "last" => Placement::Last(n),
        _ => Placement::Every(n),
    };
    let sparse: Vec<f64> = rule.sparse_layers(layers).into_iter().map(|l| l as f64).collect();
    Ok(vec![("count", (sparse.len() as f64).into()), ("moe_layers", sparse.into())])
}
