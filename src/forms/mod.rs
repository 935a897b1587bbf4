//! Theorem 5 for the blocks of every family: small random ones.
//!
//! A [`Form`] is the block of a family's config.json, with small sizes; a [`Sample`] is such a [`Block`](crate::model::Block) with random
//! weights, run as the blocks of a model are. It is patched by [Theorem 5](crate::patch::theorem_5), which controls its inner
//! and its outer function by the [lemmas](crate::patch::lemmas) that fit them. [`Sample::measure`] says how far the patched block is from
//! T(C, x), against [a derived bound](mod@bounds), and that it is far off without the patch.

pub mod bounds;
mod measure;
mod random;
mod refusals;
mod summary;
mod table;

pub use measure::{Controls, Difference, Measured};
pub use random::Sample;
pub use refusals::{Refusal, refusals};
pub use summary::{CONTROL, Summary};
pub use table::{Form, Sizes};
