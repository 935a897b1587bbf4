//! What keeps a patch from being solved, read or written.

use std::path::PathBuf;

use super::Solver;
use crate::message::{IoError, flattened, shown};
use crate::output::MaybeIo;
use crate::tensor::Storage;
use crate::{checkpoint, model};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a patch from being solved, read or written.
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

    // ---- what is to be absorbed --------------------------------------------------------
    /// A context of no tokens.
    #[error("there is no context to absorb: the prompt needs at least one token before its last")]
    NoContext,
    /// A patch for no token.
    #[error("there is no token to solve the patch for: a split needs a span of at least one")]
    NoQuery,
    /// A token that is to stay, and is not of the context.
    #[error(
        "token {index} cannot stay: kept tokens are named by ascending numbers below {context}, the length of the context"
    )]
    KeptIndex {
        /// Its index.
        index: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A token that is to stay, and is of an image.
    #[error("token {index} cannot stay: it is of an image, and only text stays; keep other tokens")]
    KeptImage {
        /// Its index.
        index: usize,
    },
    /// The whole context stays.
    #[error("nothing is left to absorb: all {context} tokens of the context stay")]
    NothingToAbsorb {
        /// Tokens of the context.
        context: usize,
    },
    /// A list of tokens that is none.
    #[error(
        "'{}' is no token's number: give numbers from 0 and ranges, such as 0,4..9",
        shown(part)
    )]
    KeepList {
        /// The part that is wrong.
        part: String,
    },

    // ---- solving -----------------------------------------------------------------------
    /// A precondition of a construction does not hold.
    #[error(
        "{quantity} = {value:e} at layer {layer}: it must be finite, and not zero where something is divided by it; absorb another context or use another token"
    )]
    Precondition {
        /// The layer.
        layer: usize,
        /// What the construction divides by, in the paper's names.
        quantity: String,
        /// Its value.
        value: f64,
    },
    /// Kept tokens out of order.
    #[error("the kept tokens' positions must ascend and be below the query's, {query}")]
    KeptTokens {
        /// The query's position.
        query: usize,
    },
    /// Several tokens for a solver of one.
    #[error(
        "{solver} patches a single token, and the query and its answer have {tokens}; use the solver span"
    )]
    OneToken {
        /// The solver.
        solver: Solver,
        /// Tokens of the span.
        tokens: usize,
    },
    /// A span, with the tokens that stay, of more tokens than W_down has columns.
    #[error(
        "a span can have {most} tokens in this model, those that stay counted, and this has {tokens}; keep fewer, or take a shorter answer"
    )]
    SpanTooLong {
        /// Tokens of the reduced pass.
        tokens: usize,
        /// The model's intermediate_size.
        most: usize,
    },
    /// A span in which a state is there twice, or nearly.
    #[error(
        "the span's states at layer {layer} are not independent (the condition of H is {condition:e}): a state is there twice; take a shorter answer, or keep other tokens"
    )]
    RepeatedState {
        /// The layer.
        layer: usize,
        /// The condition of H.
        condition: f64,
    },
    /// A solver for spans where a single token is solved for.
    #[error("the solver span is not for a single token: use theorem-1, appendix-b or closed-form")]
    SpanSolver,

    // ---- applying, saving and exporting ------------------------------------------------
    /// Too few queries to compile a prompt from.
    #[error(
        "{queries} different queries are too few to compile a prompt from and to try it on others: give more, or a larger --self"
    )]
    FewQueries {
        /// Those that there are.
        queries: usize,
    },
    /// A file that has no texts which a model has written.
    #[error("{}: it has no texts that were kept; give another --samples, or remove it", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
    },
    /// A file that has no outputs of the model's layers.
    #[error("{}: it has not what the layers say of these samples; remove it, and it is computed again", path.display())]
    KeptStates {
        /// The file.
        path: PathBuf,
    },
    /// A recipe that a model cannot be compiled by.
    #[error("the recipe does not fit: {reason}; give another --first, --rank, --lambda or --gain")]
    Recipe {
        /// What is wrong with it.
        reason: String,
    },
    /// A prompt that is not there.
    #[error(
        "there is nothing to compile: with the prompt and without it the model sees the same tokens"
    )]
    NothingToCompile,
    /// A line of a file of queries that is none.
    #[error("{}, line {line}: it is no query: give one JSON a line, a string or {{\"query\": \"…\", \"answer\": \"…\"}}", path.display())]
    QueryLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A query that the patch is for, and is not for.
    #[error(
        "{query:?} is among the queries and among those of other kinds: it can be one of the two"
    )]
    AwayQuery {
        /// The query.
        query: String,
    },
    /// A compiled patch is applied, and to nothing.
    #[error("a compiled patch is for any query: give one by --prompt TEXT or --ids FILE")]
    CompiledQuery,
    /// A part of a patch that does not fit the model.
    #[error(
        "the patch does not fit the model: {part} is {found:?} and should be {expected:?}; use the model that it was solved for"
    )]
    PatchShape {
        /// The part.
        part: String,
        /// Its shape.
        found: Vec<usize>,
        /// The model's.
        expected: Vec<usize>,
    },
    /// A patch changes a tensor that no patch of this model may.
    #[error(
        "the patch changes {} of layer {layer}, and a patch of this model may change only {}; solve it again for this model",
        shown(tensor),
        allowed.join(", ")
    )]
    PatchTensor {
        /// The layer.
        layer: usize,
        /// The tensor's name in it.
        tensor: String,
        /// The names of those that it may change there, with a `*` for the number of an expert.
        allowed: Vec<String>,
    },
    /// A solver for blocks with a post-norm, and a model that has none.
    #[error(
        "the solver {solver} is for models with a norm behind the MLP, and this one has none: use theorem-5 or closed-form"
    )]
    NoPostNorm {
        /// The solver.
        solver: Solver,
    },
    /// A patch of other weights.
    #[error("the patch is for the model {name} with the hash {patch}, and this one has the hash {model}; give the model it was solved for", name = shown(name), patch = shown(patch))]
    PatchOfAnotherModel {
        /// The hash of the patch's model.
        patch: String,
        /// Its name.
        name: String,
        /// The hash of the model at hand.
        model: String,
    },
    /// A file that is no patch, or not the one that was saved.
    #[error("{}: {reason}; solve the patch again", path.display())]
    PatchFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A number of a patch that the type it is to be stored in does not hold.
    #[error(
        "{tensor} of the patch has a number that is not finite as it is to be saved; save it in F64, or solve it again"
    )]
    PatchValue {
        /// The tensor.
        tensor: String,
    },
    /// A description of a patch with a number that is not finite.
    #[error("the patch's {field} has a number that is not finite; solve it again")]
    PatchField {
        /// The field of its file.
        field: String,
    },
    /// A patch that changes nothing.
    #[error("the patch changes nothing: there is nothing to export")]
    EmptyPatch,
    /// A number that is too large for the type it is stored in.
    #[error(
        "{tensor} has a number that {storage} cannot hold when it is patched: store it as f32 or f64"
    )]
    StorageOverflow {
        /// The tensor.
        tensor: String,
        /// The type.
        storage: Storage,
    },
    /// A changed norm, for a program that applies none.
    #[error(
        "the patch changes a norm (layer {layer}), and llama.cpp applies no change of a norm: solve with --solver span, or export merged or peft"
    )]
    NormInGguf {
        /// The first such layer.
        layer: usize,
    },
    /// A change of a tensor that another program has no adapter for.
    #[error("the patch changes {tensor}, of which {format} can hold no change: export merged")]
    ExportTensor {
        /// The tensor.
        tensor: String,
        /// The form of the export.
        format: &'static str,
    },
    /// An unknown kind of export.
    #[error(
        "'{}' is no kind of export: use peft DIR, gguf FILE or merged DIR",
        shown(kind)
    )]
    ExportKind {
        /// What was asked for.
        kind: String,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
    model => Model(Io, Checkpoint);
}

impl MaybeIo for Error {
    fn io_mut(&mut self) -> Option<&mut IoError> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}
