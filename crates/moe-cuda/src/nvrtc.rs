//! NVIDIA's run-time compiler, found and called.
#![expect(unsafe_code, reason = "calls into a library that is loaded at run time")]

use crate::CudaError;
use crate::source::Source;
use cudarc::nvrtc::{result, sys};
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What tests compile for: A100, H100, B200.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

/// The variable that names the compiler's library, before anything else is looked at.
pub const VARIABLE: &str = "MOE_NVRTC";

/// Its file name; the version is that of the libtorch this workspace is pinned to.
const FILE: &str = "libnvrtc.so.13";

/// What the compiler loads when it first compiles.
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";

/// Machine code of a source for an architecture such as `sm_90`.
///
/// # Errors
/// No compiler, or its words about the source.
pub fn compile(source: &Source, architecture: &str) -> Result<Vec<u8>, CudaError> {
    require()?;
    let program = Program::new(source)?;
    // Fused multiply-add is a device's way to be exact and fast; no fast-math: NaN and infinity count.
    let options =
        [format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "--fmad=true".into()];
    // SAFETY: the program lives until the end of this function.
    match unsafe { result::compile_program(program.handle, &options) } {
        Ok(()) => program.code(),
        Err(_) => Err(CudaError::Compile {
            source_name: source.name,
            architecture: architecture.into(),
            log: program.log(),
        }),
    }
}

/// Loads the compiler once; where it was found.
///
/// # Errors
/// It is in none of the places.
pub fn require() -> Result<PathBuf, CudaError> {
    static FOUND: OnceLock<Result<PathBuf, CudaError>> = OnceLock::new();
    FOUND.get_or_init(find).clone()
}

fn find() -> Result<PathBuf, CudaError> {
    let places = places();
    let found = places.iter().find(|place| open(place));
    found.cloned().ok_or_else(|| CudaError::NoCompiler {
        tried: places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    })
}

/// The variable alone if it is set; else what `cargo xtask setup` linked in a checkout, seen from the
/// program; else wherever the loader looks.
fn places() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return vec![path.into()];
    }
    let program = std::env::current_exe().unwrap_or_default();
    let above = program.ancestors().skip(1).take(5);
    let linked =
        above.flat_map(|dir| [".nvrtc", "nvrtc"].map(|link| dir.join(link).join("lib").join(FILE)));
    linked.filter(|path| path.exists()).chain([PathBuf::from(FILE)]).collect()
}

/// Loads the library and what it asks the loader for by name later, which the loader would not look
/// for beside it. cudarc asks by name too, and gets the one that is there.
fn open(path: &Path) -> bool {
    let builtins = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let _found = builtins.is_some_and(|dir| load(&dir.join(BUILTINS)));
    // SAFETY: only looks for the library.
    load(path) && unsafe { sys::is_culib_present() }
}

/// Loads a library for good; whether it could be.
fn load(path: &Path) -> bool {
    // SAFETY: NVIDIA's libraries have no initialisers with preconditions; they are never unloaded.
    let library = unsafe { libloading::Library::new(path) };
    library.map(std::mem::forget).is_ok()
}

/// A source inside the compiler.
struct Program {
    handle: sys::nvrtcProgram,
    /// The compiler may look at it as long as the program lives.
    _text: CString,
}

impl Program {
    fn new(source: &Source) -> Result<Self, CudaError> {
        let text = CString::new(source.program()).expect("sources without a zero byte");
        let handle =
            result::create_program(&text, None).map_err(|e| refused("nvrtcCreateProgram", e))?;
        Ok(Self { handle, _text: text })
    }

    fn code(&self) -> Result<Vec<u8>, CudaError> {
        let mut size = 0;
        // SAFETY: a compiled program.
        let asked = unsafe { sys::nvrtcGetCUBINSize(self.handle, &raw mut size) };
        asked.result().map_err(|e| refused("nvrtcGetCUBINSize", e))?;
        let mut code = vec![0u8; size];
        // SAFETY: there is as much room as the compiler asked for.
        let got = unsafe { sys::nvrtcGetCUBIN(self.handle, code.as_mut_ptr().cast::<c_char>()) };
        got.result().map_err(|e| refused("nvrtcGetCUBIN", e))?;
        Ok(code)
    }

    fn log(&self) -> String {
        // SAFETY: a program that was compiled, if without success.
        let log = unsafe { result::get_program_log(self.handle) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: destroyed once. A failure leaves memory behind and nothing else.
        let _ = unsafe { result::destroy_program(self.handle) };
    }
}

fn refused(call: &str, error: result::NvrtcError) -> CudaError {
    CudaError::Driver { call: call.into(), code: error.to_string() }
}
