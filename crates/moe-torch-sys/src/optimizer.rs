//! libtorch's fused AdamW: one pass over parameter, gradient and both moments.
#![expect(unsafe_code, reason = "lists of tensors cross into C++ as pointers")]

use crate::ffi::{self, ShimError, pointers};
use tch::Tensor;

/// Parameters that share their settings, with all that belongs to them in the same order.
#[derive(Debug, Default)]
pub struct Group<'a> {
    /// Updated in place.
    pub params: Vec<&'a Tensor>,
    /// Their gradients; rewritten where a scale is given.
    pub grads: Vec<&'a Tensor>,
    /// First moments, updated in place.
    pub m: Vec<&'a Tensor>,
    /// Second moments, updated in place.
    pub v: Vec<&'a Tensor>,
    /// Number of this step, from 1: `f32` scalars.
    pub steps: Vec<&'a Tensor>,
}

impl Group<'_> {
    fn check(&self) {
        for (i, param) in self.params.iter().enumerate() {
            for other in [self.grads[i], self.m[i], self.v[i]] {
                let alike = other.size() == param.size() && other.kind() == param.kind();
                let (got, want) = ((other.size(), other.kind()), (param.size(), param.kind()));
                assert!(alike, "{got:?} belongs to a parameter of {want:?}");
                assert!(other.is_contiguous() && param.is_contiguous(), "strides in {want:?}");
            }
        }
    }
}

/// Settings of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusedAdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl FusedAdamW {
    /// Updates a group; gradients are divided by `grad_scale` (an `f32` scalar) on the way.
    ///
    /// # Errors
    /// In libtorch's words.
    ///
    /// # Panics
    /// If what belongs to a parameter has another shape or type, or is not contiguous: libtorch's
    /// kernel walks through raw memory and does not look.
    pub fn step(&self, group: &Group<'_>, grad_scale: Option<&Tensor>) -> Result<(), ShimError> {
        let lists = [&group.params, &group.grads, &group.m, &group.v, &group.steps];
        let [params, grads, m, v, steps] = lists.map(|list| pointers(list));
        let count = params.len();
        assert!([&grads, &m, &v, &steps].iter().all(|l| l.len() == count), "lists of one length");
        group.check();
        if count == 0 {
            return Ok(());
        }
        let scale = grad_scale.map_or(std::ptr::null_mut(), |scale| scale.as_ptr().cast_mut());
        // SAFETY: every list has `count` tensors, which outlive the call.
        ShimError::check(unsafe {
            ffi::moe_fused_adamw(
                params.as_ptr(),
                grads.as_ptr(),
                m.as_ptr(),
                v.as_ptr(),
                steps.as_ptr(),
                count,
                self.lr,
                self.beta1,
                self.beta2,
                self.weight_decay,
                self.eps,
                scale,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: FusedAdamW =
        FusedAdamW { lr: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0.5, eps: 0.0 };

    /// First step: moments cancel their corrections, so that the step is `lr sign(g)` after the decay
    /// `p (1 - 0.1 * 0.5)`: `2 * 0.95 - 0.1 = 1.8`, `-2 * 0.95 + 0.1 = -1.8`. A scale of 4 divides the
    /// gradients, which the first step does not see, and the moments do: `m = 0.1 * 8 / 4 = 0.2`.
    #[test]
    fn the_first_step_by_hand() {
        let p = Tensor::from_slice(&[2f32, -2.0]);
        let (g, m) = (Tensor::from_slice(&[8f32, -8.0]), Tensor::from_slice(&[0f32, 0.0]));
        let (v, step, scale) = (m.zeros_like(), Tensor::from(1f32), Tensor::from(4f32));
        let group = Group {
            params: vec![&p],
            grads: vec![&g],
            m: vec![&m],
            v: vec![&v],
            steps: vec![&step],
        };
        let version = p.internal_version();
        SETTINGS.step(&group, Some(&scale)).unwrap();
        assert!(p.internal_version() > version, "who keeps packed weights must notice");
        let close = |t: &Tensor, want: f64| (t.double_value(&[0]) - want).abs() < 1e-6;
        assert!(close(&p, 1.8) && close(&m, 0.2) && close(&v, 0.04), "{p} {m} {v}");
        assert!((p.double_value(&[1]) + 1.8).abs() < 1e-6);
    }

    #[test]
    fn no_parameters_no_work() {
        SETTINGS.step(&Group::default(), None).unwrap();
    }

    #[test]
    #[should_panic(expected = "[1], Float) belongs to a parameter of ([2], Float)")]
    fn a_gradient_of_another_shape_is_refused_before_memory_is_read() {
        let (p, g) = (Tensor::from_slice(&[2f32, -2.0]), Tensor::from_slice(&[1f32]));
        let step = Tensor::from(1f32);
        let (m, v) = (p.zeros_like(), p.zeros_like());
        let group = Group {
            params: vec![&p],
            grads: vec![&g],
            m: vec![&m],
            v: vec![&v],
            steps: vec![&step],
        };
        let _ = SETTINGS.step(&group, None);
    }
}
