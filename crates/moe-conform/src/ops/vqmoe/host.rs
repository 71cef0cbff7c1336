//! The operations on the host.

use super::{Layer, check_reanchor, choices, config, mapped, read_balance, tokens_and_codes};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Out, Outputs};
use crate::ops::experts::HostBank;
use crate::ops::host_universal;
use moe_core::{HostInput, HostRouting};
use moe_routers::norm::HostNorm;
use moe_routers::vq_moe::host::{self, HostVqMoe, Output};
use ndarray::ArrayView2;

fn whole(values: &[usize]) -> Out {
    values.iter().map(|&v| v as f64).collect::<Vec<f64>>().into()
}

pub(super) fn quantize(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let (x_td, codebook_cd) = tokens_and_codes(args)?;
    let codes = codebook_cd.nrows();
    let experts = mapped(args, &config, codes)?;
    let found = host::quantize(&config, &HostInput::new(x_td.view()), codebook_cd.view())?;
    let usage_c = host::usage(&found.code_t, codes);
    let mut outputs: Outputs = vec![
        ("loss", found.loss(&config).into()),
        ("codebook_loss", found.codebook_loss.into()),
        ("commitment_loss", found.commitment_loss.into()),
        ("codes", whole(&found.code_t)),
        ("perplexity", host::perplexity(usage_c.view()).into()),
        ("usage", usage_c.into()),
    ];
    if let Some(experts) = experts {
        let expert_c = config.code_map.expert_c(codes, experts)?;
        let expert_t: Vec<usize> = found.code_t.iter().map(|&code| expert_c[code]).collect();
        outputs.push(("experts", whole(&expert_t)));
    }
    outputs.extend([
        ("distances", found.distance_tc.into()),
        ("quantized", found.q_td.into()),
        ("mixed", found.m_td.into()),
    ]);
    Ok(outputs)
}

pub(super) fn loss(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let (x_td, codebook_cd) = tokens_and_codes(args)?;
    let found = host::quantize(&config, &HostInput::new(x_td.view()), codebook_cd.view())?;
    Ok(vec![
        ("loss", found.loss(&config).into()),
        ("codebook_loss", found.codebook_loss.into()),
        ("commitment_loss", found.commitment_loss.into()),
    ])
}

fn parameters(args: &Args<'_>, layer: &Layer) -> Result<HostVqMoe, OpError> {
    let row = |name: &str| args.optional(name, Args::vector);
    let router = match layer.router {
        Some("router") => Some((args.matrix("router")?, row("bias")?)),
        Some(name) => Some((args.matrix(name)?, None)),
        None => None,
    };
    let gate = match layer.router {
        Some(_) => Some((args.matrix("gate_w")?, row("gate_b")?)),
        None => None,
    };
    Ok(HostVqMoe {
        config: layer.config.clone(),
        codebook_cd: args.matrix("codebook")?,
        expert_c: layer.expert_c.clone(),
        router,
        gate,
        norm: HostNorm { weight_d: row("ln_weight")?, bias_d: row("ln_bias")? },
        experts: layer.experts,
    })
}

pub(super) fn layer(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layer = Layer::read(args)?;
    let bank = HostBank::read(args, layer.experts, layer.width)?;
    let (with, x_td) = (parameters(args, &layer)?, args.matrix("x")?);
    let expert = |e: usize, rows: ArrayView2<'_, f64>| bank.expert(e, rows);
    let Output { decision, y_continuous_td, y_discrete_td, y_td, x_out_td } =
        with.forward(&HostInput::new(x_td.view()), &expert)?;
    let mut outputs = branches(&decision.discrete, decision.continuous);
    outputs.extend([
        ("loss", decision.quantized.loss(&layer.config).into()),
        ("codes", whole(&decision.quantized.code_t)),
        ("mixed", decision.quantized.m_td.into()),
        ("y_discrete", y_discrete_td.into()),
        ("y", y_td.into()),
    ]);
    outputs.extend(y_continuous_td.map(|y_td| ("y_continuous", y_td.into())));
    outputs.extend(x_out_td.map(|x_out_td| ("x_out", x_out_td.into())));
    Ok(outputs)
}

/// The universal outputs of the continuous branch, or of the discrete one where it is alone.
fn branches(discrete: &HostRouting, continuous: Option<host::Continuous>) -> Outputs {
    let expert_t = discrete.chosen.iter().flat_map(|chosen| chosen.choices.expert_tk.iter());
    let experts = ("experts", whole(&expert_t.copied().collect::<Vec<_>>()));
    let Some(continuous) = continuous else {
        let known = |(name, _): &(&str, Out)| matches!(*name, "mask" | "combine");
        let both = host_universal(std::slice::from_ref(discrete)).into_iter().filter(known);
        return both.chain([experts]).collect();
    };
    let mut outputs = host_universal(std::slice::from_ref(&continuous.routing));
    outputs.extend([
        experts,
        ("logits", continuous.routing.logits_te.into()),
        ("branch_gates", continuous.gate_t2.into()),
    ]);
    outputs
}

pub(super) fn reanchor(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (decay, code_t) = check_reanchor(args)?;
    let (codebook_cd, anchor_cd) = (args.matrix("codebook")?, args.matrix("anchors")?);
    let usage_c = args.vector("usage")?;
    let (usage_c, rate_c, codebook_cd) =
        host::reanchored(decay, codebook_cd.view(), &code_t, usage_c.view(), anchor_cd.view());
    Ok(vec![("usage", usage_c.into()), ("rate", rate_c.into()), ("codebook", codebook_cd.into())])
}

pub(super) fn balance(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (expert_tk, temperature, over_k) = read_balance(args)?;
    let logits_te = args.matrix("logits")?;
    let balance = host::balance_terms(logits_te.view(), expert_tk.view(), temperature, over_k);
    Ok(vec![
        ("fraction", balance.fraction_e.into()),
        ("prob", balance.mean_prob_e.into()),
        ("loss", balance.loss.into()),
    ])
}

pub(super) fn consistency(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (before_tk, now_tk) =
        (choices(args, "prev", usize::MAX)?, choices(args, "cur", usize::MAX)?);
    expect_shape("cur", now_tk.shape(), before_tk.shape())?;
    Ok(vec![("consistency", host::consistency(before_tk.view(), now_tk.view()).into())])
}

pub(super) fn collapse(args: &Args<'_>) -> Result<Outputs, OpError> {
    let y_nd = args.matrix("outputs")?;
    if y_nd.nrows() < 2 {
        return Err(OpError::new(format!("outputs: shape {:?} has no pair", y_nd.shape())));
    }
    Ok(vec![("collapse", host::collapse(y_nd.view()).into())])
}
