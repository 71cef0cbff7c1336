//! SMoE-VAE: gate, losses, the release's small networks, parameter counts (`moe_routers::smoe_vae`).
//!
//! Axis letters: `b` images, `n` experts, `p` pixels, `z` latent width.

mod host;
mod torch;

use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_routers::Settings;
use moe_routers::config::resolve;
use moe_routers::smoe_vae::{Config, Objective, count};
use ndarray::{Array4, Ix4};

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "smoe_vae.gate",
        config: &["mode", "objective"],
        tensors: &["logits", "dec"],
        reference: Some(host::gate),
        torch: Some(torch::gate),
    },
    Op {
        name: "smoe_vae.gate_mlp",
        config: &[],
        tensors: &["z", "w1", "b1", "w2", "b2", "w3", "b3"],
        reference: Some(host::gate_mlp),
        torch: Some(torch::gate_mlp),
    },
    Op {
        name: "smoe_vae.reparameterise",
        config: &[],
        tensors: &["mu", "logvar", "eps"],
        reference: Some(host::reparameterise),
        torch: Some(torch::reparameterise),
    },
    Op {
        name: "smoe_vae.loss",
        config: &["preset", "mode", "objective", "beta", "balance_coeff", "entropy_coeff"],
        tensors: &["logits", "dec", "x", "mu", "logvar", "labels"],
        reference: Some(host::loss),
        torch: Some(torch::loss),
    },
    Op {
        name: "smoe_vae.encoder_lite",
        config: &[],
        tensors: &["x", "c1", "c1b", "c2", "c2b", "wmu", "bmu", "wlv", "blv"],
        reference: Some(host::encoder_lite),
        torch: Some(torch::encoder_lite),
    },
    Op {
        name: "smoe_vae.decoder_lite",
        config: &["side"],
        tensors: &["z", "fc", "fcb", "c1", "c1b", "c2", "c2b"],
        reference: Some(host::decoder_lite),
        torch: Some(torch::decoder_lite),
    },
    Op {
        name: "smoe_vae.param_count",
        config: &["latent", "experts", "encoder", "decoder"],
        tensors: &[],
        reference: Some(param_count),
        torch: None,
    },
];

fn param_count(args: &Args<'_>) -> Result<Outputs, OpError> {
    let positive = |key: &str, default| match args.usize(key, default)? {
        0 => Err(OpError::new(format!("{key}: 0 is not above 0"))),
        n => Ok(n as u128),
    };
    let (latent, experts) = (positive("latent", 32)?, positive("experts", 5)?);
    let encoder = args.word("encoder", "medium", &["medium", "lite"])?;
    let decoder = args.word("decoder", "lite", &["lite", "medium", "full"])?;
    let (encoder, decoder) = (count::encoder(encoder, latent)?, count::decoder(decoder, latent)?);
    let gate = count::gate(latent, experts);
    let total = encoder + decoder * experts + gate;
    Ok(vec![
        ("encoder", (encoder as f64).into()),
        ("decoder", (decoder as f64).into()),
        ("gate", (gate as f64).into()),
        ("total", (total as f64).into()),
    ])
}

/// The settings, checked.
fn config(args: &Args<'_>) -> Result<Config, OpError> {
    let settings: Settings = args.settings().collect();
    let config: Config = resolve(&settings)?;
    config.check()?;
    Ok(config)
}

/// Whether there are decoded images, `[b, n, p]` for logits `[b, n]`.
fn check_decoded(args: &Args<'_>) -> Result<bool, OpError> {
    let (b, n) = args.matrix("logits")?.dim();
    match args.optional("dec", Args::cube)? {
        Some(dec) => expect_shape("dec", dec.shape(), &[b, n, dec.dim().2]).map(|()| true),
        None => Ok(false),
    }
}

