//! How a picture is to be turned, as EXIF or XMP say it.

use super::rgb::Rgb;

/// EXIF's orientation, from 1, as it is stored, to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orientation(u8);

impl Default for Orientation {
    fn default() -> Self {
        Self(1)
    }
}

impl Orientation {
    /// What an EXIF block says, or XMP where that says nothing; one that cannot be read says nothing.
    pub(super) fn of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        let said = exif.and_then(in_exif).or_else(|| in_xmp(xmp?));
        said.and_then(|n| u8::try_from(n).ok())
            .filter(|n| (1..=8).contains(n))
            .map_or(Self::default(), Self)
    }

    /// The picture, turned.
    pub(super) fn apply(self, stored: Rgb) -> Rgb {
        let Self(code @ 2..) = self else {
            return stored;
        };
        let swapped = code >= 5;
        let (width, height) = match swapped {
            true => (stored.height, stored.width),
            false => (stored.width, stored.height),
        };
        // Which sides of the stored picture are counted from the other end.
        let from_right = matches!(code, 2 | 3 | 7 | 8);
        let from_bottom = matches!(code, 3 | 4 | 6 | 7);
        let mut bytes = Vec::with_capacity(stored.bytes.len());
        for y in 0..height {
            for x in 0..width {
                let (x, y) = if swapped { (y, x) } else { (x, y) };
                let x = if from_right { stored.width - 1 - x } else { x };
                let y = if from_bottom {
                    stored.height - 1 - y
                } else {
                    y
                };
                bytes.extend(stored.pixel(x, y));
            }
        }
        Rgb {
            width,
            height,
            bytes,
        }
    }
}

/// The orientation in the first directory of an EXIF block, where it is one whole number.
fn in_exif(block: &[u8]) -> Option<u32> {
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let little = match block.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = *block.get(at..)?.first_chunk()?;
        Some(if little {
            u16::from_le_bytes(bytes)
        } else {
            u16::from_be_bytes(bytes)
        })
    };
    let long = |at: usize| {
        let bytes = *block.get(at..)?.first_chunk()?;
        Some(if little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        })
    };
    let directory = long(4)? as usize;
    for i in 0..usize::from(short(directory)?) {
        // A tag, a type, a count, and the value.
        let entry = directory + 2 + 12 * i;
        if short(entry)? != 0x0112 {
            continue;
        }
        return match (short(entry + 2)?, long(entry + 4)?) {
            (1, 1) => Some(u32::from(*block.get(entry + 8)?)),
            (3, 1) => Some(u32::from(short(entry + 8)?)),
            (4, 1) => long(entry + 8),
            _ => None,
        };
    }
    None
}

/// The digit behind `tiff:Orientation="` or `tiff:Orientation>`.
fn in_xmp(text: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    let digit = |at: usize| match &text[at + NAME.len()..] {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => {
            Some(u32::from(digit - b'0'))
        }
        _ => None,
    };
    let mut places = text.windows(NAME.len()).enumerate();
    places.find_map(|(at, window)| (window == NAME).then(|| digit(at))?)
}
