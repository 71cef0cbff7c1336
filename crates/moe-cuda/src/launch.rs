//! What a launch is, and who can carry one out: a device, or the emulator of the tests.

#![expect(unsafe_code, reason = "who launches a kernel vouches for its addresses")]

use crate::CudaError;
use std::ffi::c_void;
use std::fmt::Debug;

/// Where something lies in the memory that kernels see. Null where an optional tensor is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// No tensor.
    pub const NULL: Self = Self(0);
}

/// A stream as the driver knows it (`CUstream`); zero is the default stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream(pub usize);

/// One kernel and what it gets.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Its name in the sources.
    pub kernel: &'static str,
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub block: u32,
    /// Memory that the threads of a block share, in bytes.
    pub shared_bytes: u32,
    /// A pointer to each argument.
    pub arguments: &'a mut [*mut c_void],
}

/// Runs kernels.
pub trait Launcher: Debug + Send + Sync {
    /// Puts a kernel on a stream. Does not wait for it.
    ///
    /// # Safety
    /// The arguments are what the kernel declares, and its addresses are valid for what it reads and
    /// writes until it has run.
    ///
    /// # Errors
    /// In the driver's words.
    unsafe fn launch(&self, launch: Launch<'_>, stream: Stream) -> Result<(), CudaError>;
}

/// An argument of at most eight bytes, as a kernel finds it behind its pointer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Argument(u64);

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self(address.0)
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Self {
        // Kernels read the first four bytes.
        Self(u64::from_ne_bytes(
            [number.to_ne_bytes(), [0; 4]].concat().try_into().expect("8 bytes"),
        ))
    }
}

impl Argument {
    /// Pointers for [`Launch::arguments`].
    pub(crate) fn pointers<const N: usize>(arguments: &mut [Self; N]) -> [*mut c_void; N] {
        arguments.each_mut().map(|argument| (&raw mut argument.0).cast())
    }
}
