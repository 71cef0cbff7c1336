//! The CUDA kernels of `moe-cuda` on a CPU.
//!
//! The very sources that NVRTC compiles for a GPU are compiled as C++ here, with a header in which
//! every thread of a block is a fiber, barriers and shuffles are real, and shared memory starts as
//! garbage. [`Emulator`] takes launches as a device would, so that kernels and launch code are tested
//! where there is no GPU. It is slow, and says nothing about speed, memory coalescing or the compiler
//! of the device.
//!
//! Threads and blocks run in rising or in falling order: what depends on the order differs.
#![expect(unsafe_code, reason = "kernels are C++ and take addresses")]

use moe_cuda::{CudaError, Launch, Launcher, Stream};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    fn moe_emulates(name: *const c_char) -> c_int;
    fn moe_emulate(
        name: *const c_char,
        grid_x: c_uint,
        grid_y: c_uint,
        block: c_uint,
        shared_bytes: c_uint,
        arguments: *mut *mut c_void,
        backwards: c_int,
    ) -> c_int;
}

/// A CPU that takes launches. Addresses are those of host memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Emulator {
    /// Blocks and threads in falling order.
    pub backwards: bool,
}

/// Whether a kernel of this name was compiled.
pub fn knows(kernel: &str) -> bool {
    let name = CString::new(kernel).expect("a name without a zero byte");
    // SAFETY: the name is read within the call.
    unsafe { moe_emulates(name.as_ptr()) != 0 }
}

impl Launcher for Emulator {
    unsafe fn launch(&self, launch: Launch<'_>, _stream: Stream) -> Result<(), CudaError> {
        let name = CString::new(launch.kernel).expect("a name without a zero byte");
        // SAFETY: the trait's contract, with host memory for device memory.
        let code = unsafe {
            moe_emulate(
                name.as_ptr(),
                launch.grid[0],
                launch.grid[1],
                launch.block,
                launch.shared_bytes,
                launch.arguments.as_mut_ptr(),
                self.backwards.into(),
            )
        };
        let said = |text: &str| CudaError::Driver { call: launch.kernel.into(), code: text.into() };
        match code {
            0 => Ok(()),
            1 => Err(said("no such kernel")),
            2 => Err(said("threads wait at a barrier that others never reach")),
            _ => Err(said("a write past the end of shared memory")),
        }
    }
}
