//! What libtorch offers and `tch` does not expose: steps of the autograd graph written in Rust
//! ([`graph`]) and the fused experts as such a step, on a CPU ([`fused`]) and on a GPU ([`cuda`]), the
//! fused optimiser ([`optimizer`]), products through oneDNN ([`linear`]), softmax in one pass
//! ([`softmax`]), the deterministic mode ([`determinism`]), the allocator's settings
//! ([`memory`]), and CUDA at run time.
//!
//! Binaries of this workspace link the CPU part of libtorch only; if the
//! libtorch they find has a CUDA part, [`load_cuda`] loads it into the process, and libtorch's own
//! registration makes the devices known. One binary serves both kinds of machine.

pub mod attention;
pub mod cuda;
pub mod determinism;
mod ffi;
pub mod fused;
pub mod graph;
mod host;
pub mod linear;
pub mod memory;
pub mod optimizer;
pub mod softmax;
mod threads;

pub use ffi::ShimError;

use std::path::{Path, PathBuf};

/// The libtorch that `tch` is pinned to; the build refuses any other.
pub const LIBTORCH_VERSION: &str = "2.11.0";

const CUDA_LIBRARY: &str = "libtorch_cuda.so";

/// What became of the attempt to load libtorch's CUDA part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaPart {
    /// This libtorch has none.
    NotInstalled,
    /// It is loaded; whether a device is there is another question ([`tch::Cuda::device_count`]).
    Loaded(PathBuf),
    /// It is there and cannot be loaded; the loader's message says why.
    Failed(PathBuf, String),
}

/// Loads libtorch's CUDA part if it lies beside the CPU part. Call it before anything asks for a
/// CUDA device: libtorch looks for its CUDA hooks once.
pub fn load_cuda() -> CudaPart {
    match libtorch_directory().map(|dir| dir.join(CUDA_LIBRARY)).filter(|path| path.exists()) {
        None => CudaPart::NotInstalled,
        Some(path) => match open_globally(&path) {
            Ok(()) => CudaPart::Loaded(path),
            Err(message) => CudaPart::Failed(path, message),
        },
    }
}

/// Where this process found libtorch.
pub fn libtorch_directory() -> Option<PathBuf> {
    // Make sure that libtorch is in the process even if nothing was called yet.
    let _threads = tch::get_num_threads();
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    directory_of("libtorch_cpu.so", &maps)
}

/// The directory of the mapped library `name`, from the text of `/proc/self/maps`.
fn directory_of(name: &str, maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    paths.filter(|path| path.ends_with(name)).find_map(|path| path.parent().map(Path::to_owned))
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn open_globally(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library is libtorch's own, of the same build as the CPU part that is already
    // loaded; its initialisers register kernels and have no other preconditions. It is never
    // unloaded, so nothing it registers dangles.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).map_err(|error| in_the_loaders_words(&error))
}

/// `libloading` says that loading failed; why stands in the error below.
#[cfg(unix)]
fn in_the_loaders_words(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(not(unix))]
fn open_globally(_: &Path) -> Result<(), String> {
    Err("CUDA is loaded at run time on Linux only".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_directory_of_a_mapped_library() {
        let maps = "7f00-7f01 r--p 00000000 08:01 42    /usr/lib/libc.so.6\n\
                    7f02-7f03 r-xp 00000000 08:01 43    /opt/a b/lib/libtorch_cpu.so\n\
                    7f04-7f05 rw-p 00000000 00:00 0\n";
        let found = directory_of("libtorch_cpu.so", maps);
        assert_eq!(found, Some(PathBuf::from("/opt/a b/lib")));
        assert_eq!(directory_of("libtorch_cuda.so", maps), None);
    }

    #[test]
    fn this_process_has_a_libtorch() {
        assert!(libtorch_directory().is_some_and(|dir| dir.join("libtorch_cpu.so").exists()));
    }

    #[test]
    fn a_library_that_is_none_is_an_error_with_the_loaders_words() {
        let file = std::env::temp_dir().join(format!("not-a-library-{}.so", std::process::id()));
        std::fs::write(&file, "no library").expect("a writable temporary directory");
        let message = open_globally(&file).expect_err("not a library");
        std::fs::remove_file(&file).expect("the file made above");
        assert!(message.contains("not-a-library"), "{message}");
    }
}
