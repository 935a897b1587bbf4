//! What a file is, and how large it may be.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest file that is read as a picture.
pub const MAX_BYTES: u64 = 64 << 20;

/// The most pixels that are decoded, a quarter of a GiB of RGB. Above this Pillow, too, warns of a file that was made to fill the
/// memory.
pub const MAX_PIXELS: u64 = (1 << 28) / 3;

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Portable Network Graphics.
    Png,
    /// Baseline and progressive JPEG.
    Jpeg,
    /// WebP, with and without losses; of an animation, the first frame.
    WebP,
    /// GIF; of an animation, the first frame.
    Gif,
}

impl Format {
    /// The format of a file that begins with these bytes.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let begins = |with: &[u8]| bytes.starts_with(with);
        if begins(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if begins(b"\xff\xd8\xff") {
            Some(Self::Jpeg)
        } else if begins(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::WebP)
        } else if begins(b"GIF87a") || begins(b"GIF89a") {
            Some(Self::Gif)
        } else {
            None
        }
    }

    /// How many pixels one byte of a file can at most stand for, where there is a bound.
    pub(super) fn pixels_per_byte(self) -> Option<u64> {
        match self {
            // Deflate makes at most 1032 bytes of one, and 8 pixels are at least a byte.
            Self::Png => Some(8 * 1032),
            // 64 pixels take at least one bit of a Huffman code.
            Self::Jpeg => Some(8 * 64),
            // A picture of one colour takes no bits for its pixels; and of LZW's strings, each is longer than the one before.
            Self::WebP | Self::Gif => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
        })
    }
}
