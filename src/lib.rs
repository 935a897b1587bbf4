#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

//! stub
pub mod checkpoint;
pub mod error;
pub mod kernels;
pub mod model;
pub mod output;
pub mod patch;
pub mod tensor;
pub mod trace;
pub mod verify;
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use model::{Model, Session};
