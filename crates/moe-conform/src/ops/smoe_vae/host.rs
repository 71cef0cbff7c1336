//! The operations on the host.

use super::{
    check_decoded, check_decoder, check_encoder, check_gate_mlp, check_loss, config, image,
};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Out, Outputs};
use moe_routers::smoe_vae::host::{self, Batch, Linear, Terms};
use moe_routers::smoe_vae::networks::{self, Convolution};
use ndarray::{Array1, Axis};

fn column(expert_b: &[usize]) -> Out {
    expert_b.iter().map(|&n| n as f64).collect::<Array1<f64>>().insert_axis(Axis(1)).into()
}

pub(super) fn gate(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let decoded = check_decoded(args)?;
    let gate = host::gate(config.dense(), args.matrix("logits")?.view());
    let mut outputs: Outputs =
        vec![("indices", column(&gate.expert_b)), ("load", host::load(&gate).into())];
    if decoded {
        outputs.push(("xhat", host::mix(&gate, args.cube("dec")?.view()).into()));
    }
    outputs.extend([
        ("probs", gate.prob_bn.into()),
        ("mask", gate.mask_bn.into()),
        ("combine", gate.combine_bn.into()),
    ]);
    Ok(outputs)
}

fn linear(args: &Args<'_>, w: &str, b: &str) -> Result<Linear, OpError> {
    Ok((args.matrix(w)?, args.vector(b)?))
}

pub(super) fn gate_mlp(args: &Args<'_>) -> Result<Outputs, OpError> {
    check_gate_mlp(args)?;
    let layers = [linear(args, "w1", "b1")?, linear(args, "w2", "b2")?, linear(args, "w3", "b3")?];
    let logits_bn = host::gate_mlp(args.matrix("z")?.view(), &layers);
    let gate = host::gate(false, logits_bn.view());
    Ok(vec![
        ("indices", column(&gate.expert_b)),
        ("logits", logits_bn.into()),
        ("probs", gate.prob_bn.into()),
    ])
}

pub(super) fn reparameterise(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (mu_bz, logvar_bz) = (args.matrix("mu")?, args.matrix("logvar")?);
    expect_shape("logvar", logvar_bz.shape(), mu_bz.shape())?;
    let eps_bz = args.optional("eps", Args::matrix)?;
    if let Some(eps_bz) = &eps_bz {
        expect_shape("eps", eps_bz.shape(), mu_bz.shape())?;
    }
    let eps_bz = eps_bz.as_ref().map(|eps_bz| eps_bz.view());
    Ok(vec![("z", host::reparameterise(mu_bz.view(), logvar_bz.view(), eps_bz).into())])
}

pub(super) fn loss(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = config(args)?;
    let labels_b = check_loss(args, &config)?;
    let gate = host::gate(config.dense(), args.matrix("logits")?.view());
    let losses = host::loss(
        &config,
        &gate,
        &Batch {
            decoded_bnp: args.cube("dec")?.view(),
            x_bp: args.matrix("x")?.view(),
            mu_bz: args.matrix("mu")?.view(),
            logvar_bz: args.matrix("logvar")?.view(),
            labels_b: labels_b.as_deref(),
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
            ("entropy", entropy_b.mean().unwrap_or(0.0).into()),
            ("entropy_rows", entropy_b.into()),
        ],
        Terms::Supervised { cross_entropy, target_b } => {
            let target_b: Array1<f64> = target_b.iter().map(|&n| n as f64).collect();
            vec![("cross_entropy", cross_entropy.into()), ("targets", target_b.into())]
        }
    }
}

fn convolutions(args: &Args<'_>) -> Result<[Convolution; 2], OpError> {
    let read = |w: &str, b: &str| Ok::<_, OpError>((image(args, w)?, args.vector(b)?));
    Ok([read("c1", "c1b")?, read("c2", "c2b")?])
}

pub(super) fn encoder_lite(args: &Args<'_>) -> Result<Outputs, OpError> {
    check_encoder(args)?;
    let heads = [linear(args, "wmu", "bmu")?, linear(args, "wlv", "blv")?];
    let [mu_bz, logvar_bz] =
        networks::encode_lite(&image(args, "x")?, &convolutions(args)?, &heads);
    Ok(vec![("mu", mu_bz.into()), ("logvar", logvar_bz.into())])
}

pub(super) fn decoder_lite(args: &Args<'_>) -> Result<Outputs, OpError> {
    let side = check_decoder(args)?;
    let fc = linear(args, "fc", "fcb")?;
    let z_bz = args.matrix("z")?;
    let xhat = networks::decode_lite(z_bz.view(), &fc, &convolutions(args)?, side);
    Ok(vec![("xhat", xhat.into())])
}
