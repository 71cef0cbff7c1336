//! A CUDA device with the kernels compiled for it.
//!
//! Not yet run on a GPU.
#![expect(unsafe_code, reason = "calls into the driver")]

use crate::nvrtc;
use crate::source::SOURCES;
use crate::{CudaError, Launch, Launcher, Stream};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute};
use std::collections::BTreeMap;
use std::ffi::CString;

/// A device and its kernels. They live as long as the process: streams may hold launches that have not
/// run yet.
#[derive(Debug)]
pub struct Device {
    ordinal: usize,
    context: Handle,
    kernels: BTreeMap<&'static str, Handle>,
}

/// A handle of the driver, which may be used from any thread.
#[derive(Debug, Clone, Copy)]
struct Handle(usize);

impl Device {
    /// Compiles the kernels for a device and loads them into its primary context, which is the one that
    /// libtorch and the CUDA runtime use. Takes a few seconds.
    ///
    /// # Errors
    /// No driver, no device of this number, no compiler.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        // SAFETY: only looks for the library.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        result::init().map_err(said("cuInit"))?;
        let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let device = result::device::get(number).map_err(said("cuDeviceGet"))?;
        // SAFETY: a device that the driver just named.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = Handle(context.map_err(said("cuDevicePrimaryCtxRetain"))?.addr());
        let architecture = architecture(device)?;
        let mut loaded = Self { ordinal, context, kernels: BTreeMap::new() };
        loaded.enter()?;
        for source in &SOURCES {
            let code = nvrtc::compile(source, &architecture)?;
            // SAFETY: machine code of the compiler, for this device.
            let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
            let module = module.map_err(said("cuModuleLoadData"))?;
            for &kernel in source.kernels {
                let name = CString::new(kernel).expect("a name without a zero byte");
                // SAFETY: a module that is never unloaded.
                let function = unsafe { result::module::get_function(module, name) };
                let function = function.map_err(said(kernel))?;
                loaded.kernels.insert(kernel, Handle(function.addr()));
            }
        }
        Ok(loaded)
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Makes the device that of this thread: autograd's threads come and go.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: a context that is never released.
        let set = unsafe { result::ctx::set_current(self.context.0 as sys::CUcontext) };
        set.map_err(said("cuCtxSetCurrent"))
    }
}

impl Launcher for Device {
    unsafe fn launch(&self, launch: Launch<'_>, stream: Stream) -> Result<(), CudaError> {
        let function = self.kernels[launch.kernel].0 as sys::CUfunction;
        self.enter()?;
        let Launch { kernel, grid, block, shared_bytes, arguments } = launch;
        // SAFETY: by the trait's contract.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (grid[0], grid[1], 1),
                (block, 1, 1),
                shared_bytes,
                stream.0 as sys::CUstream,
                arguments,
            )
        };
        launched.map_err(said(kernel))
    }
}

/// As the compiler names it, such as `sm_90`.
fn architecture(device: sys::CUdevice) -> Result<String, CudaError> {
    let ask = |attribute| {
        // SAFETY: a device that the driver named.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        value.map_err(said("cuDeviceGetAttribute"))
    };
    let major = ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = ask(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(format!("sm_{major}{minor}"))
}

fn said(call: &str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { call: call.into(), code: format!("{:?}", error.0) }
}
