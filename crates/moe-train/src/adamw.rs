//! AdamW with a state that can be saved (Loshchilov and Hutter 2017, arXiv 1711.05101).
//!
//! ```text
//! p <- p (1 - lr wd)
//! m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
//! p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! The same order of operations as libtorch's, whose own optimiser hides its moments from `tch`.

use moe_routers::{Param, ParamStore, Role};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Settings, with common values for language models.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, on matrices only ([`Role::Decayed`]).
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// The optimiser.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: Vec<Moments>,
}

/// First and second moment of one parameter.
#[derive(Debug)]
struct Moments {
    param: Tensor,
    name: String,
    decay: bool,
    m: Tensor,
    v: Tensor,
}

impl Moments {
    fn new(param: &Param) -> Self {
        Self {
            param: param.tensor.shallow_clone(),
            name: param.name.clone(),
            decay: param.role == Role::Decayed,
            m: param.tensor.detach().zeros_like(),
            v: param.tensor.detach().zeros_like(),
        }
    }
}

impl AdamW {
    /// An optimiser of the learned parameters of `store`, moments at zero.
    pub fn new(store: &ParamStore, config: AdamWConfig) -> Self {
        let learned = store.entries();
        let learned = learned.iter().filter(|p| p.role != Role::Buffer);
        Self { config, steps: 0, moments: learned.map(Moments::new).collect() }
    }

    /// Updates every parameter that has a gradient.
    pub fn step(&mut self, lr: f64) {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let step = self.steps as f64;
        let (bias1, bias2) = (1.0 - beta1.powf(step), 1.0 - beta2.powf(step));
        let _guard = tch::no_grad_guard();
        for Moments { param, decay, m, v, .. } in &mut self.moments {
            let grad = param.grad();
            if !grad.defined() {
                continue;
            }
            if *decay && weight_decay != 0.0 {
                let _ = param.g_mul_scalar_(1.0 - lr * weight_decay);
            }
            let _ = m.lerp_(&grad, 1.0 - beta1);
            let _ = v.g_mul_scalar_(beta2).addcmul_(&grad, &(&grad * (1.0 - beta2)));
            let denominator = (v.sqrt() / bias2.sqrt()).g_add_scalar_(eps);
            let _ = param.addcdiv_(&(&*m * (-lr / bias1)), &denominator);
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Sets the number of steps taken, after the moments were restored.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// The moments by name, `<parameter>.m` and `<parameter>.v`, sharing storage with the optimiser:
    /// writing to them restores it.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let pair = |s: &Moments| {
            [
                (format!("{}.m", s.name), s.m.shallow_clone()),
                (format!("{}.v", s.name), s.v.shallow_clone()),
            ]
        };
        self.moments.iter().flat_map(pair).collect()
    }
}

/// Scales all gradients so that their joint norm is at most `limit`; returns the norm before.
///
/// As libtorch's `clip_grad_norm_`: factor `limit / (norm + 1e-6)`, never above 1.
pub fn clip_grad_norm(store: &ParamStore, limit: f64) -> f64 {
    let entries = store.entries();
    let mut grads: Vec<Tensor> =
        entries.iter().map(|p| p.tensor.grad()).filter(Tensor::defined).collect();
    if grads.is_empty() {
        return 0.0;
    }
    let norms: Vec<Tensor> = grads.iter().map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
    let factor = limit / (norm + 1e-6);
    if factor < 1.0 {
        for grad in &mut grads {
            let _ = grad.g_mul_scalar_(factor);
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::tolerance::tolerance;
    use tch::nn::OptimizerConfig;
    use tch::{Device, Kind, nn};

    /// A small curved loss whose gradient depends on the parameter.
    fn loss(w: &Tensor, step: i64) -> Tensor {
        ((w * (step as f64 * 0.1 + 1.0)).sin() + w * 0.1).square().sum(Kind::Double)
    }

    #[test]
    fn equals_libtorch_over_fifty_steps() {
        let config = AdamWConfig::default();
        let store = ParamStore::new(1, Device::Cpu, Kind::Double);
        let mine = store.root().matrix("w", &[4, 5], 1.0);
        let mut optimizer = AdamW::new(&store, config);

        let mut vs = nn::VarStore::new(Device::Cpu);
        let theirs = vs.root().zeros("w", &[4, 5]);
        vs.double();
        tch::no_grad(|| theirs.shallow_clone().copy_(&mine));
        let AdamWConfig { beta1, beta2, eps, weight_decay } = config;
        let build = nn::AdamW { beta1, beta2, wd: weight_decay, eps, amsgrad: false };
        let mut reference = build.build(&vs, 0.0).unwrap();

        for step in 0..50 {
            let lr = 0.02 * (1.0 + f64::from(step as i32)).sqrt();
            store.zero_grad();
            loss(&mine, step).backward();
            optimizer.step(lr);
            reference.set_lr(lr);
            reference.backward_step(&loss(&theirs, step));
        }
        let worst = (&mine - &theirs).abs().max().double_value(&[]);
        assert!(worst <= tolerance(Kind::Double).value, "off by {worst:e}");
        assert!(optimizer.steps() == 50 && optimizer.state()[0].0 == "w.m");
    }

    #[test]
    fn clipping_by_hand() {
        // Gradients 3 and 4: norm 5, scaled by 1 / (5 + 1e-6).
        let store = ParamStore::new(0, Device::Cpu, Kind::Double);
        let (a, b) = (store.root().constant("a", &[1], 1.0), store.root().constant("b", &[1], 1.0));
        (&a * 3.0 + &b * 4.0).sum(Kind::Double).backward();
        assert_eq!(clip_grad_norm(&store, 1.0), 5.0);
        assert!((a.grad().double_value(&[0]) - 3.0 / (5.0 + 1e-6)).abs() < 1e-12);
        assert!((b.grad().double_value(&[0]) - 4.0 / (5.0 + 1e-6)).abs() < 1e-12);
        assert!(clip_grad_norm(&store, 10.0) < 1.0 + 1e-9);
    }
}
