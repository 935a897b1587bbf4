//! The decoders of single formats, and what of their pixels Pillow makes RGB.

pub(super) mod gif;
pub(super) mod jpeg;
pub(super) mod png;
pub(super) mod webp;

use super::error::Error;
use super::orientation::Orientation;
use super::rgb::Rgb;

/// What a file has: its pixels as they are stored, and how they are to be turned.
pub(super) struct Decoded {
    pub(super) pixels: Rgb,
    pub(super) orientation: Orientation,
}

/// Why a file was not decoded.
pub(super) enum Refused {
    /// Its size.
    Size(Error),
    /// What a decoder says.
    Decoder(String),
}

/// What a decoder says.
fn reason(error: impl std::fmt::Display) -> Refused {
    Refused::Decoder(error.to_string())
}

/// Makes the pixels of a file's one transparent colour white.
///
/// Pillow keeps such a colour beside the pixels, and transformers puts a picture that has one on white, as it does not with an
/// alpha channel of a file.
fn whiten(bytes: &mut [u8], transparent: [u8; 3]) {
    for pixel in bytes.as_chunks_mut().0 {
        if *pixel == transparent {
            *pixel = [255; 3];
        }
    }
}

/// Three times each of these.
fn grey(levels: impl IntoIterator<Item = u8>) -> Vec<u8> {
    levels.into_iter().flat_map(|level| [level; 3]).collect()
}

/// A palette's colour. Beyond its end, Pillow has black.
fn colour(palette: &[u8], index: u8) -> [u8; 3] {
    let colours = palette.as_chunks().0;
    colours.get(usize::from(index)).copied().unwrap_or_default()
}

/// The colours of a palette that these indices stand for.
fn coloured(palette: &[u8], indices: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let pixels = indices.into_iter();
    pixels.flat_map(|index| colour(palette, index)).collect()
}
