//! What is wrong with a picture, or with where it stands in a prompt.

use std::path::PathBuf;

use super::format::Format;
use crate::checkpoint;
use crate::message::{IoError, shown};

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a picture, or with where it stands in a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The checkpoint does not say what becomes of a picture.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),

    /// A file that begins as no picture does.
    #[error("{} is no picture that can be read; give a PNG, JPEG, WebP or GIF file", path.display())]
    NotAPicture {
        /// The file.
        path: PathBuf,
    },
    /// A file with more bytes than are read.
    #[error("{} has {bytes} bytes, more than the {most} that are read of a picture; save it smaller", path.display())]
    TooManyBytes {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// How long it may be.
        most: u64,
    },
    /// A picture that says it has more pixels than are decoded.
    #[error("{} is {width} × {height} pixels, more than the {most} that are decoded; scale it down", path.display())]
    TooManyPixels {
        /// The file.
        path: PathBuf,
        /// What its header says.
        width: u32,
        /// What its header says.
        height: u32,
        /// How many there may be.
        most: u64,
    },
    /// A picture whose file is too short for the size in its header, however well it is compressed.
    #[error(
        "{} says it is {width} × {height} pixels, which {bytes} bytes of {format} cannot hold; it is cut short or damaged",
        path.display()
    )]
    TooFewBytes {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: Format,
        /// What its header says.
        width: u32,
        /// What its header says.
        height: u32,
        /// How long the file is.
        bytes: usize,
    },
    /// A picture that cannot be decoded to its end.
    #[error("{} cannot be decoded as {format}: {reason}; save it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it begins as.
        format: Format,
        /// What the decoder says.
        reason: String,
    },

    /// Pictures, and no prompt to put them into.
    #[error(
        "the patch's own input has no picture: --image is for another input, --prompt or --ids"
    )]
    NoPrompt,
    /// A prompt that does not have one place for each picture.
    #[error(
        "the prompt has {places} × {token}, but there are {pictures} pictures (--image); give one for each, or leave {token} out to have the pictures before the text"
    )]
    Placeholders {
        /// The text of `boi_token_index`.
        token: String,
        /// How often the prompt has it.
        places: usize,
        /// How many pictures there are.
        pictures: usize,
    },
    /// A token of pictures behind the context.
    #[error(
        "the query and the answer are text, and '{}' has a token of pictures; put it into the context",
        shown(text)
    )]
    BehindContext {
        /// The text that has one.
        text: String,
    },
    /// Token ids that do not have the tokens of the pictures.
    #[error(
        "the prompt has {tokens} tokens of images (id {id}), but {images} images (--image) take {each} each, side by side; leave them out of a text, and give ids as the processor makes them"
    )]
    ImageTokens {
        /// `image_token_index`.
        id: u32,
        /// How often the ids have it.
        tokens: usize,
        /// The pictures and their crops.
        images: usize,
        /// `mm_tokens_per_image`.
        each: usize,
    },
    /// A token of pictures that the tokenizer does not have.
    #[error(
        "the tokenizer has no token {id}, which is {field} of config.json; take the tokenizer.json of a model that sees, such as google/gemma-3-4b-it"
    )]
    NoToken {
        /// The field that names it.
        field: &'static str,
        /// The token.
        id: u32,
    },
}
