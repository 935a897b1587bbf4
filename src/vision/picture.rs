//! A picture, decoded.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::format::{Format, MAX_BYTES, MAX_PIXELS};
use super::formats::{self, Decoded};
use super::rgb::Rgb;
use crate::message::{IoError, hex, one_line, shown};

/// A picture, decoded as transformers' `load_image` does it with Pillow: turned as its EXIF orientation says, and RGB.
///
/// Pillow's conversions to RGB hold: an alpha channel is left out and what it hides is seen, but a PNG's or GIF's one transparent
/// colour becomes white; 16 bits become the upper 8 of them, but of grey alone everything above 255 becomes white; and CMYK becomes
/// RGB without a colour profile.
/// PNG, GIF and lossless WebP come out as Pillow's bytes. Of JPEG and lossy WebP every decoder makes its own, close ones;
/// docs/vision.md has how far they are from Pillow's.
#[derive(Clone)]
pub struct Picture {
    path: PathBuf,
    format: Format,
    sha256: String,
    pixels: Rgb,
}

/// What is kept of a picture where it was used: enough to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PictureRecord {
    /// The name of its file, without the folder.
    pub file: String,
    /// What the file is.
    pub format: Format,
    /// In pixels, after it was turned.
    pub width: usize,
    /// In pixels, after it was turned.
    pub height: usize,
    /// Of the file's bytes, in hexadecimal.
    pub sha256: String,
}

impl fmt::Display for PictureRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            format,
            width,
            height,
            ..
        } = self;
        write!(f, "{}, {format}, {width} × {height}", shown(file))
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, format) = (self.path.display(), self.format);
        write!(
            f,
            "Picture({path}, {format}, {} × {})",
            self.width(),
            self.height()
        )
    }
}

impl Picture {
    /// Reads and decodes a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and those of [`decode`](Self::decode).
    pub fn open(path: &Path) -> Result<Self> {
        let read = || {
            let mut bytes = Vec::new();
            // One more, so that a longer file is seen to be longer, whatever its length is said to be.
            let mut file = std::fs::File::open(path)?.take(MAX_BYTES + 1);
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        Self::decode(path, &read().map_err(IoError::at("read", path))?)
    }

    /// Decodes the bytes of a file. `path` only serves the messages.
    ///
    /// The size in the header is checked before anything is decoded.
    ///
    /// # Errors
    ///
    /// [`Error::NotAPicture`], [`Error::TooManyBytes`], [`Error::TooManyPixels`], [`Error::TooFewBytes`] and
    /// [`Error::Damaged`].
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let format = Format::of(bytes).ok_or_else(|| Error::NotAPicture { path: path.into() })?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::TooManyBytes {
                path: path.into(),
                bytes: bytes.len() as u64,
                most: MAX_BYTES,
            });
        }
        let allow = |(width, height)| check_size(path, format, bytes.len(), width, height);
        let decoded = match format {
            Format::Png => formats::png::decode(bytes, allow),
            Format::Jpeg => formats::jpeg::decode(bytes, allow),
            Format::WebP => formats::webp::decode(bytes, allow),
            Format::Gif => formats::gif::decode(bytes, allow),
        };
        let Decoded {
            pixels,
            orientation,
        } = decoded.map_err(|refused| match refused {
            formats::Refused::Size(error) => error,
            formats::Refused::Decoder(reason) => Error::Damaged {
                path: path.into(),
                format,
                reason: one_line(reason.trim_end(), 200),
            },
        })?;
        Ok(Self {
            path: path.into(),
            format,
            sha256: hex(&Sha256::digest(bytes)),
            pixels: orientation.apply(pixels),
        })
    }

    /// The file, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The SHA-256 of the file's bytes, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The width in pixels, after it was turned.
    pub fn width(&self) -> usize {
        self.pixels.width
    }

    /// The height in pixels, after it was turned.
    pub fn height(&self) -> usize {
        self.pixels.height
    }

    /// RGB, 8 bits a channel: `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.pixels.bytes
    }

    /// What is kept of it where it was used.
    pub fn record(&self) -> PictureRecord {
        let name = self.path.file_name().unwrap_or_default();
        PictureRecord {
            file: name.to_string_lossy().into_owned(),
            format: self.format,
            width: self.width(),
            height: self.height(),
            sha256: self.sha256.clone(),
        }
    }

    pub(super) fn pixels(&self) -> &Rgb {
        &self.pixels
    }
}

/// Refuses a size that is none, that takes too much memory, or that a file of this length cannot have.
fn check_size(path: &Path, format: Format, bytes: usize, width: u32, height: u32) -> Result<()> {
    let path = || path.to_owned();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(Error::Damaged {
            path: path(),
            format,
            reason: format!("its header says {width} × {height} pixels"),
        });
    }
    if pixels > MAX_PIXELS {
        return Err(Error::TooManyPixels {
            path: path(),
            width,
            height,
            most: MAX_PIXELS,
        });
    }
    if format
        .pixels_per_byte()
        .is_some_and(|most| pixels > most * bytes as u64)
    {
        return Err(Error::TooFewBytes {
            path: path(),
            format,
            width,
            height,
            bytes,
        });
    }
    Ok(())
}
