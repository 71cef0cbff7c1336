//! Laws that every plan obeys, whatever the gates.
//!
//! Axis letters: `t` tokens, `d` model width, `e` experts, `k` choices, `n` routed rows.

mod cases;
mod drops;
mod flow;
mod groups;
mod parts;
mod symmetry;
