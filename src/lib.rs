//! stub
pub mod error;
pub mod kernels;
pub mod tensor;
pub use error::{Error, Result};
