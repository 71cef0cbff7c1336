//! SMoE-VAE (arXiv 2509.10025): one encoder, a gate on the latent, N decoders; one decision an image.
//!
//! ```text
//! z = mu + exp(logvar / 2) eps,  in training and in evaluation                        (1)
//! xhat = sum_n w_n D_n(z): w = softmax(gate(z)) in unsupervised training, else the best one (3)
//! loss = (sum (xhat - x)^2 + beta KL) / B + what the gate adds                        (4)-(7)
//! ```
//!
//! The equations' numbers are those of [`moe_routers::smoe_vae`], whose router is the gate: it reads the
//! latents of a batch as one group and returns a plan, its losses come back with it. Here the sums over a
//! batch of (4) are divided by its images, and the router divides its coefficients likewise: gradients are
//! those of the release over B, which its optimiser, Adam, does not see but for `eps`.
//!
//! Pixels are on `[0, 1]`. Every draw is the context's, by the name `latent`.
//!
//! Axis letters: `b` images, `n` experts, `z` latent width, `p` pixels, `c` channels, `r` rows, `q` columns
//! of an image; `g` groups, `t` rows of a group (the images), `d` width, `e` experts, `k` choices as the
//! router counts them.

mod networks;

pub use networks::{Decoder, DecoderSize, Encoder, EncoderSize, SIDE};

use crate::layer::LayerTrace;
use crate::lm::ModelError;
use moe_core::RouteError;
use moe_routers::plan::{ChoicesGtk, TensorPlan};
use moe_routers::router::Dims;
use moe_routers::smoe_vae::torch::reparameterise;
use moe_routers::{ParamStore, Phase, RouteCx, Router, RouterConfig, losses};
use std::cell::Cell;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Most experts, and the widest latent: beyond them a size is a mistake in a recipe.
const MOST: i64 = 4096;

/// Sizes of the model, and the weight of its divergence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VaeConfig {
    /// Size of the encoder.
    pub encoder: EncoderSize,
    /// Size of every decoder.
    pub decoder: DecoderSize,
    /// Latent width.
    pub latent: i64,
    /// Number of decoders.
    pub experts: i64,
    /// Weight of the divergence (6).
    pub beta: f64,
}

impl VaeConfig {
    /// Refuses sizes outside their range.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<(), ModelError> {
        for (key, value) in [("latent", self.latent), ("experts", self.experts)] {
            if !(1..=MOST).contains(&value) {
                return Err(ModelError { key, reason: format!("{value} is outside 1..={MOST}") });
            }
        }
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            let reason = format!("{} must be finite and at least 0", self.beta);
            return Err(ModelError { key: "beta", reason });
        }
        Ok(())
    }
}

/// The model.
#[derive(Debug)]
pub struct SmoeVae {
    encoder: Encoder,
    decoders: Vec<Decoder>,
    gate: Box<dyn Router>,
    config: VaeConfig,
}

/// What a pass over a batch gives.
#[derive(Debug)]
pub struct Pass {
    /// Means of the latents, `[b, z]`.
    pub mu_bz: Tensor,
    /// Sampled latents, `[b, z]`.
    pub z_bz: Tensor,
    /// Reconstruction by the gate's plan, `[b, 784]`.
    pub xhat_bp: Tensor,
    /// Squared error over the pixels of every image, `[b]`.
    pub error_b: Tensor,
    /// Divergence of every image from the standard normal distribution, `[b]`, without beta.
    pub kl_b: Tensor,
    /// What the gate decided.
    pub trace: LayerTrace,
}

impl SmoeVae {
    /// A fresh model whose gate is `gate`, a router over latents.
    ///
    /// # Errors
    /// Sizes outside their range.
    pub fn new(
        store: &ParamStore,
        config: VaeConfig,
        gate: &dyn RouterConfig,
    ) -> Result<Self, ModelError> {
        config.check()?;
        let (root, VaeConfig { latent, experts, .. }) = (store.root(), config);
        let bank = root.child("decoder");
        let decoder = |n: i64| Decoder::new(&bank.child(n), config.decoder, latent);
        Ok(Self {
            encoder: Encoder::new(&root.child("encoder"), config.encoder, latent),
            gate: gate.build(&root.child("gate").wide(), Dims { width: latent, experts }),
            decoders: (0..experts).map(decoder).collect(),
            config,
        })
    }

