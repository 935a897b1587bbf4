//! What keeps a server from starting, or a patch from being served.

use crate::message::{IoError, flattened, shown};
use crate::{checkpoint, model, patch, receipt};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a model from being served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Something is wrong with the checkpoint.
    #[error(transparent)]
    Checkpoint(checkpoint::Error),
    /// The model cannot be run.
    #[error(transparent)]
    Model(model::Error),
    /// A patch cannot be read, or is another model's.
    #[error(transparent)]
    Patch(patch::Error),
    /// There can be no receipts of it.
    #[error(transparent)]
    Receipt(receipt::Error),
    /// A name that stands badly in a URL.
    #[error(
        "'{}' cannot be a patch's name: give 1 to 64 letters, digits, dots, dashes and underscores",
        shown(name)
    )]
    PatchName {
        /// The name.
        name: String,
    },
    /// Two patches of a name.
    #[error(
        "there is a patch named '{name}' already: give this one another name, or delete that one"
    )]
    PatchTaken {
        /// The name.
        name: String,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
    patch => Patch(Io, Checkpoint, Model);
    receipt => Receipt(Io, Checkpoint, Model, Patch);
}
