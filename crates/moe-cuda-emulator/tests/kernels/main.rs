//! The CUDA kernels on the emulator, against plain loops in `f64`.
#![expect(unsafe_code, reason = "kernels take addresses")]

mod combine;
mod hidden;
mod launches;
mod memory;
mod plan;
mod route;
mod tolerance;
