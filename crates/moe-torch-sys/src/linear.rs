//! Linear layers in `f32` through oneDNN where MKL is slow.
//!
//! libtorch multiplies `f32` matrices with MKL. On processors of AMD, MKL reaches about a third of the
//! peak, and oneDNN, which is in libtorch too, takes about half of its time. So there, and only for
//! products large enough to gain, forward and both gradients go through oneDNN. The choice depends on
//! processor, type and shape and on nothing that is measured: a run repeats its bits.
//!
//! Axis letters: `n` rows, `i` inputs, `o` outputs.
#![expect(unsafe_code, reason = "tensors cross into C++ as pointers")]

use crate::ffi::{self, ShimError};
use crate::graph::{attach, wants_graph};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// Multiplications from which oneDNN gains in forward and both gradients, measured on one thread of an
/// AMD EPYC (`docs/performance.md`).
const LEAST_PRODUCTS: i64 = 1 << 22;

/// `x weight_oi^T` with its graph, whatever axes stand before the last: `[.., i] -> [.., o]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight_oi: &Tensor) -> Tensor {
    let (outputs, inputs) = weight_oi.size2().expect("[o, i]");
    let x_ni = x.reshape([-1, inputs]);
    if !gains(&x_ni, weight_oi) {
        return x.linear(weight_oi, None::<&Tensor>);
    }
    let mut shape = x.size();
    *shape.last_mut().expect("a last axis") = outputs;
    through_onednn(&x_ni, weight_oi).unwrap_or_else(|e| panic!("linear layer: {e}")).view(&*shape)
}

/// `a_nk b_mk^T` without a graph, through oneDNN where it gains; the factors may be transposed views.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(a_nk: &Tensor, b_mk: &Tensor) -> Tensor {
    match gains(a_nk, b_mk) {
        true => onednn(a_nk, b_mk).unwrap_or_else(|e| panic!("product: {e}")),
        false => tch::no_grad(|| a_nk.matmul(&b_mk.tr())),
    }
}

fn gains(a_nk: &Tensor, b_mk: &Tensor) -> bool {
    let plain = |t: &Tensor| t.device() == Device::Cpu && t.kind() == Kind::Float;
    let products = a_nk.numel() as i64 * b_mk.size()[0];
    products >= LEAST_PRODUCTS && plain(a_nk) && plain(b_mk) && mkl_is_slow()
}

