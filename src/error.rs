//! The error of the crate as a whole: one of its modules' errors.

use crate::message::{IoError, flattened};
#[cfg(feature = "server")]
use crate::server;
use crate::{checkpoint, compare, conformance, model, patch, receipt, trace, verify, vision};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, for anything that a file or a user can contain.
///
/// Each variant is the error of the module in whose words it is, whichever module it came through: a missing tensor is an
/// [`Error::Checkpoint`] too where a patch was to be solved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A checkpoint cannot be found or read.
    #[error(transparent)]
    Checkpoint(checkpoint::Error),
    /// A model cannot be run.
    #[error(transparent)]
    Model(model::Error),
    /// A pass cannot be recorded.
    #[error(transparent)]
    Trace(trace::Error),
    /// A patch cannot be solved, read or written.
    #[error(transparent)]
    Patch(patch::Error),
    /// A receipt cannot be written, read or checked.
    #[error(transparent)]
    Receipt(receipt::Error),
    /// A verification cannot be run, read or written.
    #[error(transparent)]
    Verify(verify::Error),
    /// Recordings cannot be compared.
    #[error(transparent)]
    Compare(compare::Error),
    /// The conformance kit cannot be written or scored.
    #[error(transparent)]
    Conformance(conformance::Error),
    /// A picture cannot be read, or stands nowhere in a prompt.
    #[error(transparent)]
    Vision(vision::Error),
    /// A model cannot be served.
    #[cfg(feature = "server")]
    #[error(transparent)]
    Server(server::Error),
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
    vision => Vision(Io, Checkpoint);
    trace => Trace(Io, Checkpoint, Model);
    patch => Patch(Io, Checkpoint, Model);
    receipt => Receipt(Io, Checkpoint, Model, Patch, Vision, Verify);
    verify => Verify(Io, Checkpoint, Model, Patch);
    compare => Compare(Io, Checkpoint, Model, Trace);
    conformance => Conformance(Io, Checkpoint, Model, Vision, Trace, Compare);
}

#[cfg(feature = "server")]
flattened! {
    server => Server(Io, Checkpoint, Model, Patch, Receipt);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_its_own_modules_by_whatever_way_it_came() {
        let missing = || checkpoint::Error::MissingTensor {
            file: "model.safetensors".into(),
            tensor: "model.norm.weight".into(),
        };
        let model = || model::Error::from(missing());
        let ways = [
            Error::from(missing()),
            model().into(),
            trace::Error::from(model()).into(),
            patch::Error::from(model()).into(),
            verify::Error::from(patch::Error::from(missing())).into(),
            compare::Error::from(trace::Error::from(model())).into(),
            conformance::Error::from(compare::Error::from(model())).into(),
        ];
        let want = missing().to_string();
        for error in ways {
            assert_eq!(error.to_string(), want);
            let own = matches!(
                error,
                Error::Checkpoint(checkpoint::Error::MissingTensor { .. })
            );
            assert!(own, "{error:?}");
        }
    }
}
