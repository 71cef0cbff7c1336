//! Why something on the device did not happen.

/// What went wrong with the compiler, the driver or an argument.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The run-time compiler is not where it is looked for.
    #[error("no NVRTC (libnvrtc.so.13): looked for {tried}\n  mend: cargo xtask setup")]
    NoCompiler {
        /// The places.
        tried: String,
    },
    /// A source was refused.
    #[error("{source_name} for {architecture}: {log}")]
    Compile {
        /// The source.
        source_name: &'static str,
        /// Such as `sm_90`.
        architecture: String,
        /// The compiler's words.
        log: String,
    },
    /// There is no driver (`libcuda.so`).
    #[error("no CUDA driver: libcuda.so cannot be loaded")]
    NoDriver,
    /// The driver refused a call.
    #[error("{call}: {code}")]
    Driver {
        /// What was asked of it.
        call: String,
        /// Its answer.
        code: String,
    },
    /// A size that the kernels cannot take.
    #[error("{what} is {got}, and these kernels take {most} at most")]
    Limit {
        /// The size.
        what: &'static str,
        /// What was given.
        got: usize,
        /// The most they take.
        most: usize,
    },
    /// An address that the widest loads cannot start at.
    #[error("{what} starts at {address:#x}, which is no multiple of 16")]
    Misaligned {
        /// The tensor.
        what: &'static str,
        /// Where it starts.
        address: u64,
    },
}