    /// Encodes, routes and decodes images, `[b, 1, 28, 28]`; `label_b` (int64, `[b]`) are for a gate that
    /// is taught by them.
    ///
    /// # Errors
    /// A gate that refuses: without labels it was to be taught by, or latents that are not finite.
    ///
    /// # Panics
    /// If the images have another size.
    pub fn forward(
        &self,
        x_bcrq: &Tensor,
        label_b: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<Pass, RouteError> {
        let [mu_bz, logvar_bz] = self.encoder.forward(x_bcrq);
        let z_bz = reparameterise(&mu_bz, &logvar_bz, Some(&cx.normal("latent", &mu_bz))); // (1)
        let (xhat_bp, trace) = self.route(&z_bz, label_b, cx)?;
        let error_b = squared_error(&xhat_bp, x_bcrq);
        let kl_bz = (&logvar_bz + 1.0 - mu_bz.square() - logvar_bz.exp()) * -0.5; // (4)
        let kl_b = kl_bz.sum_dim_intlist(-1, false, None::<Kind>);
        Ok(Pass { mu_bz, z_bz, xhat_bp, error_b, kl_b, trace })
    }

    /// (2), (3): images `[b, 784]` of latents by the gate's plan.
    fn route(
        &self,
        z_bz: &Tensor,
        label_b: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, LayerTrace), RouteError> {
        let (start, decoding) = (Instant::now(), Cell::new(Duration::ZERO));
        let execute = |z_gtd: &Tensor, plan: &TensorPlan| {
            let start = Instant::now();
            let xhat_gtp = self.carry_out(z_gtd, plan);
            decoding.set(decoding.get() + start.elapsed());
            xhat_gtp
        };
        let (z_gtd, label_gt) = (z_bz.unsqueeze(0), label_b.unsqueeze(0));
        let cx = RouteCx { token_gt: Some(&label_gt), ..*cx };
        let (xhat_gtp, routing) = self.gate.forward(&z_gtd, &cx, &execute)?;
        let trace = LayerTrace {
            layer: 0,
            gate_entropy: losses::gate_entropy(&routing.gate_gte),
            left_behind: routing.plan.left_behind(),
            input_gtd: matches!(cx.phase, Phase::Eval).then(|| z_gtd.shallow_clone()),
            output_gtd: matches!(cx.phase, Phase::Eval).then(|| xhat_gtp.shallow_clone()),
            routing,
            route_time: start.elapsed().saturating_sub(decoding.get()),
        };
        Ok((xhat_gtp.squeeze_dim(0), trace))
    }

    /// Runs every decoder on the latents that the plan sends it: `[g, t, d] -> [g, t, p]`.
    fn carry_out(&self, z_gtd: &Tensor, plan: &TensorPlan) -> Tensor {
        plan.apply(z_gtd, |n, z_nd| self.decoders[n].forward(z_nd))
    }

    /// (3) with the weights of training, whatever the phase of `pass` was: the mix of all decoders by the
    /// gate's probabilities, `[b, 784]`.
    pub fn soft(&self, pass: &Pass) -> Tensor {
        let logits_gte = &pass.trace.routing.logits_gte;
        let prob_gte = logits_gte.softmax(-1, logits_gte.kind());
        let experts = self.config.experts;
        let plan = ChoicesGtk::top_k(&prob_gte, experts).plan(experts, (None, Default::default()));
        self.carry_out(&pass.z_bz.unsqueeze(0), &plan).squeeze_dim(0)
    }

    /// Mean over the images of a pass of what (4) asks for, a scalar: the objective without the gate's
    /// losses, which the trace has.
    pub fn loss(&self, pass: &Pass) -> Tensor {
        (&pass.error_b + &pass.kl_b * self.config.beta).mean(None::<Kind>)
    }

    /// Lets the gate update what no gradient reaches, with the loads of the step just taken, `[e]`.
    pub fn after_step(&mut self, load_e: &Tensor) {
        self.gate.after_step(load_e);
    }

    /// Parameters that one image uses in evaluation: all but the decoders that it does not visit.
    pub fn active_params(&self, store: &ParamStore) -> usize {
        let entries = store.entries();
        let of_decoders = entries.iter().filter(|param| param.name.starts_with("decoder."));
        let bank: usize = of_decoders.map(|param| param.tensor.numel()).sum();
        store.trainable_count() - bank + bank / self.decoders.len()
    }

    /// FLOPs of an image that `decoders` decoders decode, and values that its forward pass keeps: two a
    /// product of encoder, gate and decoders.
    pub fn cost(&self, store: &ParamStore, decoders: f64) -> (f64, f64) {
        let entries = store.entries();
        let of_gate = entries.iter().filter(|p| p.name.starts_with("gate.") && p.tensor.dim() > 1);
        let gate: f64 = of_gate.map(|param| param.tensor.numel() as f64).sum();
        let (encoder, of_decoder) = (self.encoder.cost(), self.decoders[0].cost());
        let products = encoder.0 + gate + decoders * of_decoder.0;
        (2.0 * products, encoder.1 + decoders * of_decoder.1)
    }
}

/// Squared error over the pixels of every image: `[b, p]` against `[b, ..]`, `[b]`.
pub fn squared_error(xhat_bp: &Tensor, x_bcrq: &Tensor) -> Tensor {
    (xhat_bp - x_bcrq.flatten(1, -1)).square().sum_dim_intlist(-1, false, None::<Kind>)
}

#[cfg(test)]
mod tests;
