//! The operations on libtorch.

use super::{Layer, check_reanchor, config, index_tensor, mapped, read_balance, tokens_and_codes};
use crate::args::Args;
use crate::op::{OpError, Out, Outputs};
use crate::ops::experts::TorchBank;
use crate::ops::torch_universal;
use moe_routers::norm::TorchNorm;
use moe_routers::vq_moe::Config;
use moe_routers::vq_moe::torch::{self, Output, Quantized, VqMoe};
use moe_routers::{Phase, RouteCx, Routing, SeededNoise, TensorPlan};
use tch::Tensor;

/// The one group of tokens as `[1, t, d]`, quantised.
fn quantized(args: &Args<'_>, config: &Config) -> Result<Quantized, OpError> {
    let x_gtd = args.torch("x")?.unsqueeze(0);
    Ok(torch::quantize(config, &x_gtd, &args.torch("codebook")?, None))
}

/// Of the one group.
fn flat(of_group: &Tensor) -> Out {
    of_group.squeeze_dim(0).into()
}

fn losses(config: &Config, found: &Quantized) -> Outputs {
    vec![
        ("loss", found.loss(config).into()),
        ("codebook_loss", found.codebook_loss.shallow_clone().into()),
        ("commitment_loss", found.commitment_loss.shallow_clone().into()),
    ]
}

pub(super) fn quantize(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let (_, codebook_cd) = tokens_and_codes(args)?;
    let codes = codebook_cd.nrows();
    let experts = mapped(args, &config, codes)?;
    let found = quantized(args, &config)?;
    let usage_c = torch::usage(&found.code_gt.squeeze_dim(0), codes as i64, found.q_gtd.kind());
    let mut outputs = losses(&config, &found);
    if let Some(experts) = experts {
        let expert_c = index_tensor(&config.code_map.expert_c(codes, experts)?);
        outputs.push(("experts", expert_c.index_select(0, &found.code_gt.squeeze_dim(0)).into()));
    }
    outputs.extend([
        ("codes", flat(&found.code_gt)),
        ("perplexity", torch::perplexity(&usage_c).into()),
        ("usage", usage_c.into()),
        ("distances", flat(&found.distance_gtc)),
        ("quantized", flat(&found.q_gtd)),
        ("mixed", flat(&found.m_gtd)),
    ]);
    Ok(outputs)
}

pub(super) fn loss(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    tokens_and_codes(args)?;
    let found = quantized(args, &config)?;
    Ok(losses(&config, &found))
}

fn parameters(args: &Args<'_>, layer: &Layer) -> Result<VqMoe, OpError> {
    let router = match layer.router {
        Some("router") => Some((args.torch("router")?, args.torch_optional("bias")?)),
        Some(name) => Some((args.torch(name)?, None)),
        None => None,
    };
    let gate = match layer.router {
        Some(_) => Some((args.torch("gate_w")?, args.torch_optional("gate_b")?)),
        None => None,
    };
    Ok(VqMoe {
        config: layer.config.clone(),
        codebook_cd: args.torch("codebook")?,
        expert_c: index_tensor(&layer.expert_c),
        router,
        gate,
        norm: TorchNorm {
            weight_d: args.torch_optional("ln_weight")?,
            bias_d: args.torch_optional("ln_bias")?,
        },
        experts: layer.experts as i64,
    })
}

pub(super) fn layer(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layer = Layer::read(args)?;
    let bank = TorchBank::read(args, layer.experts, layer.width)?;
    let (with, x_gtd) = (parameters(args, &layer)?, args.torch("x")?.unsqueeze(0));
    let noise = SeededNoise::eval(0, 0); // nothing is drawn
    let execute = |x_gtd: &Tensor, plan: &TensorPlan| plan.apply(x_gtd, |e, x| bank.expert(e, x));
    let Output { decision, y_continuous_gtd, y_discrete_gtd, y_gtd, x_out_gtd } =
        with.forward(&x_gtd, &RouteCx::new(Phase::Eval, &noise), &execute)?;
    let mut outputs = branches(&decision.discrete, decision.continuous.as_ref());
    outputs.extend([
        ("loss", decision.quantized.loss(&layer.config).into()),
        ("codes", flat(&decision.quantized.code_gt)),
        ("mixed", flat(&decision.quantized.m_gtd)),
        ("y_discrete", flat(&y_discrete_gtd)),
        ("y", flat(&y_gtd)),
    ]);
    outputs.extend(y_continuous_gtd.map(|y_gtd| ("y_continuous", flat(&y_gtd))));
    outputs.extend(x_out_gtd.map(|x_out_gtd| ("x_out", flat(&x_out_gtd))));
    Ok(outputs)
}

/// The universal outputs of the continuous branch, or of the discrete one where it is alone.
fn branches(discrete: &Routing, continuous: Option<&torch::Continuous>) -> Outputs {
    let chosen = discrete.chosen.as_ref().expect("every token has a code");
    let experts = ("experts", Out::Torch(chosen.choices.expert_gtk.flatten(0, -1)));
    let Some(continuous) = continuous else {
        let known = |(name, _): &(&str, Out)| matches!(*name, "mask" | "combine");
        return torch_universal(discrete).into_iter().filter(known).chain([experts]).collect();
    };
    let mut outputs = torch_universal(&continuous.routing);
    outputs.extend([
        experts,
        ("logits", flat(&continuous.routing.logits_gte)),
        ("branch_gates", flat(&continuous.gate_gt2)),
    ]);
    outputs
}

pub(super) fn reanchor(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (decay, code_t) = check_reanchor(args)?;
    let (codebook_cd, anchor_cd) = (args.torch("codebook")?, args.torch("anchors")?);
    let (code_t, usage_c) = (index_tensor(&code_t), args.torch("usage")?);
    let (usage_c, rate_c, codebook_cd) =
        torch::reanchored(decay, &codebook_cd, &code_t, &usage_c, &anchor_cd);
    Ok(vec![("usage", usage_c.into()), ("rate", rate_c.into()), ("codebook", codebook_cd.into())])
}

pub(super) fn balance(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (expert_tk, temperature, over_k) = read_balance(args)?;
    let (t, k) = expert_tk.dim();
    let expert_tk = index_tensor(&expert_tk).view([t as i64, k as i64]);
    let balance = torch::balance_terms(&args.torch("logits")?, &expert_tk, temperature, over_k);
    Ok(vec![
        ("fraction", balance.fraction_e.into()),
        ("prob", balance.mean_prob_e.into()),
        ("loss", balance.loss.into()),
    ])
}
