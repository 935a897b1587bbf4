//! Passes on an NVIDIA GPU, with the bits of the native kernels (feature `cuda`).
//!
//! [`Model::on`](crate::Model::on) with [`Backend::Cuda`](crate::kernels::Backend::Cuda) stores a model's weights on a device; its
//! sessions then run there: weights, keys and values and every activation stay on the device, and the logits come back, with what a
//! recorder asks for. Solvers run on the CPU, as always; the products and the attention of their passes run on the device.
//!
//! Here are the device, its memory, the kernels and what stays there; the pass itself, over the operations of all passes, is
//! `model/device_pass/`.
//!
//! The kernels are CUDA C++, an operation a file beside the name of its twin in [`kernels`](crate::kernels), and compiled by NVRTC when
//! a device is first opened: PTX in the package would be larger than the source, and older than some devices. Every sum has the
//! documented order, and no multiply-add is contracted, so that the bits are the native ones (`docs/numerics.md`).
//!
//! `unsafe` is in `driver.rs`, which calls the driver, `source.rs`, which asks whether NVRTC is there, and `twin.rs`, which runs
//! the same source on the CPU for the tests.

mod attention;
mod cache;
mod device;
mod driver;
mod error;
mod kernels;
mod machine;
mod memory;
mod on_device;
mod pool;
mod products;
mod source;
mod twin;

pub(crate) use attention::{Angles, HeadNorms, HeadRotation, HeadShape, Preparation};
pub(crate) use cache::{DeviceCache, scores_bytes};
pub use device::{Device, Launched};
pub use error::{Error, Result};
pub(crate) use kernels::{NormAddNorm, RowNorm, RowNormKind, activation};
pub(crate) use memory::{DeviceRows, Memory};
pub(crate) use on_device::OnDevice;
pub use pool::Taken;
pub(crate) use products::{Into, Weights};
