//! A kit that other engines are held against: small checkpoints with every shape and flag that matters, tokens, and what
//! every tensor of a pass is in f64, f32 and bf16.
//!
//! An engine in any language runs `CASE/model` on `CASE/ids.json` and records what it can, under any names that
//! [`compare`](crate::compare) knows, as `CASE/f32` or `CASE/bf16`: a `.safetensors` or `.npz` file or a folder of `.npy`
//! files. [`check`] then says for each case where it parts from ours.

mod cases;
mod check;
mod error;
mod kit;

pub use cases::{CASES, Case};
pub use check::{Outcome, Score, check};
pub use error::{Error, Result};
pub use kit::write;
