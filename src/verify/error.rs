//! What keeps a verification from being run, read or written.

use std::path::PathBuf;

use crate::message::{IoError, flattened, one_line, shown};
use crate::{checkpoint, model, patch};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a verification from being run, read or written.
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
    /// The patch cannot be solved.
    #[error(transparent)]
    Patch(patch::Error),

    // ---- prompts -----------------------------------------------------------------------
    /// A file of prompts that is something else.
    #[error("{} line {line} is not a JSON string such as \"Hello\", one a line: {}", path.display(), one_line(reason, 200))]
    Prompts {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Where it goes wrong.
        reason: String,
    },
    /// A file of prompts without any.
    #[error("{} has no prompt: give one JSON string a line", path.display())]
    NoPrompts {
        /// The file.
        path: PathBuf,
    },
    /// A prompt with images, and two backends.
    #[error(
        "a prompt with images cannot be solved on one backend and applied on another: name one backend"
    )]
    CrossingImages,
    /// A picture that is not the one that a verification had there.
    #[error(
        "picture {number} of the verification is {expected}, and --image gives {found}; give the same files in the same order"
    )]
    OtherPicture {
        /// Which of them, from 1.
        number: usize,
        /// What the verification had, or `none`.
        expected: String,
        /// What there is, or `none`.
        found: String,
    },
    /// A prompt of a verification that could not be solved, where the others were.
    #[error("{step}: {source}")]
    Unsolved {
        /// The step at which it ended.
        step: String,
        /// Why.
        source: Box<Error>,
    },

    // ---- files of steps ----------------------------------------------------------------
    /// A file that should be one of steps and is something else.
    #[error(
        "{} is no file of steps: {reason}; give one that verify --steps began, or another name",
        path.display()
    )]
    NoSteps {
        /// The file.
        path: PathBuf,
        /// What is wrong with its first line.
        reason: String,
    },
    /// A line of a file of steps that is damaged.
    #[error(
        "{} line {line} is damaged: {reason}; take the line out, and verify --steps computes its step again",
        path.display()
    )]
    StepsLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A step that is there twice, with other figures.
    #[error(
        "{} contradicts itself or the files before it: {step} is there with other figures; one of them was changed, or gemm computed it on another machine: leave one out",
        path.display()
    )]
    StepsDisagree {
        /// The file.
        path: PathBuf,
        /// The step.
        step: String,
    },
    /// A step that has other figures when it is computed again.
    #[error(
        "{step} was computed again and has other figures than before; gemm gives other bits on another machine: go on where the file of steps began, or begin a new one"
    )]
    StepRepeats {
        /// The step.
        step: String,
    },
    /// A file of steps that is of another verification.
    #[error(
        "{} is of another setting than {than}: {field} is {}, not {}; give the same options, or another file",
        path.display(),
        shown(found),
        shown(expected)
    )]
    OtherSetting {
        /// The file.
        path: PathBuf,
        /// Another file, or the command.
        than: String,
        /// The first thing that differs.
        field: &'static str,
        /// What it is in the file.
        found: String,
        /// What it is in the other.
        expected: String,
    },
    /// A file of steps that another process writes.
    #[error(
        "{} is being written by another process: wait until it ends, or give each process its own file",
        path.display()
    )]
    StepsLocked {
        /// The file.
        path: PathBuf,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
    patch => Patch(Io, Checkpoint, Model);
}
