//! What keeps a recording from being compared.

use std::path::PathBuf;

use crate::message::{IoError, flattened, shown};
use crate::output::shown_bytes;
use crate::{checkpoint, model, trace};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a recording from being compared.
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
    /// The pass cannot be recorded.
    #[error(transparent)]
    Trace(trace::Error),

    // ---- two recordings ----------------------------------------------------------------
    /// A recording that does not say what it is of.
    #[error("{} is no reference: it does not say its model and tokens; make one with `context-patch trace`", path.display())]
    NotAReference {
        /// The recording.
        path: PathBuf,
    },
    /// A reference that lacks its images.
    #[error("{} is a recording of tokens with images and lacks their pixel_values, with which all begins; trace it with all --names, or with this one, too", path.display())]
    NoPixels {
        /// The recording.
        path: PathBuf,
    },
    /// Two recordings of different weights.
    #[error("{} or the reference is a recording of other weights than those of {model}; record the same model again, or name the right one with --model", path.display())]
    OtherModel {
        /// The recording.
        path: PathBuf,
        /// The model's name.
        model: String,
    },
    /// Two recordings of different tokens.
    #[error("{} is a recording of other tokens than the reference; record the same ids again", path.display())]
    OtherTokens {
        /// The recording.
        path: PathBuf,
    },
    /// Tensors that cannot be replayed, or a reference that is not exact, of too many tokens.
    #[error(
        "comparing would hold {} of our own pass over {tokens} tokens in memory, and {} is the most: trace the reference with --dtype f64, and both with --last N where OTHER lacks inputs",
        shown_bytes(*needed), shown_bytes(*most)
    )]
    ComparisonMemory {
        /// The tokens whose rows would be held.
        tokens: usize,
        /// The bytes of them.
        needed: u64,
        /// The bytes that may be held.
        most: u64,
    },
    /// Two recordings with no tensor in common.
    #[error("{} has no tensor of {}; --map FILE can say what its names mean", path.display(), reference.display())]
    NothingInCommon {
        /// The recording.
        path: PathBuf,
        /// The reference.
        reference: PathBuf,
    },
    /// A recording that has less than the reference.
    #[error("{} lacks {missing} of the reference's tensors, {first} first; record them, or compare what is there with --partial", path.display())]
    MissingRecordings {
        /// The recording.
        path: PathBuf,
        /// How many.
        missing: usize,
        /// The first in forward order.
        first: String,
    },
    /// Not as many tokens as the reference has.
    #[error("{}: {} has {rows} rows where the reference has {expected}; record the same tokens", path.display(), shown(tensor))]
    RecordedRows {
        /// The recording.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Those of the reference.
        expected: usize,
    },

    // ---- recordings of other engines ---------------------------------------------------
    /// A file of a recording that is not what its name says.
    #[error("{}: {reason}", path.display())]
    RecordingFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// No tensor's name is known.
    #[error(
        "{}: none of its {count} tensors has a known name{}; --map FILE can say what they are", path.display(),
        examples(names)
    )]
    RecordingNames {
        /// The file or folder.
        path: PathBuf,
        /// How many tensors it has.
        count: usize,
        /// Some of their names.
        names: Vec<String>,
    },
    /// A tensor in a type that is not read.
    #[error(
        "{}: tensor {} is {}; record it as F64, F32, BF16 or F16 (in .npy: little-endian f8, f4 or f2)", path.display(),
        shown(tensor), shown(dtype)
    )]
    RecordingDtype {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor that does not fit its point of the model.
    #[error(
        "{}: tensor {} is {found:?} and {point} should be {expected}; is it another model, or does a layout word of --map FILE describe it?",
        path.display(), shown(tensor)
    )]
    RecordingShape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it is taken for.
        point: String,
        /// The shapes that fit.
        expected: String,
    },
    /// A tensor whose axes can be read in two ways.
    #[error(
        "{}: tensor {} is {found:?}, which fits {point} as [heads, tokens, head_dim] and as [tokens, heads, head_dim]; say which by a rule with heads-first or tokens-first in --map FILE",
        path.display(), shown(tensor)
    )]
    RecordingLayout {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it is taken for.
        point: String,
    },
    /// Two tensors for one point of the model.
    #[error(
        "{}: tensors {} and {} are both {point}; leave one out, or say by --map FILE what they are",
        path.display(), shown(first), shown(second)
    )]
    RecordingTwice {
        /// The file or folder.
        path: PathBuf,
        /// One of them, as the recording calls it.
        first: String,
        /// The other.
        second: String,
        /// What both are taken for.
        point: String,
    },
    /// Tensors of different numbers of tokens.
    #[error(
        "{}: tensor {} has {rows} tokens where {} has {expected}; record all tensors in one pass",
        path.display(), shown(tensor), shown(other)
    )]
    RecordingRows {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its tokens.
        rows: usize,
        /// A tensor before it in forward order.
        other: String,
        /// That one's tokens.
        expected: usize,
    },
    /// Tensors of different images.
    #[error(
        "{}: tensor {} has {rows} rows, not the {expected} of as many images as {} is of; record all tensors in one pass",
        path.display(), shown(tensor), shown(other)
    )]
    RecordingImages {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// As many as it should have.
        expected: usize,
        /// The tensor that says how many images there are.
        other: String,
    },
    /// A layer that the model does not have.
    #[error(
        "{}: tensor {} is of layer {layer} and the model has {layers} layers, counted from 0; give the recording's model",
        path.display(), shown(tensor)
    )]
    RecordingLayer {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its layer.
        layer: usize,
        /// The model's number of layers.
        layers: usize,
    },
    /// NaN or infinity in a recording.
    #[error(
        "{}: tensor {} has {value} at token {row}, column {column}; the engine went wrong there or before: look at its tensors up to this one",
        path.display(), taken_for(tensor, point)
    )]
    RecordingValue {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// What it is taken for.
        point: String,
        /// The row, from 0.
        row: usize,
        /// The column of `point`, from 0.
        column: usize,
        /// The number.
        value: f64,
    },

    // ---- map files ---------------------------------------------------------------------
    /// A line of a map file that is no rule.
    #[error("{}, line {line}, column {column}: {reason}", path.display())]
    Rule {
        /// The map file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// A rule of a map file that no tensor of the recording matches.
    #[error(
        "{}, line {line}: no tensor of {} is called {}; correct the rule or remove it", map.display(),
        path.display(), shown(pattern)
    )]
    RuleUnmatched {
        /// The map file.
        map: PathBuf,
        /// The rule's line, from 1.
        line: usize,
        /// Their name in the rule.
        pattern: String,
        /// The recording.
        path: PathBuf,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
    trace => Trace(Io, Checkpoint, Model);
}

/// Names in brackets, to follow a noun; nothing where there is none.
fn examples(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| shown(name)).collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    }
}

/// A recording's tensor, and what it is taken for where that is called otherwise.
fn taken_for(tensor: &str, point: &str) -> String {
    if tensor == point {
        shown(tensor)
    } else {
        format!("{} ({point})", shown(tensor))
    }
}
