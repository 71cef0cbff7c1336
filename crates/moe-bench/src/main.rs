//! The `moe` command; see [`moe_bench::cli`].

use std::process::ExitCode;

#[expect(unsafe_code, reason = "the first statement of the program")]
fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe { moe_torch_sys::memory::keep_freed_memory() };
    moe_bench::cli::main()
}
