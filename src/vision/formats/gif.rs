//! The first frame of a GIF.

use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::{Decoded, Refused, colour, coloured, reason, whiten};
use crate::vision::error::Error;
use crate::vision::format::MAX_PIXELS;
use crate::vision::orientation::Orientation;
use crate::vision::rgb::Rgb;

/// Decodes the first frame of a file whose size `allow` allows.
///
/// As in Pillow, the screen grows to hold the frame, and around it is the transparent colour, or the first of the palette.
pub(crate) fn decode(
    bytes: &[u8],
    allow: impl Fn((u32, u32)) -> Result<(), Error>,
) -> Result<Decoded, Refused> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(
        NonZeroU64::new(MAX_PIXELS).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes),
    );
    let mut decoder = options.read_info(bytes).map_err(reason)?;
    let screen = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(reason)?;
    let frame = frame.ok_or_else(|| reason("it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let width = usize::from(screen.0).max(left + columns);
    let height = usize::from(screen.1).max(top + rows);
    allow((width as u32, height as u32)).map_err(Refused::Size)?;

    let mut indices = vec![0; columns * rows];
    decoder.read_into_buffer(&mut indices).map_err(reason)?;
    let mut canvas = vec![transparent.unwrap_or(0); width * height];
    for (y, row) in indices.chunks_exact(columns.max(1)).enumerate() {
        let at = (top + y) * width + left;
        canvas[at..at + columns].copy_from_slice(row);
    }
    let palette = decoder.palette().map_err(reason)?;
    let mut bytes = coloured(palette, canvas);
    if let Some(index) = transparent {
        whiten(&mut bytes, colour(palette, index));
    }
    Ok(Decoded {
        pixels: Rgb {
            width,
            height,
            bytes,
        },
        orientation: Orientation::default(),
    })
}
