//! What keeps a receipt from being written, read or checked.

use std::path::PathBuf;

use crate::kernels::Backend;
use crate::message::{IoError, flattened, one_line, shown};
use crate::verify::Place;
use crate::{checkpoint, model, patch, verify, vision};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a receipt from being written, read or checked.
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
    /// The patch cannot be read, or is not of this model.
    #[error(transparent)]
    Patch(patch::Error),
    /// A verification does not go as it should.
    #[error(transparent)]
    Verify(verify::Error),
    /// The pictures are not what the prompt has.
    #[error(transparent)]
    Vision(vision::Error),
    /// A verification that is not done.
    #[error(
        "{missing} tokens are still missing, {first} the first: a receipt is of a whole verification"
    )]
    Unfinished {
        /// How many.
        missing: usize,
        /// The first of them.
        first: Place,
    },
    /// A backend whose bits nobody can check elsewhere.
    #[error(
        "the bits of --backend {0} depend on the machine, so that nobody could check a receipt: use native"
    )]
    Backend(Backend),
    /// A file that is no receipt.
    #[error("{} is no receipt: {}", path.display(), one_line(&source.to_string(), 200))]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A receipt that another version of this crate wrote.
    #[error(
        "{} has the format '{}', and this program reads 'context-patch receipt 1' and 'context-patch verification receipt 1'",
        path.display(),
        shown(format)
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: String,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
    patch => Patch(Io, Checkpoint, Model);
    vision => Vision(Io, Checkpoint);
    verify => Verify(Io, Checkpoint, Model, Patch);
}
