//! The edges of every router: extreme numbers, and input that has to be refused.
mod numerics;
mod refusals;
mod rig;
mod roles;
