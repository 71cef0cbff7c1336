//! Compiles the shim against the libtorch that torch-sys found.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    let library = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let library = library.expect("torch-sys says where libtorch lies");
    let include = library.parent().expect("a library lies in a directory").join("include");
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .define("_GLIBCXX_USE_CXX11_ABI", &*abi)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .warnings(false)
        .file("src/shim.cpp")
        .compile("moe_torch_shim");
}
