//! The operations on libtorch.

use super::{Layer, check_reanchor, config, index_tensor, mapped, read_balance, tokens_and_codes};
use crate::args::Args;
use crate::op::{OpError, Out, Outputs};
use crate::ops::experts::TorchBank;
use crate::ops::torch_universal;
use moe_routers::Routing;
use moe_routers::norm::TorchNorm;
use moe_routers::vq_moe::torch::{self, Continuous, Parameters, Quantized};

fn losses(config: &moe_routers::vq_moe::Config, found: &Quantized) -> Outputs {
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
    let found = torch::quantize(&config, &args.torch("x")?, &args.torch("codebook")?);
    let usage_c = torch::usage(&found.code_t, codes as i64, found.q_td.kind());
    let mut outputs = losses(&config, &found);
    if let Some(experts) = experts {
        let expert_c = index_tensor(&config.code_map.expert_c(codes, experts)?);
        outputs.push(("experts", expert_c.index_select(0, &found.code_t).into()));
    }
    outputs.extend([
        ("codes", found.code_t.into()),
        ("perplexity", torch::perplexity(&usage_c).into()),
        ("usage", usage_c.into()),
        ("distances", found.distance_tc.into()),
        ("quantized", found.q_td.into()),
        ("mixed", found.m_td.into()),
    ]);
    Ok(outputs)
}

pub(super) fn loss(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    tokens_and_codes(args)?;
    let found = torch::quantize(&config, &args.torch("x")?, &args.torch("codebook")?);
    Ok(losses(&config, &found))
}

fn parameters(args: &Args<'_>, layer: &Layer) -> Result<Parameters, OpError> {
    let router = match layer.router {
        Some("router") => Some((args.torch("router")?, args.torch_optional("bias")?)),
        Some(name) => Some((args.torch(name)?, None)),
        None => None,
    };
    let gate = match layer.router {
        Some(_) => Some((args.torch("gate_w")?, args.torch_optional("gate_b")?)),
        None => None,
    };
    Ok(Parameters {
        codebook_cd: args.torch("codebook")?,
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
    let with = parameters(args, &layer)?;
    let expert = |e: usize, rows: &tch::Tensor| bank.expert(e, rows);
    let output = torch::layer(&layer.config, &with, &args.torch("x")?, expert)
        .map_err(|error| OpError::new(error.to_string()))?;
    let mut outputs = universal(&output.discrete, output.continuous);
    outputs.extend([
        ("loss", output.quantized.loss(&layer.config).into()),
        ("codes", output.quantized.code_t.into()),
        ("mixed", output.quantized.m_td.into()),
        ("y_discrete", output.y_discrete_td.into()),
        ("y", output.y_td.into()),
    ]);
    outputs.extend(output.x_out_td.map(|x_out_td| ("x_out", x_out_td.into())));
    Ok(outputs)
}

/// The universal outputs of the continuous branch, or of the discrete one where it is alone.
fn universal(discrete: &Routing, continuous: Option<Continuous>) -> Outputs {
    let chosen = discrete.chosen.as_ref().expect("every token has a code");
    let experts = ("experts", Out::Torch(chosen.choices.expert_gtk.flatten(0, -1)));
    let Some(continuous) = continuous else {
        let known = |(name, _): &(&str, Out)| matches!(*name, "mask" | "combine");
        return torch_universal(discrete).into_iter().filter(known).chain([experts]).collect();
    };
    let mut outputs = torch_universal(&continuous.routing);
    outputs.extend([
        experts,
        ("logits", continuous.routing.logits_gte.squeeze_dim(0).into()),
        ("y_continuous", continuous.y_td.into()),
        ("branch_gates", continuous.gate_t2.into()),
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
