//! PNG.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, Info, Transformations};

use super::{Decoded, Refused, colour, coloured, grey, reason, whiten};
use crate::vision::error::Error;
use crate::vision::orientation::Orientation;
use crate::vision::rgb::Rgb;

/// Decodes a file whose size `allow` allows.
pub(crate) fn decode(
    bytes: &[u8],
    allow: impl Fn((u32, u32)) -> Result<(), Error>,
) -> Result<Decoded, Refused> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    let info = decoder.read_header_info().map_err(reason)?;
    let (size, kind, depth) = (info.size(), info.color_type, info.bit_depth);
    allow(size).map_err(Refused::Size)?;
    // The upper half of 16 bits is what Pillow takes, but where grey stands alone.
    let whole = (kind, depth) == (ColorType::Grayscale, BitDepth::Sixteen);
    decoder.set_transformations(match whole {
        true => Transformations::IDENTITY,
        false => Transformations::STRIP_16,
    });
    let mut reader = decoder.read_info().map_err(reason)?;
    let mut data = vec![0; reader.output_buffer_size().unwrap_or_default()];
    let frame = reader.next_frame(&mut data).map_err(reason)?;
    if (frame.width, frame.height) != size {
        return Err(reason("its first frame is not the whole picture"));
    }
    let (width, height) = (size.0 as usize, size.1 as usize);
    let info = reader.info();
    let bits = frame.bit_depth as usize;
    let mut bytes = match kind {
        ColorType::Rgb => data,
        ColorType::Rgba => data
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        ColorType::GrayscaleAlpha => grey(data.chunks_exact(2).map(|p| p[0])),
        ColorType::Grayscale if whole => grey(
            data.chunks_exact(2)
                .map(|p| if p[0] == 0 { p[1] } else { 255 }),
        ),
        ColorType::Grayscale => {
            let white = 0xff >> (8 - bits);
            grey(unpacked(&data, width, bits).map(|level| level * (0xff / white)))
        }
        ColorType::Indexed => {
            let palette = info.palette.as_deref().unwrap_or_default();
            coloured(palette, unpacked(&data, width, bits))
        }
    };
    if let Some(transparent) = transparent(info) {
        whiten(&mut bytes, transparent);
    }
    Ok(Decoded {
        pixels: Rgb {
            width,
            height,
            bytes,
        },
        orientation: orientation(info),
    })
}

/// The samples of rows that are packed into bytes, the first in the highest bits.
fn unpacked(data: &[u8], width: usize, bits: usize) -> impl Iterator<Item = u8> {
    let rows = data.chunks_exact((width * bits).div_ceil(8));
    rows.flat_map(move |row| {
        (0..width).map(move |x| {
            let shift = 8 - bits - x * bits % 8;
            row[x * bits / 8] >> shift & (0xff >> (8 - bits))
        })
    })
}

/// The one colour that tRNS names, as Pillow comes to compare it with pixels: of 16 bits the lower half, of grey of less than 8 bits
/// the number as it is stored, and of 1 and 16 bits of grey a red.
fn transparent(info: &Info<'_>) -> Option<[u8; 3]> {
    let named = info.trns.as_deref()?;
    match (info.color_type, info.bit_depth, named) {
        (ColorType::Rgb, _, &[r, g, b]) | (ColorType::Rgb, _, &[_, r, _, g, _, b]) => {
            Some([r, g, b])
        }
        (ColorType::Grayscale, BitDepth::One, &[level]) => {
            Some([if level > 0 { 255 } else { 0 }, 0, 0])
        }
        (ColorType::Grayscale, BitDepth::Sixteen, &[_, low]) => Some([low, 0, 0]),
        (ColorType::Grayscale, _, &[level]) => Some([level; 3]),
        (ColorType::Indexed, ..) => {
            // One entry among opaque ones; otherwise there is an alpha channel, which is left out.
            let index = named.iter().position(|alpha| *alpha == 0)?;
            let mut others = named.iter().enumerate().filter(|(at, _)| *at != index);
            let alone = others.all(|(_, alpha)| *alpha == 255);
            alone.then(|| colour(info.palette.as_deref().unwrap_or_default(), index as u8))
        }
        _ => None,
    }
}

/// In eXIf, else where ImageMagick once put it; in XMP where neither has it.
fn orientation(info: &Info<'_>) -> Orientation {
    let text = |name: &str| {
        let mut plain = info.uncompressed_latin1_text.iter();
        let plain = plain.find(|chunk| chunk.keyword == name);
        plain.map(|chunk| chunk.text.clone()).or_else(|| {
            let mut packed = info.compressed_latin1_text.iter();
            packed.find(|chunk| chunk.keyword == name)?.get_text().ok()
        })
    };
    let raw = || {
        let text = text("Raw profile type exif")?;
        let digits: String = text.split('\n').skip(3).collect();
        let byte = |i| u8::from_str_radix(digits.get(i..i + 2)?, 16).ok();
        (0..digits.len()).step_by(2).map(byte).collect()
    };
    let exif: Option<Vec<u8>> = match &info.exif_metadata {
        Some(exif) => Some(exif.to_vec()),
        None => raw(),
    };
    let mut xmp = info.utf8_text.iter();
    let xmp = xmp.find(|chunk| chunk.keyword == "XML:com.adobe.xmp");
    let xmp = xmp.and_then(|chunk| chunk.get_text().ok());
    Orientation::of(exif.as_deref(), xmp.as_deref().map(str::as_bytes))
}
