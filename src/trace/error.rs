//! What keeps a pass from being recorded.

use std::path::PathBuf;

use crate::message::{IoError, flattened, one_line, shown};
use crate::{checkpoint, model};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a pass from being recorded.
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
    /// A pattern for names of tensors that is of no use.
    #[error(
        "'{}' names no tensor: {why}; try '*' or 'model.layers.3.*'",
        shown(pattern)
    )]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of token ids that is something else.
    #[error("{} is not a JSON list of token ids such as [2, 818]: {}", path.display(), one_line(&source.to_string(), 200))]
    Ids {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
}
