//! Numbers and the arrays they live in: the element types a pass computes in, the storage types a
//! checkpoint keeps, row-major matrices, and tensors that stay as they were stored.

mod buffer;
mod element;
mod matrix;
pub(crate) mod quantised;
mod storage;
mod stored;

pub(crate) use buffer::Buffer;
#[doc(hidden)]
pub use element::ByType;
pub(crate) use element::in_lanes;
pub use element::{Dtype, Element, Float, round_to_bf16, round_to_f16};
pub use matrix::Matrix;
pub(crate) use quantised::quantise;
pub use storage::{Block, Storage};
pub use stored::Tensor;
pub(crate) use stored::{decode, encode, encoded};
