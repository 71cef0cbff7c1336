//! The public API against an oracle in `f64`, on every instruction set of the machine, and on AMX by
//! emulation where the machine has not got it.

mod attention;
mod decode;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod emulator;
mod errors;
mod oracle;
mod parity;
mod softmax;
mod threads;

use moe_kernels::Isa;

/// Every instruction set that can be tried here.
fn instruction_sets() -> Vec<Isa> {
    let mut sets = Isa::available();
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    sets.extend(emulator::amx());
    sets
}