/// Shapes of everything `loss` reads, and its labels if it is supervised.
fn check_loss(args: &Args<'_>, config: &Config) -> Result<Option<Vec<usize>>, OpError> {
    let ((b, n), pixels) = (args.matrix("logits")?.dim(), args.matrix("x")?.ncols());
    expect_shape("x", args.matrix("x")?.shape(), &[b, pixels])?;
    expect_shape("dec", args.cube("dec")?.shape(), &[b, n, pixels])?;
    let latent = args.matrix("mu")?.ncols();
    for name in ["mu", "logvar"] {
        expect_shape(name, args.matrix(name)?.shape(), &[b, latent])?;
    }
    if config.objective == Objective::Unsupervised {
        return Ok(None);
    }
    // Labels are reduced modulo N; a bound keeps them whole numbers.
    let labels = args.indices("labels", 1 << 53)?;
    expect_shape("labels", labels.shape(), &[b])?;
    Ok(Some(labels.into_iter().collect()))
}

/// A matrix `[out, from]` and a bias `[out]`; returns `out`.
fn check_linear(args: &Args<'_>, w: &str, b: &str, from: usize) -> Result<usize, OpError> {
    let matrix = args.matrix(w)?;
    expect_shape(w, matrix.shape(), &[matrix.nrows(), from])?;
    expect_shape(b, args.vector(b)?.shape(), &[matrix.nrows()])?;
    Ok(matrix.nrows())
}

/// Shapes of the gate's layers.
fn check_gate_mlp(args: &Args<'_>) -> Result<(), OpError> {
    let mut width = args.matrix("z")?.ncols();
    for (w, b) in [("w1", "b1"), ("w2", "b2"), ("w3", "b3")] {
        width = check_linear(args, w, b, width)?;
    }
    Ok(())
}

/// An array of four axes, none empty.
fn image(args: &Args<'_>, name: &str) -> Result<Array4<f64>, OpError> {
    let _ = args.torch(name)?; // refuses what is not finite
    let array = args.raw(name)?.clone();
    let shape = array.shape().to_vec();
    let four = array.into_dimensionality::<Ix4>().ok().filter(|a| !a.is_empty());
    four.ok_or_else(|| OpError::new(format!("{name}: shape {shape:?} has not four filled axes")))
}

/// Kernels `[out, from, 3, 3]` and a bias `[out]`; returns `out`.
fn check_convolution(args: &Args<'_>, w: &str, b: &str, from: usize) -> Result<usize, OpError> {
    let kernels = image(args, w)?;
    let out = kernels.dim().0;
    expect_shape(w, kernels.shape(), &[out, from, 3, 3])?;
    expect_shape(b, args.vector(b)?.shape(), &[out])?;
    Ok(out)
}

/// Shapes of the encoder.
fn check_encoder(args: &Args<'_>) -> Result<(), OpError> {
    let x = image(args, "x")?;
    let (b, _, rows, columns) = x.dim();
    expect_shape("x", x.shape(), &[b, 1, rows, rows])?;
    let channels = check_convolution(args, "c1", "c1b", 1)?;
    let channels = check_convolution(args, "c2", "c2b", channels)?;
    let quarter = |side: usize| side.div_ceil(2).div_ceil(2);
    let features = channels * quarter(rows) * quarter(columns);
    let latent = check_linear(args, "wmu", "bmu", features)?;
    let spread = check_linear(args, "wlv", "blv", features)?;
    expect_shape("wlv", &[spread], &[latent])
}

/// Shapes of the decoder; returns the side of its first image.
fn check_decoder(args: &Args<'_>) -> Result<usize, OpError> {
    let side = args.usize("side", 7)?;
    if !(1..=1 << 12).contains(&side) {
        return Err(OpError::new(format!("side: {side} is no side of an image")));
    }
    let features = check_linear(args, "fc", "fcb", args.matrix("z")?.ncols())?;
    let channels = image(args, "c1")?.dim().1;
    if features != channels * side * side {
        return Err(OpError::new(format!(
            "fc: shape [{features}, …], expected {channels} channels of {side} x {side}"
        )));
    }
    let channels = check_convolution(args, "c1", "c1b", channels)?;
    check_convolution(args, "c2", "c2b", channels)?;
    expect_shape("c2", &[image(args, "c2")?.dim().0], &[1])?;
    Ok(side)
}
