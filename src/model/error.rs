//! What keeps a model from running.

use crate::checkpoint;
use crate::message::{IoError, flattened};
use crate::tensor::Dtype;

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can keep a model from running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Something is wrong with the checkpoint.
    #[error(transparent)]
    Checkpoint(checkpoint::Error),
    /// Nothing to run on.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A sequence that the model has no positions for.
    #[error(
        "the sequence needs {tokens} positions, the model has {positions}: shorten the prompt or the answer"
    )]
    PromptTooLong {
        /// The positions needed.
        tokens: usize,
        /// `max_position_embeddings`.
        positions: usize,
    },
    /// A sequence whose keys and values do not fit into the bytes allowed.
    #[error(
        "the cache of {tokens} tokens takes {needed} bytes, and {allowed} are allowed, which {fit} tokens fit in: shorten the prompt or the answer"
    )]
    CacheLimit {
        /// The tokens of the sequence, those it has already among them.
        tokens: usize,
        /// The bytes they need, by [`Model::cache_bytes`](super::Model::cache_bytes).
        needed: usize,
        /// The bytes allowed.
        allowed: usize,
        /// The tokens that would fit.
        fit: usize,
    },
    /// A sequence that a batch has no room for until others have left it.
    #[error(
        "the sequence needs {needed} bytes of cache, and {free} of the batch's {allowed} are free: try again when others have left"
    )]
    BatchFull {
        /// The bytes that it may need, by [`Model::cache_bytes`](super::Model::cache_bytes).
        needed: usize,
        /// The bytes that no sequence may need.
        free: usize,
        /// The bytes of the batch.
        allowed: usize,
    },
    /// A token id outside the vocabulary.
    #[error(
        "token id {id} at position {position} is outside the model's vocabulary of {vocab_size}: use the tokenizer of this model"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Where it stands in the sequence.
        position: usize,
        /// Ids must be below it.
        vocab_size: usize,
    },
    /// Image tokens that are not as many as the images take.
    #[error(
        "the prompt has {tokens} image tokens (id {id}), but {images} images take {each} each: give every image its tokens, and no others"
    )]
    ImageTokens {
        /// The id of an image token.
        id: u32,
        /// How many there are.
        tokens: usize,
        /// The images.
        images: usize,
        /// `mm_tokens_per_image`.
        each: usize,
    },
    /// A sequence that ends before an image does.
    #[error(
        "the first {tokens} tokens end within an image, whose tokens must be taken in together: let text follow the image"
    )]
    ImageCut {
        /// The tokens of the sequence.
        tokens: usize,
    },
    /// Pixels of another size than the vision part takes in.
    #[error("an image has {found} pixel values, but the vision part takes 3 × {size} × {size}")]
    PixelValues {
        /// How many there are.
        found: usize,
        /// `image_size`.
        size: usize,
    },
    /// Images on a device.
    #[cfg(feature = "cuda")]
    #[error(
        "a prompt with an image cannot run on the GPU, where no token sees one behind it: use the native backend"
    )]
    ImageOnDevice,
    /// Finite weights that gave something else.
    #[error(
        "the output of {module} is not finite in {dtype}, though the weights are: they are too large for it"
    )]
    Overflow {
        /// The module, such as `model.layers.3` or `lm_head`.
        module: String,
        /// The compute type.
        dtype: Dtype,
    },
    /// The pass was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A session that failed in the middle of a token.
    #[error("this sequence failed before and has seen half a token: begin a new session")]
    SpentSession,
    /// The GPU cannot be used, or failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::Error),
    /// A bug that would not show.
    #[error("the bug {bug} would not show here: {why}")]
    NoEffect {
        /// Its name.
        bug: &'static str,
        /// Why.
        why: String,
    },
}

flattened! {
    checkpoint => Checkpoint(Io);
}
