//! Conformance cases: one JSON file says that this operation, with these settings and inputs, gives
//! these outputs. The numbers come from elsewhere (an independent reference, the authors' code, a
//! user's PyTorch model); this crate runs them on every implementation that an operation has here.
//!
//! ```text
//! { "id": "…", "op": "vmoe.capacity", "config": {…}, "tensors": {…},
//!   "expect": { "capacity": 3 } or { "error": "substring" }, "rtol": 1e-6, "atol": 1e-8, "source": "…" }
//! ```
//!
//! A number passes when `|got - want| <= atol + rtol |want|`; whole-number outputs must be equal. What
//! cannot be run (an unknown operation, key or tensor) fails; nothing is skipped in silence.
//!
//! An operation `<op>_grad` needs no code of its own: the framework differentiates the libtorch
//! implementation of `<op>` ([`grad`]).

pub mod args;
pub mod array;
pub mod case;
pub mod grad;
pub mod op;
pub mod ops;
pub mod run;

pub use args::Args;
pub use case::{Case, CaseError, Expect};
pub use op::{Backend, Op, OpError, Out, Outputs};
pub use ops::OPS;
pub use run::{Verdict, check};
