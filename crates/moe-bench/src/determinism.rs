//! `--deterministic`: the same bits every time, or a refusal.

use crate::error::Misuse;
use tch::Device;

/// cuBLAS gives the same bits every time with one of these buffers
/// (<https://docs.nvidia.com/cuda/cublas/#results-reproducibility>).
const CUBLAS: (&str, [&str; 2]) = ("CUBLAS_WORKSPACE_CONFIG", [":4096:8", ":16:8"]);

/// Sets libtorch's switch, and refuses a machine on which it would not be kept. On CUDA unverified: no
/// such device was at hand.
///
/// # Errors
/// Names the variable that CUDA wants.
pub fn require(device: Device) -> Result<(), Misuse> {
    if let Device::Cuda(_) = device {
        check_cublas(std::env::var(CUBLAS.0).ok().as_deref())?;
    }
    moe_torch_sys::determinism::set_deterministic(true)
        .map_err(|error| Misuse::new(format!("--deterministic: {error}")))
}

fn check_cublas(value: Option<&str>) -> Result<(), Misuse> {
    let (name, good) = CUBLAS;
    if value.is_some_and(|value| good.contains(&value)) {
        return Ok(());
    }
    Err(Misuse::new(format!(
        "--deterministic: cuBLAS needs {name}={} in the environment, which has {}",
        good.join(" or "),
        value.unwrap_or("none")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_wants_a_fixed_workspace() {
        assert!(check_cublas(Some(":4096:8")).is_ok());
        let error = check_cublas(None).unwrap_err().to_string();
        assert!(error.contains("CUBLAS_WORKSPACE_CONFIG=:4096:8 or :16:8"), "{error}");
        assert!(check_cublas(Some(":8")).is_err());
    }
}
