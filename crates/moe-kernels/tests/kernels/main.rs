//! The public API against an oracle in `f64`, on every instruction set of the machine.

mod decode;
mod errors;
mod oracle;
mod parity;
mod threads;
