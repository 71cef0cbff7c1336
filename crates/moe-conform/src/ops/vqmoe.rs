//! VQMoE: quantiser, layer, re-anchoring, balance, consistency, collapse (`moe_routers::vq_moe`).
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

mod host;
mod torch;

use super::experts::HostBank;
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError};
use moe_routers::Settings;
use moe_routers::config::{check_positive, check_top_k, resolve};
use moe_routers::vq_moe::{Config, Mode, Score, reanchor};
use ndarray::Array2;
use tch::Tensor;

const QUANTIZE: &[&str] = &["x", "codebook"];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "vqmoe.quantize",
        config: &["preset", "input", "mix_rate", "beta", "distance", "num_experts", "code_map"],
        tensors: QUANTIZE,
        reference: Some(host::quantize),
        torch: Some(torch::quantize),
    },
    Op {
        name: "vqmoe.loss",
        config: &["preset", "input", "mix_rate", "beta", "distance"],
        tensors: QUANTIZE,
        reference: Some(host::loss),
        torch: Some(torch::loss),
    },
    Op {
        name: "vqmoe.layer",
        config: &[
            "preset",
            "input",
            "mix_rate",
            "beta",
            "distance",
            "mode",
            "code_map",
            "score",
            "ln_in",
            "ln_out",
            "ln_eps",
            "embed_eps",
            "block",
            "top_k",
        ],
        tensors: &[
            "x",
            "codebook",
            "W1",
            "b1",
            "W2",
            "b2",
            "embeddings",
            "router",
            "bias",
            "gate_w",
            "gate_b",
            "ln_weight",
            "ln_bias",
        ],
        reference: Some(host::layer),
        torch: Some(torch::layer),
    },
    Op {
        name: "vqmoe.reanchor",
        config: &["decay"],
        tensors: &["codebook", "codes", "usage", "anchors"],
        reference: Some(host::reanchor),
        torch: Some(torch::reanchor),
    },
    Op {
        name: "vqmoe.balance",
        config: &["convention", "temperature"],
        tensors: &["logits", "indices"],
        reference: Some(host::balance),
        torch: Some(torch::balance),
    },
    Op {
        name: "vqmoe.consistency",
        config: &[],
        tensors: &["prev", "cur"],
        reference: Some(host::consistency),
        torch: None,
    },
    Op {
        name: "vqmoe.collapse",
        config: &[],
        tensors: &["outputs"],
        reference: Some(host::collapse),
        torch: None,
    },
];

/// The settings, checked.
fn config(args: &Args<'_>) -> Result<Config, OpError> {
    let settings: Settings = args.settings().filter(|(key, _)| key != "num_experts").collect();
    let config: Config = resolve(&settings)?;
    config.check_values()?;
    Ok(config)
}

/// Tokens and a codebook of the same width.
fn tokens_and_codes(args: &Args<'_>) -> Result<(Array2<f64>, Array2<f64>), OpError> {
    let (x_td, codebook_cd) = (args.matrix("x")?, args.matrix("codebook")?);
    let want = [codebook_cd.nrows(), x_td.ncols()];
    expect_shape("codebook", codebook_cd.shape(), &want)?;
    Ok((x_td, codebook_cd))
}

/// Number of experts that codes are mapped to, if they are.
fn mapped(args: &Args<'_>, config: &Config, codes: usize) -> Result<Option<usize>, OpError> {
    let experts = args.usize("num_experts", 0)?;
    if experts == 0 {
        return Ok(None);
    }
    config.code_map.expert_c(codes, experts)?;
    Ok(Some(experts))
}

/// What a layer reads, its shapes checked; which tensors those are depends on the settings.
struct Layer {
    config: Config,
    experts: usize,
    width: usize,
    router: Option<&'static str>,
    expert_c: Vec<usize>,
}

impl Layer {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let config = config(args)?;
        let (x_td, codebook_cd) = tokens_and_codes(args)?;
        let (width, experts) = (x_td.ncols(), args.cube("W1")?.dim().0);
        if experts == 0 {
            return Err(OpError::new("W1: shape without experts"));
        }
        HostBank::read(args, experts, width)?;
        for name in ["ln_weight", "ln_bias"] {
            check_row(args, name, width)?;
        }
        let router = match (config.mode, config.score) {
            (Mode::Discrete, _) => None,
            (_, Score::Embedding) => Some("embeddings"),
            (_, Score::Linear) => Some("router"),
        };
        if let Some(name) = router {
            args.top_k(config.top_k, experts)?;
            check_top_k(config.top_k, experts)?;
            expect_shape(name, args.matrix(name)?.shape(), &[experts, width])?;
            expect_shape("gate_w", args.matrix("gate_w")?.shape(), &[2, width])?;
            check_row(args, "gate_b", 2)?;
            if config.score == Score::Linear {
                check_row(args, "bias", experts)?;
            }
        }
        let expert_c = config.code_map.expert_c(codebook_cd.nrows(), experts)?;
        Ok(Self { config, experts, width, router, expert_c })
    }
}

fn check_row(args: &Args<'_>, name: &str, len: usize) -> Result<(), OpError> {
    match args.optional(name, Args::vector)? {
        Some(row) => expect_shape(name, row.shape(), &[len]),
        None => Ok(()),
    }
}

/// Inputs of `reanchor`, their shapes and ranges checked: decay and codes.
fn check_reanchor(args: &Args<'_>) -> Result<(f64, Vec<usize>), OpError> {
    let decay = args.f64("decay", 0.99)?;
    reanchor::check(decay)?;
    let codebook_cd = args.matrix("codebook")?;
    expect_shape("anchors", args.matrix("anchors")?.shape(), codebook_cd.shape())?;
    expect_shape("usage", args.vector("usage")?.shape(), &[codebook_cd.nrows()])?;
    let codes = args.indices("codes", codebook_cd.nrows())?;
    expect_shape("codes", codes.shape(), &[codes.len()])?;
    if codes.is_empty() {
        return Err(OpError::new("codes: shape [0] is empty"));
    }
    Ok((decay, codes.into_iter().collect()))
}

/// Inputs of `balance`: indices, temperature, whether the loss is over k.
fn read_balance(args: &Args<'_>) -> Result<(Array2<usize>, f64, bool), OpError> {
    let over_k = args.word("convention", "switch", &["switch", "reference"])? == "reference";
    let temperature = args.f64("temperature", 1.0)?;
    check_positive("temperature", temperature)?;
    let (t, e) = args.matrix("logits")?.dim();
    let expert_tk = choices(args, "indices", e)?;
    expect_shape("indices", expert_tk.shape(), &[t, expert_tk.ncols()])?;
    Ok((expert_tk, temperature, over_k))
}

/// A matrix of indices.
fn choices(args: &Args<'_>, name: &str, below: usize) -> Result<Array2<usize>, OpError> {
    args.matrix(name)?;
    let indices = args.indices(name, below)?;
    Ok(indices.into_dimensionality().expect("a matrix"))
}

/// Whole numbers as a tensor.
fn index_tensor<'a>(indices: impl IntoIterator<Item = &'a usize>) -> Tensor {
    Tensor::from_slice(&indices.into_iter().map(|&i| i as i64).collect::<Vec<_>>())
}
