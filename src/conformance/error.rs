//! What keeps the kit from being written or scored.

use std::path::PathBuf;

use crate::message::{IoError, flattened};
use crate::output::MaybeIo;
use crate::{checkpoint, compare, model, trace, vision};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep the kit from being written or scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Something is wrong with the checkpoint.
    #[error(transparent)]
    Checkpoint(checkpoint::Error),
    /// The model cannot run.
    #[error(transparent)]
    Model(model::Error),
    /// A picture cannot be read.
    #[error(transparent)]
    Vision(vision::Error),
    /// The pass cannot be recorded.
    #[error(transparent)]
    Trace(trace::Error),
    /// A recording cannot be compared.
    #[error(transparent)]
    Compare(compare::Error),
    /// A folder without results for the conformance kit.
    #[error("{} has no results: put recordings there as CASE/f32.safetensors or CASE/bf16.safetensors", path.display())]
    NoResults {
        /// The folder.
        path: PathBuf,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
    vision => Vision(Io, Checkpoint);
    trace => Trace(Io, Checkpoint, Model);
    compare => Compare(Io, Checkpoint, Model, Trace);
}

impl MaybeIo for Error {
    fn io_mut(&mut self) -> Option<&mut IoError> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}
