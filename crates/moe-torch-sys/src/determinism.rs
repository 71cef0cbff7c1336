//! libtorch's switch for algorithms that give the same bits every time.
#![expect(unsafe_code, reason = "a flag of libtorch's global context")]

use crate::ffi::{self, ShimError};

/// Deterministic algorithms only, and an error of libtorch's where there is none. On a CPU the operations
/// of this workspace are deterministic without it.
///
/// # Errors
/// In libtorch's words.
pub fn set_deterministic(on: bool) -> Result<(), ShimError> {
    // SAFETY: sets a flag of libtorch's global context.
    ShimError::check(unsafe { ffi::moe_set_deterministic(on) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    /// libtorch fills new memory with NaN in this mode, which shows that the switch has arrived.
    #[test]
    fn the_switch_reaches_libtorch() {
        set_deterministic(true).unwrap();
        let fresh = Tensor::empty([1000], (Kind::Float, Device::Cpu));
        set_deterministic(false).unwrap();
        assert_eq!(fresh.isnan().all().int64_value(&[]), 1);
    }
}
