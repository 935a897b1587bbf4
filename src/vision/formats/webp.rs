//! WebP; of an animation, the first frame.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::{Decoded, Refused, reason};
use crate::vision::error::Error;
use crate::vision::format::MAX_PIXELS;
use crate::vision::orientation::Orientation;
use crate::vision::rgb::Rgb;

/// Decodes a file whose size `allow` allows.
pub(crate) fn decode(
    bytes: &[u8],
    allow: impl Fn((u32, u32)) -> Result<(), Error>,
) -> Result<Decoded, Refused> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(reason)?;
    let (width, height) = decoder.dimensions();
    allow((width, height)).map_err(Refused::Size)?;
    decoder.set_memory_limit(4 * MAX_PIXELS as usize);
    let mut data = vec![0; decoder.output_buffer_size().unwrap_or_default()];
    decoder.read_image(&mut data).map_err(reason)?;
    let exif = decoder.exif_metadata().map_err(reason)?;
    let xmp = decoder.xmp_metadata().map_err(reason)?;
    Ok(Decoded {
        pixels: Rgb {
            width: width as usize,
            height: height as usize,
            bytes: match decoder.has_alpha() {
                true => data
                    .chunks_exact(4)
                    .flat_map(|p| [p[0], p[1], p[2]])
                    .collect(),
                false => data,
            },
        },
        orientation: Orientation::of(exif.as_deref(), xmp.as_deref()),
    })
}
