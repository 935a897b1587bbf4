//! Matrix products y = W x.

mod backend;
mod by_type;
mod few_tokens;
mod gemm;
mod held_factors;
mod map;
mod native;
mod outer_products;
mod packed;
mod panel;
mod quantised;
mod rows;
mod tiles;

pub use backend::Backend;
pub(crate) use by_type::multiply;
pub(crate) use map::{Bias, Map, finish_row};
pub use native::{dot, matmul};
pub(crate) use outer_products::add_outer_products;
pub(crate) use panel::Panel;
pub(super) use panel::padded;
pub use rows::Rows;
