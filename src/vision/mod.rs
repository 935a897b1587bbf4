//! Pictures in prompts: from the bytes of a file to what SigLIP reads, and from a text to the tokens among which it stands.
//!
//! A [`Picture`] is decoded as Pillow decodes it, a [`Preprocessor`] makes [`PixelValues`] of it as transformers'
//! `Gemma3ImageProcessor` does, and a [`Processor`] puts it into a prompt as `Gemma3Processor` does.

mod draw;
mod error;
mod format;
mod formats;
mod orientation;
mod picture;
mod preprocess;
mod prompt;
mod resize;
mod rgb;

pub use draw::{half_blocks, thumbnail};
pub use error::{Error, Result};
pub use format::{Format, MAX_BYTES, MAX_PIXELS};
pub use picture::{Picture, PictureRecord};
pub use preprocess::{PanAndScan, PixelValues, Preprocessor};
pub use prompt::Processor;
