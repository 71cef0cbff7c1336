//! Gating arithmetic of sparse mixtures of experts, on the host, in `f64`: scores, selection,
//! capacity, plans, balance losses, routing metrics and statistics.
//!
//! It is the toolbox of every paper's plain reference in this workspace, and it is useful alone:
//! no libtorch, builds in seconds. An engineer with gates from anywhere can plan who computes what,
//! run experts written as closures, and measure how the routing behaves:
//!
//! ```
//! use moe_core::{CapacityPolicy, CapacityRule, Choices, DropOrder, Limit, LoadStats, Plan};
//! use moe_core::{SparsePlan, balance, score};
//! use ndarray::array;
//!
//! // Four tokens, two experts, Switch-style routing (k = 1).
//! let x_td = array![[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]];
//! let router_ed = array![[1.0, 0.0], [0.0, 1.0]];
//! let gate_te = score::softmax(x_td.dot(&router_ed.t()).view());
//! let choices = Choices::top_k(gate_te.view(), 1);
//!
//! // A capacity factor of 1 lets each expert keep two of the four tokens, the surest first.
//! let rule = CapacityRule::Floor;
//! let policy = CapacityPolicy {
//!     limit: Limit::Factor { factor: 1.0, rule, min: None },
//!     order: DropOrder::BatchPriority,
//! };
//! let slots = policy.slots(4, 2, 1)?;
//! let plan = SparsePlan::from_choices(&choices, 2, slots, policy.order)?;
//! assert_eq!(plan.kept_per_token(), [1, 1, 0, 1]);
//!
//! let stats = LoadStats::of_counts(&plan.load())?;
//! println!("load {:?}, max/mean {:.3}", plan.load(), stats.max_over_mean);
//! assert_eq!(format!("{:.3}", stats.max_over_mean), "1.333");
//! println!("z-loss {:.3}", balance::z_loss(x_td.dot(&router_ed.t()).view()));
//!
//! // The layer itself: expert 0 keeps its rows, expert 1 negates them.
//! let y_td = Plan::from(plan).apply(x_td.view(), |e, rows| if e == 0 { rows.to_owned() } else { -&rows });
//! assert_eq!(y_td.row(2), array![0.0, 0.0]); // dropped: the residual connection carries it
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Axis letters
//!
//! An array's name ends in its axes: `g` groups, `t` tokens per group (or of all groups, where an
//! array spans them), `d` model width, `e` experts, `k` choices of a token, `n` routed rows,
//! `s` slots.
//!
//! # Invariants
//!
//! - Nothing here knows of libtorch, files, clocks or a random generator: every draw is an argument.
//! - Ties go to the lower index, in every selection and sort.
//! - Results have the same bits whatever the number of threads.
//! - Arithmetic panics on programmer error, with both shapes in the message; whatever is built from
//!   data or settings returns an error that names the culprit.

pub mod assignment;
pub mod balance;
pub mod capacity;
pub mod metrics;
pub mod plan;
pub mod queue;
pub mod reference;
pub mod routing_log;
pub mod score;
pub mod select;
pub mod stats;

pub use balance::{AuxForm, LoadBalance};
pub use capacity::{CapacityError, CapacityInput, CapacityPolicy, CapacityRule, DropOrder, Limit};
pub use metrics::{DropStats, GateEntropy, LoadStats, MetricError};
pub use plan::{Plan, PlanError, SoftPlan, SparsePlan};
pub use queue::Queue;
pub use reference::{Chosen, HostExpert, HostInput, HostRouting, Reference, RouteError};
pub use select::{Choices, top_k};
pub use stats::Summary;
