//! Steps of the autograd graph whose derivative is computed in Rust.
//!
//! `tch` has no custom functions. [`attach`] makes one of a value that was computed without a graph
//! and a closure that turns its gradient into the gradients of its inputs.
#![expect(unsafe_code, reason = "tensors and closures cross into C++ as pointers")]

use crate::ffi::{self, ShimError, pointers};
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Tensor;
use torch_sys::C_tensor;

/// Gradients of the inputs, in their order, `None` where there is none; or why there are none.
pub type Grads = Result<Vec<Option<Tensor>>, String>;

/// Turns the gradient of the output into those of the inputs.
type Backward = Box<dyn FnMut(&Tensor) -> Grads + Send>;

/// `output`, which was computed from `inputs` without a graph, as a step of the graph: where autograd
/// comes by, `backward` gets the gradient of the output (like it in shape, of any strides). The
/// closure is dropped after a backward that keeps no graph. Without gradients in play the result is
/// `output` itself.
///
/// A gradient that `backward` has already added to a parameter's own `grad` is `None` here.
///
/// # Errors
/// In libtorch's words, if the output's type has no gradients.
pub fn attach(
    output: &Tensor,
    inputs: &[&Tensor],
    backward: impl FnMut(&Tensor) -> Grads + Send + 'static,
) -> Result<Tensor, ShimError> {
    if !wants_graph(inputs) {
        return Ok(output.shallow_clone());
    }
    let (inputs, state) = (pointers(inputs), Box::new(Box::new(backward) as Backward));
    let mut attached = std::ptr::null_mut();
    // SAFETY: all tensors outlive the call, which copies what it keeps; `state` is owned by the C++
    // side from here on, which gives it back to `drop_state` once, also if it throws.
    let error = unsafe {
        ffi::moe_attach(
            output.as_ptr().cast_mut(),
            inputs.as_ptr(),
            inputs.len(),
            run_backward,
            drop_state,
            Box::into_raw(state).cast(),
            &raw mut attached,
        )
    };
    ShimError::check(error)?;
    // SAFETY: without an error `attached` is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(attached) })
}

/// Whether a function of these inputs has to be on the graph: gradients are on, and one is wanted.
pub fn wants_graph(inputs: &[&Tensor]) -> bool {
    let inputs = pointers(inputs);
    // SAFETY: the tensors outlive the call, which only reads flags.
    unsafe { ffi::moe_wants_graph(inputs.as_ptr(), inputs.len()) }
}

/// The gradient that a leaf of the graph collects; zeros from now on if it had none.
///
/// A step that adds to it in place adds in the same order whether it is the first of a run or not,
/// and so gives the same bits.
///
/// # Errors
/// In libtorch's words.
pub fn own_grad(leaf: &Tensor) -> Result<Tensor, ShimError> {
    let mut grad = std::ptr::null_mut();
    // SAFETY: the leaf outlives the call.
    let error = unsafe { ffi::moe_own_grad(leaf.as_ptr().cast_mut(), &raw mut grad) };
    ShimError::check(error)?;
    // SAFETY: without an error `grad` is a new handle that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(grad) })
}

/// Called by the C++ side with the state of [`attach`].
///
/// # Safety
/// `state` is the pointer given to `moe_attach` and not yet dropped, `grad` a tensor, `grads` room for
/// `count` pointers.
unsafe extern "C" fn run_backward(
    state: *mut c_void,
    grad: *mut C_tensor,
    grads: *mut *mut C_tensor,
    count: usize,
) -> *mut c_char {
    // SAFETY: by this function's contract; autograd runs a node in one thread at a time.
    let backward = unsafe { &mut *state.cast::<Backward>() };
    // SAFETY: likewise; the clone shares the tensor and owns its own handle.
    let grad = unsafe { Tensor::clone_from_ptr(grad) };
    let run = || tch::no_grad(|| backward(&grad));
    // A panic must not unwind into C++.
    let found =
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(message_of(&*panic)));
    let found = found.and_then(|found| match found.len() == count {
        true => Ok(found),
        false => Err(format!("{} gradients for {count} inputs", found.len())),
    });
    match found {
        Ok(found) => {
            // SAFETY: `grads` has room for `count` pointers.
            let room = unsafe { std::slice::from_raw_parts_mut(grads, count) };
            for (slot, grad) in room.iter_mut().zip(found) {
                *slot = grad.map_or(std::ptr::null_mut(), given_away);
            }
            std::ptr::null_mut()
        }
        // SAFETY: the bytes are read within the call.
        Err(message) => unsafe { ffi::moe_copy_text(message.as_ptr().cast(), message.len()) },
    }
}

