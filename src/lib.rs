//! stub
pub mod checkpoint;
pub mod error;
pub mod kernels;
pub mod model;
pub mod patch;
pub mod tensor;
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use model::{Model, Session};
