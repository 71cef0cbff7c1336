//! Damage to clean data, to see what a trained model makes of it: attacks on text, corruptions of images.
//!
//! Everything is a function of the clean data, a seed and a position, so that damage does not depend on how
//! much was damaged before. Draws are compared with a rate: what is damaged at a low rate is damaged at every
//! higher one.

mod align;
mod draw;
mod image;
pub mod published;
mod synonyms;
mod text;
mod words;

pub use align::Alignment;
pub(crate) use align::Spans;
pub use image::{FrostPictures, ImageCorruption};
pub use text::{AttackedText, TextAttack};
