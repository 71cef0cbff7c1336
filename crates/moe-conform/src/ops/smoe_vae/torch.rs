//! The operations on libtorch.

use super::{check_decoded, check_decoder, check_encoder, check_gate_mlp, check_loss, config};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Outputs};
use moe_routers::smoe_vae::torch::{self, Batch, Terms, Weights};
use tch::Tensor;

pub(super) fn gate(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let decoded = check_decoded(args)?;
    let gate = torch::gate(config.dense(), &args.torch("logits")?);
    let mut outputs: Outputs = vec![("load", torch::load(&gate).into())];
    if decoded {
        outputs.push(("xhat", torch::mix(&gate, &args.torch("dec")?).into()));
    }
    outputs.extend([
        ("indices", gate.expert_b1.into()),
        ("probs", gate.prob_bn.into()),
        ("mask", gate.mask_bn.into()),
        ("combine", gate.combine_bn.into()),
    ]);
    Ok(outputs)
}

fn weights(args: &Args<'_>, w: &str, b: &str) -> Result<Weights, OpError> {
    Ok((args.torch(w)?, args.torch(b)?))
}

pub(super) fn gate_mlp(args: &Args<'_>) -> Result<Outputs, OpError> {
    check_gate_mlp(args)?;
    let layers =
        [weights(args, "w1", "b1")?, weights(args, "w2", "b2")?, weights(args, "w3", "b3")?];
    let logits_bn = torch::gate_mlp(&args.torch("z")?, &layers);
    let gate = torch::gate(false, &logits_bn);
    Ok(vec![
        ("indices", gate.expert_b1.into()),
        ("logits", logits_bn.into()),
        ("probs", gate.prob_bn.into()),
    ])
}

pub(super) fn reparameterise(args: &Args<'_>) -> Result<Outputs, OpError> {
    let shape = args.matrix("mu")?.shape().to_vec();
    expect_shape("logvar", args.matrix("logvar")?.shape(), &shape)?;
    if let Some(eps_bz) = args.optional("eps", Args::matrix)? {
        expect_shape("eps", eps_bz.shape(), &shape)?;
    }
    let eps_bz = args.torch_optional("eps")?;
    let (mu_bz, logvar_bz) = (args.torch("mu")?, args.torch("logvar")?);
    Ok(vec![("z", torch::reparameterise(&mu_bz, &logvar_bz, eps_bz.as_ref()).into())])
}

pub(super) fn loss(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let labels_b = check_loss(args, &config)?;
    let labels_b = labels_b.map(|labels| {
        Tensor::from_slice(&labels.iter().map(|&label| label as i64).collect::<Vec<_>>())
    });
    let gate = torch::gate(config.dense(), &args.torch("logits")?);
    let losses = torch::loss(
        &config,
        &gate,
        &Batch {
            decoded_bnp: &args.torch("dec")?,
            x_bp: &args.torch("x")?,
            mu_bz: &args.torch("mu")?,
            logvar_bz: &args.torch("logvar")?,
            labels_b: labels_b.as_ref(),
        },
    );
    let mut outputs: Outputs = vec![
        ("recon", losses.recon.into()),
        ("kl", losses.kl.into()),
        ("gating", losses.gating.into()),
        ("total", losses.total.into()),
        ("xhat", losses.xhat_bp.into()),
        ("mean_prob", losses.mean_prob_n.into()),
    ];
    outputs.extend(terms(losses.terms));
    Ok(outputs)
}

fn terms(terms: Terms) -> Outputs {
    match terms {
        Terms::Unsupervised { balance, entropy_b } => vec![
            ("balance", balance.into()),
            ("entropy", entropy_b.mean(None).into()),
            ("entropy_rows", entropy_b.into()),
        ],
        Terms::Supervised { cross_entropy, target_b } => {
            vec![("cross_entropy", cross_entropy.into()), ("targets", target_b.into())]
        }
    }
}

fn convolutions(args: &Args<'_>) -> Result<[Weights; 2], OpError> {
    Ok([weights(args, "c1", "c1b")?, weights(args, "c2", "c2b")?])
}

pub(super) fn encoder_lite(args: &Args<'_>) -> Result<Outputs, OpError> {
    check_encoder(args)?;
    let heads = [weights(args, "wmu", "bmu")?, weights(args, "wlv", "blv")?];
    let [mu_bz, logvar_bz] = torch::encode_lite(&args.torch("x")?, &convolutions(args)?, &heads);
    Ok(vec![("mu", mu_bz.into()), ("logvar", logvar_bz.into())])
}

pub(super) fn decoder_lite(args: &Args<'_>) -> Result<Outputs, OpError> {
    let side = check_decoder(args)? as i64;
    let fc = weights(args, "fc", "fcb")?;
    let xhat = torch::decode_lite(&args.torch("z")?, &fc, &convolutions(args)?, side);
    Ok(vec![("xhat", xhat.into())])
}
