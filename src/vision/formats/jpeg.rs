//! JPEG: baseline and progressive; grey, YCbCr, RGB, CMYK and YCCK.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Decoded, Refused, grey, reason};
use crate::vision::error::Error;
use crate::vision::orientation::Orientation;
use crate::vision::rgb::Rgb;

/// Decodes a file whose size `allow` allows.
///
/// The decoder's own instructions for some processors stay off, so that the bits are the same on all; and the colours are left
/// to this file, which converts them as libjpeg does.
pub(crate) fn decode(
    bytes: &[u8],
    allow: impl Fn((u32, u32)) -> Result<(), Error>,
) -> Result<Decoded, Refused> {
    let side = usize::from(u16::MAX);
    let options = DecoderOptions::default()
        .set_max_width(side)
        .set_max_height(side);
    let options = options.set_use_unsafe(false);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(reason)?;
    let (width, height) = decoder
        .dimensions()
        .ok_or_else(|| reason("it has no header"))?;
    allow((width as u32, height as u32)).map_err(Refused::Size)?;

    let stored = decoder.input_colorspace();
    let stored = stored.ok_or_else(|| reason("it has no header"))?;
    // Strict from here on, so that what is cut short is an error and no grey.
    decoder.set_options(
        options
            .jpeg_set_out_colorspace(stored)
            .set_strict_mode(true),
    );
    let metadata = Metadata::of(bytes);
    if !metadata.ends {
        return Err(reason("it is cut short: it has no end marker"));
    }
    let data = decoder.decode().map_err(reason)?;
    let pixels = || data.as_chunks::<3>().0.iter();
    let with_black = || data.as_chunks::<4>().0.iter();
    let bytes: Vec<u8> = match stored {
        ColorSpace::Luma => grey(data),
        ColorSpace::RGB => data,
        ColorSpace::YCbCr => pixels().flat_map(|p| rgb_of_ycbcr(*p)).collect(),
        ColorSpace::CMYK => with_black()
            .flat_map(|&[c, m, y, k]| over([c, m, y], k))
            .collect(),
        ColorSpace::YCCK => {
            let inks = |colour: [u8; 3]| rgb_of_ycbcr(colour).map(|level| 255 - level);
            with_black()
                .flat_map(|&[y, cb, cr, k]| over(inks([y, cb, cr]), k))
                .collect()
        }
        other => return Err(reason(format!("its colours are {other:?}"))),
    };
    if bytes.len() != 3 * width * height {
        return Err(reason("its size changes on the way"));
    }
    Ok(Decoded {
        pixels: Rgb {
            width,
            height,
            bytes,
        },
        orientation: Orientation::of(metadata.exif.as_deref(), metadata.xmp),
    })
}

/// JFIF's conversion in libjpeg's 16 bits of fraction.
fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91881 * cr + HALF) >> 16);
    let green = y + ((-22554 * cb - 46802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|level| level.clamp(0, 255) as u8)
}

/// What Pillow makes of inks and black, all of which JPEG files have as 255 minus the ink.
fn over(inks: [u8; 3], black: u8) -> [u8; 3] {
    inks.map(|ink| {
        let product = u32::from(255 - ink) * u32::from(black) + 128;
        black - ((product + (product >> 8)) >> 8) as u8
    })
}

/// What else of a file counts.
struct Metadata<'a> {
    exif: Option<Vec<u8>>,
    xmp: Option<&'a [u8]>,
    /// Whether an end marker follows the pixels.
    ends: bool,
}

impl<'a> Metadata<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        const EXIF: &[u8] = b"Exif\0\0";
        const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
        let (mut exif, mut xmp) = (None, None);
        // Behind the start of the picture.
        let mut rest = bytes.get(2..).unwrap_or_default();
        while let [mark, kind, behind @ ..] = rest {
            let (0xff, 0x01..=0xfe) = (mark, kind) else {
                rest = &rest[1..];
                continue;
            };
            if *kind == 0xda {
                break;
            }
            let length = behind
                .first_chunk()
                .map_or(0, |length| u16::from_be_bytes(*length));
            let length = usize::from(length).max(2).min(behind.len());
            if let (0xe1, Some(segment)) = (kind, behind[..length].get(2..)) {
                if let Some(more) = segment.strip_prefix(EXIF) {
                    exif.get_or_insert_with(Vec::new).extend_from_slice(more);
                } else if let Some(found) = segment.strip_prefix(XMP) {
                    xmp = Some(found);
                }
            }
            rest = &behind[length..];
        }
        let ends = rest.windows(2).any(|pair| pair == [0xff, 0xd9]);
        Self { exif, xmp, ends }
    }
}
