//! The operations a pass is made of, one a file, each with its order of operations written down.
//!
//! **The order of a sum.** Every dot product runs in 16 lanes: lane *l* takes elements *l*, *l* + 16,
//! *l* + 32, … with one fused multiply-add each, starting from +0; a last incomplete block is filled
//! with zeros; the lanes are then added in the tree (*l*, *l* + 8), (*l*, *l* + 4), (*l*, *l* + 2),
//! (0, 1). In bf16 a block is 32 elements: lane *l* takes elements 2*l* + 1 and then 2*l* of it, each a
//! fused multiply-add in f32 with denormal inputs and results taken as zero, as the instruction
//! `VDPBF16PS` does. Nothing else decides the bits: not the instruction set, not the threads, not how many tokens are
//! handled at once. That is [`Backend::Native`]; the products can be left to [another](Backend), which has an order of its
//! own.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod activation;
mod backend;
mod dispatch;
#[doc(hidden)]
pub mod elementwise;
pub mod exp;
mod gemm;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod instructions;
mod lanes;
mod matmul;
mod norm;
mod outer_products;
mod packed;
mod panel;
mod products;
mod rope;
mod scalar;
mod softmax;
mod weighted_sum;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use backend::Backend;
pub use dispatch::Level;
#[cfg(test)]
pub(crate) use dispatch::observed;
pub use matmul::{Rows, dot, matmul};
pub use norm::{rms_norm, unscaled_rms_norm};
pub(crate) use outer_products::add_outer_products;
pub(crate) use panel::Panel;
pub(crate) use products::multiply;
#[doc(hidden)]
pub use rope::rotate;
pub use rope::{Rotation, Turn};
pub use softmax::softmax;
pub use weighted_sum::weighted_sum;
#[doc(hidden)]
pub use weighted_sum::weighted_sums;

/// A matrix product with fewer multiplications than this is not worth a second thread.
const PARALLEL_FROM: usize = 1 << 17;
