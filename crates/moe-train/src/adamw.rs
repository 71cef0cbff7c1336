//! AdamW with a state that can be saved (Loshchilov and Hutter 2017, arXiv 1711.05101).
//!
//! ```text
//! p <- p (1 - lr wd)
//! m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
//! p <- p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
//! ```
//!
//! The arithmetic is libtorch's fused kernel, one pass over parameter, gradient and moments; its own
//! optimiser classes hide the moments from `tch`.

use moe_routers::{Param, ParamStore, Role};
use moe_torch_sys::ShimError;
use moe_torch_sys::optimizer::{FusedAdamW, Group};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Settings, with common values for language models.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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

    /// Updates every parameter that has a gradient; gradients are multiplied by `factor` on the way.
    ///
    /// # Errors
    /// In libtorch's words.
    pub fn step(&mut self, lr: f64, factor: f64) -> Result<(), ShimError> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let reached: Vec<(&Moments, Tensor)> =
            self.moments.iter().map(|one| (one, one.param.grad())).collect();
        let reached = reached.iter().filter(|(_, grad)| grad.defined());
        let dense: Vec<(&Moments, Tensor)> =
            reached.map(|(one, grad)| (*one, grad.contiguous())).collect();
        for decay in [true, false] {
            let group = dense.iter().filter(|(one, _)| one.decay == decay);
            let Some((first, _)) = group.clone().next() else { continue };
            let scalar = |value: f64| Tensor::from(value as f32).to_device(first.param.device());
            let (step, scale) = (scalar(self.steps as f64), scalar(1.0 / factor));
            let mut lists = Group::default();
            for (one, grad) in group {
                lists.params.push(&one.param);
                lists.grads.push(grad);
                lists.m.push(&one.m);
                lists.v.push(&one.v);
                lists.steps.push(&step);
            }
            let weight_decay = if decay { weight_decay } else { 0.0 };
            let settings = FusedAdamW { lr, beta1, beta2, weight_decay, eps };
            settings.step(&lists, (factor != 1.0).then_some(&scale))?;
        }
        Ok(())
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

/// Joint norm of all gradients; 0 without any.
pub fn grad_norm(store: &ParamStore) -> f64 {
    let entries = store.entries();
    let grads = entries.iter().map(|p| p.tensor.grad()).filter(Tensor::defined);
    let norms: Vec<Tensor> = grads.map(|grad| grad.norm()).collect();
    if norms.is_empty() { 0.0 } else { Tensor::stack(&norms, 0).norm().double_value(&[]) }
}

/// What gradients of joint norm `norm` are multiplied by so that it is at most `limit`: libtorch's
/// `limit / (norm + 1e-6)`, never above 1.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
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
            optimizer.step(lr, 1.0).unwrap();
            reference.set_lr(lr);
            reference.backward_step(&loss(&theirs, step));
        }
        let worst = (&mine - &theirs).abs().max().double_value(&[]);
        assert!(worst <= tolerance(Kind::Double).value, "off by {worst:e}");
        assert!(optimizer.steps() == 50 && optimizer.state()[0].0 == "w.m");
    }

    #[test]
    fn clipping_by_hand() {
        // Gradients 3 and 4: norm 5, scaled by 1 / (5 + 1e-6). The first moment is a tenth of what
        // the optimiser saw.
        let store = ParamStore::new(0, Device::Cpu, Kind::Double);
        let (a, b) = (store.root().constant("a", &[1], 1.0), store.root().constant("b", &[1], 1.0));
        (&a * 3.0 + &b * 4.0).sum(Kind::Double).backward();
        let norm = grad_norm(&store);
        assert_eq!((norm, clip_factor(norm, 10.0)), (5.0, 1.0));
        let mut optimizer = AdamW::new(&store, AdamWConfig::default());
        optimizer.step(0.1, clip_factor(norm, 1.0)).unwrap();
        let m: Vec<f64> = optimizer.state().iter().map(|(_, t)| t.double_value(&[0])).collect();
        let limit = tolerance(Kind::Float).value; // the factor crosses as an f32
        assert!(
            (m[0] - 0.3 / (5.0 + 1e-6)).abs() < limit && (m[2] - 0.4 / (5.0 + 1e-6)).abs() < limit
        );
    }
}