/// The C++ handle of a tensor, now owned by C++.
fn given_away(mut tensor: Tensor) -> *mut C_tensor {
    let pointer = tensor.as_mut_ptr();
    std::mem::forget(tensor);
    pointer
}

/// # Safety
/// `state` is the pointer given to `moe_attach`, dropped here for the first and only time.
unsafe extern "C" fn drop_state(state: *mut c_void) {
    // SAFETY: by this function's contract it came from `Box::into_raw`.
    let state = unsafe { Box::from_raw(state.cast::<Backward>()) };
    // A closure whose drop panics must not unwind into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(state)));
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tch::{Device, Kind};

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// `z = x y` with its derivative by hand.
    fn product(x: &Tensor, y: &Tensor) -> Tensor {
        let (saved_x, saved_y) = (x.detach(), y.detach());
        let value = tch::no_grad(|| x * y);
        attach(&value, &[x, y], move |grad| Ok(vec![Some(grad * &saved_y), Some(grad * &saved_x)]))
            .unwrap()
    }

    #[test]
    fn gradients_are_those_of_the_closure_and_flow_on() {
        let (x, y) = (leaf(&[1.0, 2.0]), leaf(&[3.0, 5.0]));
        // d/dx (2x y)^2 = 8 x y^2, d/dy = 8 x^2 y.
        product(&(&x * 2.0), &y).square().sum(Kind::Double).backward();
        assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [72.0, 400.0]);
        assert_eq!(Vec::<f64>::try_from(y.grad()).unwrap(), [24.0, 160.0]);
    }

    #[test]
    fn an_input_used_twice_and_one_without_gradient() {
        let x = leaf(&[3.0]);
        product(&x, &x).backward();
        assert_eq!(x.grad().double_value(&[0]), 6.0);
        let (y, frozen) = (leaf(&[2.0]), Tensor::from_slice(&[7.0]));
        product(&y, &frozen).backward();
        assert_eq!(y.grad().double_value(&[0]), 7.0);
        assert!(!frozen.grad().defined());
    }

    #[test]
    fn a_leafs_own_gradient_is_the_one_that_collects() {
        let x = leaf(&[3.0]);
        let mut grad = own_grad(&x).unwrap();
        let _ = grad.g_add_scalar_(2.0);
        product(&x, &x).backward();
        assert_eq!((own_grad(&x).unwrap().double_value(&[0]), grad.double_value(&[0])), (8.0, 8.0));
    }

    #[test]
    fn no_graph_without_need() {
        let (a, b) = (Tensor::from_slice(&[1.0]), leaf(&[1.0]));
        assert!(!product(&a, &a).requires_grad());
        assert!(!tch::no_grad(|| product(&b, &b)).requires_grad());
    }

    #[test]
    fn what_was_saved_is_dropped_after_backward_and_with_the_output() {
        for run_backward in [true, false] {
            let (x, saved) = (leaf(&[1.0]), Arc::new(()));
            let held = Arc::clone(&saved);
            let z = attach(&x.detach(), &[&x], move |grad| {
                let _ = &held;
                Ok(vec![Some(grad.shallow_clone())])
            })
            .unwrap();
            assert_eq!(Arc::strong_count(&saved), 2);
            if run_backward {
                z.backward();
                assert_eq!(Arc::strong_count(&saved), 1);
                assert!(z.f_backward().unwrap_err().to_string().contains("second time"));
            }
            drop(z);
            assert_eq!(Arc::strong_count(&saved), 1);
        }
    }

    #[test]
    fn errors_and_panics_become_libtorch_errors() {
        let x = leaf(&[1.0]);
        let fails = |backward: fn(&Tensor) -> Grads| {
            let z = attach(&x.detach(), &[&x], backward).unwrap();
            z.f_backward().unwrap_err().to_string()
        };
        assert!(fails(|_| Err("no room".into())).contains("no room"));
        assert!(fails(|_| panic!("broken")).contains("broken"));
        assert!(fails(|_| Ok(Vec::new())).contains("0 gradients for 1 inputs"));
    }

    #[test]
    fn an_output_without_gradients_is_refused() {
        let whole = Tensor::zeros([1], (Kind::Int64, Device::Cpu));
        let error = attach(&whole, &[&leaf(&[1.0])], |_| Ok(vec![None])).unwrap_err();
        assert!(error.to_string().contains("dtype"), "{error}");
    }
}
