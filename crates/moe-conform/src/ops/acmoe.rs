//! ACMoE: dispersion, weights, scaling, routing, layers, chains of layers, measures
//! (`moe_routers::ac_moe`, `moe_core::metrics`).
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` clusters, `l` layers, `s` slots.

mod soft;
mod stack;

use super::experts::{HostBank, TorchBank};
use super::{Given, config, host_universal, torch_universal};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::{HostInput, metrics};
use moe_routers::ac_moe::{
    self, AcMoe, Clusters, Config, Decision, HostAcMoe, HostDecision, HostLabels, HostScaling,
    Labels, MAX_CLUSTERS, Mix, NOISE, Scaling, Scope, Score,
};
use moe_routers::{Phase, RouteCx};
use ndarray::{Array2, Ix2};
use tch::{Kind, Tensor};

const WEIGHT_KEYS: &[&str] = &["preset", "eps", "clip", "rescale", "empty", "min_count"];

const AC_KEYS: &[&str] =
    &["preset", "measure", "eps", "clip", "rescale", "empty", "min_count", "num_clusters", "mix"];

const ROUTE_KEYS: &[&str] = &[
    "preset",
    "measure",
    "eps",
    "clip",
    "rescale",
    "empty",
    "min_count",
    "num_clusters",
    "mix",
    "score",
    "embed_eps",
    "gate",
    "noise_std",
    "capacity_factor",
    "top_k",
    "scope",
];

const ROUTE_TENSORS: &[&str] =
    &["x", "prev", "prev_scores", "weights", "embeddings", "router", "bias", "noise"];

const LAYER_TENSORS: &[&str] = &[
    "x",
    "prev",
    "prev_scores",
    "weights",
    "embeddings",
    "router",
    "bias",
    "noise",
    "W1",
    "b1",
    "W2",
    "b2",
];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "acmoe.dispersion",
        config: &["measure", "num_clusters"],
        tensors: &["x", "prev"],
        reference: Some(dispersion_reference),
        torch: Some(dispersion_torch),
    },
    Op {
        name: "acmoe.weights",
        config: WEIGHT_KEYS,
        tensors: &["dispersion", "count"],
        reference: Some(weights_reference),
        torch: Some(weights_torch),
    },
    Op {
        name: "acmoe.theory_weights",
        config: &["lambda"],
        tensors: &["dispersion"],
        reference: Some(theory_weights),
        torch: None,
    },
    Op {
        name: "acmoe.scale",
        config: AC_KEYS,
        tensors: &["x", "prev", "prev_scores", "weights"],
        reference: Some(|args| Ok(host_scaling(&Tokens::read(args, None)?.host()?))),
        torch: Some(|args| Ok(torch_scaling(&Tokens::read(args, None)?.torch(args)?))),
    },
    Op {
        name: "acmoe.route",
        config: ROUTE_KEYS,
        tensors: ROUTE_TENSORS,
        reference: Some(|args| Ok(host_route(args)?.1)),
        torch: Some(|args| Ok(torch_route(args)?.1)),
    },
    Op {
        name: "acmoe.layer",
        config: ROUTE_KEYS,
        tensors: LAYER_TENSORS,
        reference: Some(layer_reference),
        torch: Some(layer_torch),
    },
    soft::OP,
    stack::OP,
    Op {
        name: "acmoe.load_balance",
        config: &[],
        tensors: &["counts"],
        reference: Some(load_balance),
        torch: None,
    },
    Op {
        name: "acmoe.stability",
        config: &["decay"],
        tensors: &["prev", "cur"],
        reference: Some(stability),
        torch: None,
    },
    Op {
        name: "acmoe.mce",
        config: &[],
        tensors: &["errors", "baseline"],
        reference: Some(mce),
        torch: None,
    },
];

/// Where no number of experts bounds the labels: more than any layer has, and rows that memory holds.
const ANY_LABEL: usize = MAX_CLUSTERS;

fn refused(error: impl std::fmt::Display) -> OpError {
    OpError::new(error.to_string())
}

/// Labels of `tokens` tokens, all below `below`.
fn labels(args: &Args<'_>, tokens: usize, below: usize) -> Result<Array2<usize>, OpError> {
    let labels = args.indices("prev", below)?;
    let shape = labels.shape().to_vec();
    match labels.into_dimensionality::<Ix2>() {
        Ok(labels) if labels.nrows() == tokens && labels.ncols() > 0 => Ok(labels),
        _ => Err(OpError::new(format!("prev: shape {shape:?}, expected [{tokens}, k]"))),
    }
}

/// Labels as tensors, one group.
fn torch_labels(labels: &HostLabels, score_gtk: Option<Tensor>) -> Labels {
    let (t, k) = labels.expert_tk.dim();
    let expert: Vec<i64> = labels.expert_tk.iter().map(|&e| e as i64).collect();
    let expert_gtk = Tensor::from_slice(&expert).view([1, t as i64, k as i64]);
    Labels { expert_gtk, score_gtk, experts: labels.experts() }
}

/// What scaling reads.
struct Tokens {
    config: Config,
    x_td: Array2<f64>,
    labels: Option<HostLabels>,
    frozen_cd: Option<Array2<f64>>,
}

impl Tokens {
    /// With the number of experts where there are any.
    fn read(args: &Args<'_>, experts: Option<usize>) -> Result<Self, OpError> {
        let x_td = args.matrix("x")?;
        let config: Config = config(args, &[], experts.unwrap_or(ANY_LABEL))?;
        let mut found = Self { config, x_td, labels: None, frozen_cd: None };
        let (tokens, width) = found.x_td.dim();
        if args.has("prev") {
            let expert_tk = labels(args, tokens, experts.unwrap_or(ANY_LABEL))?;
            let mixes = found.config.mix != Mix::Top1;
            let score_tk = if mixes { args.optional("prev_scores", Args::matrix)? } else { None };
            if let Some(score_tk) = &score_tk {
                expect_shape("prev_scores", score_tk.shape(), expert_tk.shape())?;
            }
            found.labels = Some(HostLabels { expert_tk, score_tk });
            found.frozen_cd = args.optional("weights", Args::matrix)?;
        }
        if let Some(frozen_cd) = &found.frozen_cd {
            expect_shape("weights", frozen_cd.shape(), &[frozen_cd.nrows(), width])?;
        }
        Ok(found)
    }

    fn host(&self) -> Result<HostScaling, OpError> {
        let frozen_cd = self.frozen_cd.as_ref().map(|w| w.view());
        Ok(ac_moe::host_scale(&self.config, self.x_td.view(), self.labels.as_ref(), frozen_cd)?)
    }

    fn torch_labels(&self, args: &Args<'_>) -> Result<Option<Labels>, OpError> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let score_tk =
            if labels.score_tk.is_some() { args.torch_optional("prev_scores")? } else { None };
        Ok(Some(torch_labels(labels, score_tk.map(|score_tk| score_tk.unsqueeze(0)))))
    }

    fn torch_frozen(&self, args: &Args<'_>) -> Result<Option<Tensor>, OpError> {
        if self.frozen_cd.is_some() { args.torch_optional("weights") } else { Ok(None) }
    }

    fn torch(&self, args: &Args<'_>) -> Result<Scaling, OpError> {
        let (labels, frozen_cd) = (self.torch_labels(args)?, self.torch_frozen(args)?);
        let x_gtd = args.torch("x")?.unsqueeze(0);
        Ok(ac_moe::scale(&self.config, &x_gtd, labels.as_ref(), frozen_cd.as_ref())?)
    }
}

fn host_scaling(scaling: &HostScaling) -> Outputs {
    let mut outputs: Outputs = vec![
        ("token_weights", scaling.token_weights_td.clone().into()),
        ("scaled", scaling.scaled_td.clone().into()),
    ];
    outputs.extend(scaling.weights_cd.iter().map(|w| ("weights", w.clone().into())));
    outputs
}

fn torch_scaling(scaling: &Scaling) -> Outputs {
    let mut outputs: Outputs = vec![
        ("token_weights", scaling.token_weights_gtd.get(0).into()),
        ("scaled", scaling.scaled_gtd.get(0).into()),
    ];
    outputs.extend(scaling.weights_gcd.iter().map(|w| ("weights", w.get(0).into())));
    outputs
}

fn clusters(args: &Args<'_>) -> Result<(Config, Array2<f64>, HostLabels, usize), OpError> {
    let x_td = args.matrix("x")?;
    let config: Config = config(args, &[], ANY_LABEL)?;
    let expert_tk = labels(args, x_td.nrows(), ANY_LABEL)?;
    let labels = HostLabels { expert_tk, score_tk: None };
    let clusters = ac_moe::host_cluster_count(&config, &labels)?;
    Ok((config, x_td, labels, clusters))
}

fn dispersion_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, x_td, labels, clusters) = clusters(args)?;
    let label_t = labels.expert_tk.column(0);
    let found = ac_moe::host_dispersion(config.measure, x_td.view(), label_t, clusters);
    let count: Vec<f64> = found.count_c.iter().map(|&n| n as f64).collect();
    Ok(vec![
        ("dispersion", found.dispersion_cd.into()),
        ("mean", found.mean_cd.into()),
        ("count", count.into()),
    ])
}

fn dispersion_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, _, labels, clusters) = clusters(args)?;
    let (x_gtd, labels) = (args.torch("x")?.unsqueeze(0), torch_labels(&labels, None));
    let found = ac_moe::dispersion(config.measure, &x_gtd, &labels, clusters);
    Ok(vec![
        ("dispersion", found.dispersion_gcd.get(0).into()),
        ("mean", found.mean_gcd.get(0).into()),
        ("count", found.count_gc1.flatten(0, -1).into()),
    ])
}

/// Dispersion and counts; without counts every cluster counts, unless the settings need to know.
fn spreads(args: &Args<'_>) -> Result<(Config, Array2<f64>, Vec<usize>), OpError> {
    let dispersion_cd = args.matrix("dispersion")?;
    let config: Config = config(args, &[], ANY_LABEL)?;
    if config.empty == ac_moe::Empty::AsCode {
        let count_c = vec![0; dispersion_cd.nrows()];
        return Ok((config, dispersion_cd, count_c));
    }
    let count_c = args.indices("count", ANY_LABEL)?;
    expect_shape("count", count_c.shape(), &[dispersion_cd.nrows()])?;
    Ok((config, dispersion_cd, count_c.into_iter().collect()))
}

fn weights_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, dispersion_cd, count_c) = spreads(args)?;
    let weights_cd = ac_moe::host_weights(&config, dispersion_cd.view(), &count_c)?;
    Ok(vec![("weights", weights_cd.into())])
}

fn weights_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, dispersion_cd, count_c) = spreads(args)?;
    // A spread below zero can only be handed in; the trainable form does not look for it.
    ac_moe::host_weights(&config, dispersion_cd.view(), &count_c)?;
    let dispersion_gcd = args.torch("dispersion")?.unsqueeze(0);
    let count: Vec<f64> = count_c.iter().map(|&n| n as f64).collect();
    let count_gc1 = Tensor::from_slice(&count).view([1, -1, 1]);
    let used_gc1 = count_gc1.ge(0.0);
    let found = Clusters { mean_gcd: dispersion_gcd.zeros_like(), dispersion_gcd, count_gc1 };
    Ok(vec![("weights", ac_moe::weights(&config, &found, &used_gc1)?.get(0).into())])
}

fn theory_weights(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (dispersion_cd, lambda) = (args.matrix("dispersion")?, args.f64("lambda", 0.5)?);
    let (weights_cd, alpha_c) = ac_moe::theory_weights(dispersion_cd.view(), lambda)?;
    Ok(vec![("weights", weights_cd.into()), ("alpha", alpha_c.into())])
}

/// What routing reads.
struct Input {
    tokens: Tokens,
    matrix: &'static str,
    noisy: bool,
    biased: bool,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        // The score decides which matrix counts the experts.
        let matrix = matrix_name(config::<Config>(args, &["top_k"], ANY_LABEL)?.score);
        let (experts, width) = args.matrix(matrix)?.dim();
        args.top_k(2, experts)?;
        let tokens = Tokens::read(args, Some(experts))?;
        expect_shape(matrix, &[experts, width], &[experts, tokens.x_td.ncols()])?;
        let (noisy, linear) = (args.has("noise"), tokens.config.score == Score::Linear);
        if noisy {
            let want = [tokens.x_td.nrows(), experts];
            expect_shape("noise", args.matrix("noise")?.shape(), &want)?;
        }
        let biased = linear && args.has("bias");
        if biased {
            expect_shape("bias", args.vector("bias")?.shape(), &[experts])?;
        }
        Ok(Self { tokens, matrix, noisy, biased })
    }
}

fn matrix_name(score: Score) -> &'static str {
    match score {
        Score::Embedding => "embeddings",
        Score::Linear => "router",
    }
}

fn host_route(args: &Args<'_>) -> Result<((Input, HostDecision), Outputs), OpError> {
    let input = Input::read(args)?;
    let Tokens { config, x_td, labels, frozen_cd } = &input.tokens;
    let bias_e = if input.biased { Some(args.vector("bias")?) } else { None };
    let router =
        HostAcMoe { matrix_ed: args.matrix(input.matrix)?, bias_e, config: config.clone() };
    let noise = if input.noisy { vec![(NOISE, args.matrix("noise")?)] } else { Vec::new() };
    let given = HostInput::new(x_td.view()).train(input.noisy).draws(&noise);
    let frozen_cd = frozen_cd.as_ref().map(|w| w.view());
    let decision = router.decide(&given, labels.as_ref(), frozen_cd)?;
    let mut outputs = host_universal(std::slice::from_ref(&decision.routing));
    outputs.extend(host_scaling(&decision.scaling));
    outputs.push(("logits", decision.noisy_te.clone().into()));
    Ok(((input, decision), outputs))
}

fn torch_route(args: &Args<'_>) -> Result<((Input, Decision), Outputs), OpError> {
    let input = Input::read(args)?;
    let bias_e = if input.biased { args.torch_optional("bias")? } else { None };
    let config = input.tokens.config.clone();
    let router = AcMoe { matrix_ed: args.torch(input.matrix)?, bias_e, config };
    let noise = if input.noisy { args.torch_optional("noise")? } else { None };
    let noise = Given(noise.into_iter().map(|n| (NOISE, n.unsqueeze(0))).collect());
    let phase = if input.noisy { Phase::Train { step: 0 } } else { Phase::Eval };
    let (labels, frozen_cd) = (input.tokens.torch_labels(args)?, input.tokens.torch_frozen(args)?);
    let (x_gtd, cx) = (args.torch("x")?.unsqueeze(0), RouteCx::new(phase, &noise));
    let decision = router.decide(&x_gtd, &cx, labels.as_ref(), frozen_cd.as_ref())?;
    let mut outputs = torch_universal(&decision.routing);
    outputs.extend(torch_scaling(&decision.scaling));
    outputs.push(("logits", decision.noisy_gte.get(0).into()));
    Ok(((input, decision), outputs))
}

fn layer_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let ((input, decision), mut outputs) = host_route(args)?;
    let x_td = match input.tokens.config.scope {
        Scope::RouterOnly => &input.tokens.x_td,
        Scope::RouterAndExperts => &decision.scaling.scaled_td,
    };
    let bank = HostBank::read(args, decision.noisy_te.ncols(), x_td.ncols())?;
    outputs.push(("y", bank.apply(&decision.routing.plan, x_td.view()).into()));
    Ok(outputs)
}

fn layer_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let ((input, decision), mut outputs) = torch_route(args)?;
    let x_gtd = match input.tokens.config.scope {
        Scope::RouterOnly => args.torch("x")?.unsqueeze(0),
        Scope::RouterAndExperts => decision.scaling.scaled_gtd.shallow_clone(),
    };
    let (experts, width) = (decision.noisy_gte.size()[2] as usize, input.tokens.x_td.ncols());
    let bank = TorchBank::read(args, experts, width)?;
    outputs.push(("y", bank.apply(&decision.routing.plan, &x_gtd).get(0).into()));
    Ok(outputs)
}

fn load_balance(args: &Args<'_>) -> Result<Outputs, OpError> {
    let counts = args.matrix("counts")?;
    let balance = metrics::LayerBalance::of_counts(counts.view()).map_err(refused)?;
    Ok(vec![
        ("percent", balance.percent_le.into()),
        ("layer_std", balance.std_l.into()),
        ("mean", balance.mean.into()),
        ("std", balance.std.into()),
    ])
}

fn stability(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (prev, cur) = (args.matrix("prev")?, args.matrix("cur")?);
    expect_shape("cur", cur.shape(), prev.shape())?;
    args.indices("prev", ANY_LABEL)?;
    args.indices("cur", ANY_LABEL)?;
    let [prev, cur] = [prev, cur].map(|labels| labels.mapv(|label| label as usize));
    let batches = prev.rows().into_iter().zip(cur.rows());
    let of_batch = batches.map(|(prev_t, cur_t)| metrics::layer_instability(prev_t, cur_t));
    let found = of_batch.collect::<Result<Vec<f64>, _>>().map_err(refused)?;
    let running = metrics::running_average(&found, args.f64("decay", 0.8)?).map_err(refused)?;
    let mean = moe_core::stats::mean(&found);
    Ok(vec![("instability", found.into()), ("running", running.into()), ("mean", mean.into())])
}

fn mce(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (errors, baseline) = (args.matrix("errors")?, args.vector("baseline")?);
    expect_shape("baseline", baseline.shape(), &[errors.nrows()])?;
    let (ce, mce) = metrics::corruption_error(errors.view(), baseline.view()).map_err(refused)?;
    Ok(vec![("ce", ce.into()), ("mce", mce.into())])
}

/// Doubles on the host.
fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, tch::Device::Cpu))
}
