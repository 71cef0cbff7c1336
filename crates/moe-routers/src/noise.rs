//! Where random draws come from: a function of (seed, step, layer, name), never a hidden generator.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StandardUniform};
use std::fmt::Debug;
use tch::{Kind, Tensor};

/// Which draw is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    /// Index of the sparse layer.
    pub layer: usize,
    /// Name of the draw within the router, as in the paper's file.
    pub name: &'static str,
}

/// Where draws come from. Tests hand the same draws to a router and to its reference.
pub trait Noise: Debug {
    /// Standard normal values of the shape, kind and device of `like`.
    fn normal(&self, site: Site, like: &Tensor) -> Tensor;

    /// Values uniform on `[0, 1)`, of the shape, kind and device of `like`.
    fn uniform(&self, site: Site, like: &Tensor) -> Tensor;

    /// Standard Gumbel values of the shape, kind and device of `like`: `-ln(-ln u)`.
    fn gumbel(&self, site: Site, like: &Tensor) -> Tensor {
        // The floor keeps a draw of exactly 0 from becoming -inf.
        -(-self.uniform(site, like).clamp_min(1e-30).log()).log()
    }
}

/// Draws keyed by seed, step, layer and name; the same call gives the same values on any machine.
#[derive(Debug, Clone, Copy)]
pub struct SeededNoise {
    seed: u64,
    /// Keeps the draws of training and evaluation apart.
    stream: u8,
    step: u64,
}

impl SeededNoise {
    /// Draws of training step `step`.
    pub fn train(seed: u64, step: u64) -> Self {
        Self { seed, stream: 0, step }
    }

    /// Draws of evaluation batch `batch`: the same at every evaluation.
    pub fn eval(seed: u64, batch: u64) -> Self {
        Self { seed, stream: 1, step: batch }
    }

    /// Each value goes through `finish` before it becomes one of the kind of `like`.
    fn draw<D: Distribution<f64>>(
        &self,
        site: Site,
        like: &Tensor,
        dist: D,
        finish: impl Fn(f64) -> f64,
    ) -> Tensor {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.step.to_le_bytes());
        key[16..23].copy_from_slice(&(site.layer as u64).to_le_bytes()[..7]);
        key[23] = self.stream;
        key[24..].copy_from_slice(&stable_hash(site.name).to_le_bytes());
        let rng = ChaCha8Rng::from_seed(key);
        let values: Vec<f64> = dist.sample_iter(rng).take(like.numel()).map(finish).collect();
        Tensor::from_slice(&values).view_as(like).to_kind(like.kind()).to_device(like.device())
    }
}

impl Noise for SeededNoise {
    fn normal(&self, site: Site, like: &Tensor) -> Tensor {
        self.draw(site, like, StandardNormal, |z| z)
    }

    fn uniform(&self, site: Site, like: &Tensor) -> Tensor {
        self.draw(site, like, StandardUniform, |u| below_one(u, like.kind()))
    }
}

/// A draw on `[0, 1)` in 24 bits, so that it is below 1 as an f32 too, which rounds to 1 what is closer
/// to it.
fn below_one(u: f64, kind: Kind) -> f64 {
    let steps = f64::from(1 << 24);
    let u = if kind == Kind::Double { u } else { f64::from(u as f32) };
    ((u * steps).floor() / steps).min(1.0 - steps.recip())
}

/// FNV-1a: tiny, and the same on every machine and toolchain, which `std`'s hasher is not.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const GATE: Site = Site { layer: 1, name: "gate" };

    fn normal(noise: SeededNoise, site: Site) -> Vec<f64> {
        let like = Tensor::zeros([64], (Kind::Double, Device::Cpu));
        Vec::try_from(noise.normal(site, &like)).unwrap()
    }

    #[test]
    fn the_same_key_gives_the_same_draw_and_any_other_key_another() {
        let base = normal(SeededNoise::train(3, 7), GATE);
        assert_eq!(base, normal(SeededNoise::train(3, 7), GATE));
        let others = [
            normal(SeededNoise::train(4, 7), GATE),
            normal(SeededNoise::train(3, 8), GATE),
            normal(SeededNoise::eval(3, 7), GATE),
            normal(SeededNoise::train(3, 7), Site { layer: 2, ..GATE }),
            normal(SeededNoise::train(3, 7), Site { name: "jitter", ..GATE }),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn uniform_draws_stay_below_one_in_f32() {
        for kind in [Kind::Float, Kind::Double] {
            assert!((below_one(1.0 - f64::EPSILON, kind) as f32) < 1.0, "{kind:?}");
        }
        let like = Tensor::zeros([10_000], (Kind::Float, Device::Cpu));
        let u = SeededNoise::train(0, 0).uniform(GATE, &like);
        assert!(u.max().double_value(&[]) < 1.0 && u.min().double_value(&[]) >= 0.0);
        assert!((u.mean(Kind::Float).double_value(&[]) - 0.5).abs() < 0.02);
    }
}
