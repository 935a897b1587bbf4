//! What keeps a pass from running on a GPU.

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a pass from running on a GPU.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no driver.
    #[error(
        "no CUDA driver is installed here (libcuda cannot be loaded): install NVIDIA's, or use --backend native"
    )]
    NoDriver,
    /// There is no such device.
    #[error(
        "there is no CUDA device {ordinal}, this machine has {devices} (from 0): use another, or --backend native"
    )]
    NoDevice {
        /// Which.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// The compiler's library is missing.
    #[error(
        "NVRTC, which compiles the kernels, cannot be loaded: install the CUDA toolkit, or add its lib64 to LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// A kernel does not compile.
    #[error("the kernels do not compile for {device}: {message}")]
    Compile {
        /// The device.
        device: String,
        /// What the compiler says first.
        message: String,
    },
    /// The device's memory is too small.
    #[error(
        "{what} takes {needed} bytes on {device}, where {free} of {total} are free: end what else runs there, or use --backend native"
    )]
    OutOfMemory {
        /// What was to be stored.
        what: String,
        /// The device.
        device: String,
        /// The bytes it takes.
        needed: usize,
        /// The bytes that are free.
        free: usize,
        /// All of its bytes.
        total: usize,
    },
    /// The device refused something, or is lost.
    #[error("{device} failed to {what}: {message}")]
    Device {
        /// The device.
        device: String,
        /// What it was asked to do.
        what: String,
        /// What the driver says.
        message: String,
    },
}