/// Whether MKL is slow here and oneDNN at hand.
fn mkl_is_slow() -> bool {
    static SLOW: OnceLock<bool> = OnceLock::new();
    *SLOW.get_or_init(|| {
        // SAFETY: reads flags of libtorch.
        let has_onednn = unsafe { ffi::moe_has_onednn() };
        has_onednn && is_amd()
    })
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

/// One step of the graph:
///
/// ```text
/// y = x W^T      dx = dy W      dW = dy^T x
/// ```
fn through_onednn(x_ni: &Tensor, weight_oi: &Tensor) -> Result<Tensor, ShimError> {
    let y_no = onednn(x_ni, weight_oi)?;
    if !wants_graph(&[x_ni, weight_oi]) {
        return Ok(y_no);
    }
    let factors = [x_ni, weight_oi].map(|factor| (factor.detach(), factor.requires_grad()));
    let versions = factors.each_ref().map(|(factor, _)| factor.internal_version());
    attach(&y_no, &[x_ni, weight_oi], move |dy_no| {
        let [(x_ni, wants_x), (weight_oi, wants_weight)] = &factors;
        if [x_ni, weight_oi].map(Tensor::internal_version) != versions {
            return Err("a factor was written between forward and backward".into());
        }
        let dy_no = dy_no.contiguous();
        let dx_ni = wants_x.then(|| onednn(&dy_no, &weight_oi.tr()));
        let dweight_oi = wants_weight.then(|| onednn(&dy_no.tr(), &x_ni.tr()));
        let grads = [dx_ni, dweight_oi].into_iter().map(Option::transpose);
        grads.collect::<Result<_, _>>().map_err(|e| e.to_string())
    })
}

fn onednn(x_ni: &Tensor, weight_oi: &Tensor) -> Result<Tensor, ShimError> {
    let mut y_no = std::ptr::null_mut();
    let (x, weight) = (x_ni.as_ptr().cast_mut(), weight_oi.as_ptr().cast_mut());
    // SAFETY: both tensors outlive the call.
    ShimError::check(unsafe { ffi::moe_onednn_linear(x, weight, &raw mut y_no) })?;
    // SAFETY: without an error `y_no` is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(y_no) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest difference relative to the largest value, and the bound of `f32` products of this
    /// depth: `f32` sums of `depth` terms.
    fn near(got: &Tensor, want: &Tensor, depth: i64) -> bool {
        let want = want.to_kind(Kind::Double);
        let off = (got.to_kind(Kind::Double) - &want).abs().max().double_value(&[]);
        off <= f64::from(f32::EPSILON) * (depth as f64).sqrt() * want.abs().max().double_value(&[])
    }

    fn random(shape: &[i64], seed: i64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    fn grads(y: &Tensor, dy: &Tensor, leaves: [&Tensor; 2]) -> [Tensor; 2] {
        (y * dy).sum(y.kind()).backward();
        leaves.map(|leaf| leaf.grad().copy())
    }

    /// Value and both gradients against products in `f64`, in odd sizes and with strides.
    #[test]
    fn through_onednn_is_the_product_with_its_gradients() {
        for (n, i, o) in [(1, 1, 1), (7, 5, 3), (33, 64, 17), (130, 48, 96)] {
            let (x, w) = (random(&[n, i], 1), random(&[o, i], 2));
            let dy = random(&[n, o], 3).detach();
            let got = through_onednn(&x, &w).unwrap();
            let got_grads = grads(&got, &dy, [&x, &w]);
            let wide = |t: &Tensor| t.detach().to_kind(Kind::Double).set_requires_grad(true);
            let (x64, w64) = (wide(&x), wide(&w));
            let want = x64.matmul(&w64.tr());
            let want_grads = grads(&want, &dy.to_kind(Kind::Double), [&x64, &w64]);
            assert!(near(&got, &want, 4 * i), "{n} {i} {o}");
            for (got, want) in got_grads.iter().zip(&want_grads) {
                assert!(near(got, want, 4 * n.max(o)), "{n} {i} {o}");
            }
        }
    }

    /// A factor without a gradient of its own takes none from the other.
    #[test]
    fn a_frozen_factor_gets_no_gradient() {
        for frozen in [0, 1] {
            let factors = [random(&[7, 5], 1), random(&[3, 5], 2)];
            let _ = factors[frozen].set_requires_grad(false);
            let [x, w] = &factors;
            through_onednn(x, w).unwrap().sum(Kind::Float).backward();
            let got = factors.each_ref().map(|factor| factor.grad().defined());
            assert_eq!(got, [frozen == 1, frozen == 0]);
        }
    }

    /// What the layer gives does not depend on who multiplies, and small products stay where they are.
    #[test]
    fn large_and_small_layers_agree_with_libtorch() {
        for (n, chosen) in [(4, false), (1024, true)] {
            let (x, w) = (random(&[2, n / 2, 64], 1), random(&[96, 64], 2));
            assert_eq!(gains(&x.reshape([-1, 64]), &w), chosen && mkl_is_slow());
            let y = linear(&x, &w);
            assert_eq!(y.size(), [2, n / 2, 96]);
            assert!(near(&y, &x.linear(&w, None::<&Tensor>), 4 * 64));
            assert!(near(&product(&x.reshape([-1, 64]), &w), &y.reshape([-1, 96]), 4 * 64));
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (x, w) = (random(&[512, 128], 1), random(&[256, 128], 2));
        let dy = random(&[512, 256], 3).detach();
        let run = |threads| {
            let before = tch::get_num_threads();
            tch::set_num_threads(threads);
            let results = [
                onednn(&x, &w).unwrap(),
                onednn(&dy, &w.tr()).unwrap(),
                onednn(&dy.tr(), &x.tr()).unwrap(),
            ];
            tch::set_num_threads(before);
            results
        };
        assert!(run(1).iter().zip(&run(2)).all(|(one, two)| one.equal(two)));
    }

    #[test]
    fn a_weight_that_was_written_since_is_refused() {
        let (x, w) = (random(&[8, 4], 1), random(&[3, 4], 2));
        let y = through_onednn(&x, &w).unwrap();
        let _ = tch::no_grad(|| w.detach().fill_(1.0));
        let error = y.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(error.contains("written between"), "{error}");
    }

    #[test]
    fn other_kinds_and_wrong_shapes() {
        let (x, w) = (random(&[4096, 64], 1), random(&[64, 64], 2));
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        assert!(!gains(&wide(&x), &wide(&w)));
        assert!(onednn(&x, &w.narrow(1, 0, 3)).is_err());
    }
}
