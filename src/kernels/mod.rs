//! The operations of a forward pass, each with its order of operations written down.
//!
//! # What a product is
//!
//! Every number of W x is a dot product, and every dot product has one order: sixteen partial sums ("lanes"), each over every
//! sixteenth element, by one fused multiply-add an element; then the lanes are added in a tree. In f32 and f64 that is
//!
//! ```
//! fn naive_dot(w: &[f32], x: &[f32]) -> f32 {
//!     let mut lanes = [0.0f32; 16];
//!     for (i, (w, x)) in w.iter().zip(x).enumerate() {
//!         lanes[i % 16] = w.mul_add(*x, lanes[i % 16]);
//!     }
//!     for half in [8, 4, 2, 1] {
//!         for l in 0..half {
//!             lanes[l] += lanes[l + half];
//!         }
//!     }
//!     lanes[0]
//! }
//!
//! use context_patch::kernels::{Level, dot};
//! let w: Vec<f32> = (0..100).map(|i| (i as f32).sin()).collect();
//! let x: Vec<f32> = (0..100).map(|i| (i as f32).cos()).collect();
//! for level in Level::available() {
//!     assert_eq!(dot(level, &w, &x).to_bits(), naive_dot(&w, &x).to_bits());
//! }
//! # let sequential = w.iter().zip(&x).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum));
//! # assert_ne!(sequential, naive_dot(&w, &x));
//! ```
//!
//! (A last block of fewer than sixteen elements is filled with zeros, so a sum that would be −0 may be +0.) In bf16 a block has
//! 32 elements: lane *l* takes elements 2*l* + 1 and then 2*l* of it, each by a fused multiply-add in f32 that takes denormal
//! inputs and results as zeros, as the instruction `VDPBF16PS` does. Nothing else decides the bits: not the instruction set, not
//! the threads, not how many tokens are multiplied at once.
//!
//! # From a product to an instruction
//!
//! | frame | what it decides |
//! |---|---|
//! | `ForwardRun::matmul` (`model/run.rs`) | whether the product is disturbed, to measure the condition of a pass |
//! | [`Backend::matmul`] | who multiplies: these kernels, or the `gemm` crate, which has its own order of sums |
//! | `native::matmuls`, `native::linears` (`matmul/`) | tasks: some rows of W and some tokens for each thread; sums, or y of W x + b |
//! | `native::multiply_rows` | how stored weights are read: as they are, or converted first |
//! | `by_type::multiply` | the kernel of the pair of types, which [`Level`] compiles for each instruction set |
//! | `packed::all_products`, `tiles::all_products` | the loops over tiles of rows and tokens: many tokens are packed, few are read where they lie |
//! | `Lanes::add`, `Lanes::add_rows` (`simd/`) | the loop over the blocks of a tile, whose sums stay in registers |
//! | `Lanes::multiply_add` | one instruction |
//!
//! The tiles are where the time goes: each weight that is read serves several tokens, each activation several rows. They only
//! choose which lanes are in registers at once, so none of them can change a sum.

pub mod activation;
#[doc(hidden)]
pub mod elementwise;
pub mod exp;
mod largest;
mod matmul;
mod norm;
mod normal;
mod rope;
mod scores;
mod simd;
mod softmax;
mod tanh;
mod weighted_sum;

pub use largest::largest;
pub use matmul::{Backend, Rows, dot, matmul};
pub(crate) use matmul::{Bias, Map, Panel, add_outer_products, finish_row, multiply};
pub use norm::{layer_norm, rms_norm, unscaled_rms_norm};
#[doc(hidden)]
pub use rope::rotate;
pub use rope::{CosSin, Rotation};
#[doc(hidden)]
pub use scores::{PackedKeys, scores};
pub use simd::Level;
#[cfg(test)]
pub(crate) use simd::observed;
pub use softmax::softmax;
pub(crate) use tanh::tanh;
pub use weighted_sum::weighted_sum;
#[doc(hidden)]
pub use weighted_sum::weighted_sums;
