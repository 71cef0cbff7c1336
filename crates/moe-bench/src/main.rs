//! The `moe` command; see [`moe_bench::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    moe_bench::cli::main()
}
