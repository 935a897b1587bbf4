//! Recordings of other engines, brought under our names and into our shapes.
//!
//! [`Recording`] opens what an engine recorded: a safetensors file, an `.npz`, or a folder of `.npy` files. The
//! names of Hugging Face modules, llama.cpp and TransformerLens are known ([`Point`]), whatever else there is can be said
//! by a map file ([`Rules`]).

mod layout;
mod names;
mod npy;
mod recording;
mod rules;
mod source;

pub use names::{ALIASES, Point};
pub use recording::Recording;
pub use rules::Rules;
