//! NVRTC compiles every source for every architecture, on any machine: it needs no GPU.

use moe_cuda::nvrtc::{ARCHITECTURES, compile, require};
use moe_cuda::source::{SOURCES, Source};

/// Fails with the mend command where the compiler was not fetched: it is part of the setup.
#[test]
fn every_source_compiles_for_every_architecture() {
    require().unwrap_or_else(|error| panic!("{error}"));
    for source in &SOURCES {
        for architecture in ARCHITECTURES {
            let code = compile(source, architecture).unwrap_or_else(|error| panic!("{error}"));
            assert!(code.starts_with(b"\x7fELF"), "{} for {architecture}", source.name);
            // Names stand in the symbol table of the machine code.
            for kernel in source.kernels {
                let there = code.windows(kernel.len()).any(|part| part == kernel.as_bytes());
                assert!(there, "{kernel} is not in {} for {architecture}", source.name);
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_file_and_line() {
    let broken =
        Source { name: "broken.cu", text: "\n__device__ int f() { return x; }", kernels: &[] };
    let error = compile(&broken, "sm_90").unwrap_err().to_string();
    assert!(error.contains("broken.cu for sm_90: ") && error.contains("broken.cu(2)"), "{error}");
}
