//! Compiles the sources of `moe-cuda` as C++, with the header that gives CUDA's words a meaning.

fn main() {
    let sources = "../moe-cuda/cuda";
    for watched in ["emulator", sources] {
        println!("cargo:rerun-if-changed={watched}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(1)
        // A device fuses where it likes; the comparison must not depend on where this compiler does.
        .flag("-ffp-contract=off")
        .include("emulator")
        .include(sources)
        .file("emulator/emulator.cpp")
        .compile("moe_cuda_emulator");
}
