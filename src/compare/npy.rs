//! NumPy's `.npy` files, and `.npz` archives of them: little-endian numbers, mapped and never copied.
//!
//! Only what `numpy.save` and `numpy.savez` write for arrays of plain numbers: everything else (big-endian numbers,
//! records, pickled objects, compressed archives) is refused with what to do instead.

use std::io::Cursor;

use bytes::Bytes;
use zip::{CompressionMethod, ZipArchive};

use crate::tensor::{Storage, Tensor};

/// The bytes that every `.npy` file begins with.
const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header: NumPy's own limit for files that are not trusted.
const MAX_HEADER: usize = 10_000;

/// An array of a file.
pub(super) struct Array {
    /// The numbers, or the name of a type that is none of [`Storage`].
    pub(super) numbers: Result<Tensor, String>,
    /// The bytes after the header.
    data: Bytes,
}

impl Array {
    /// The array in the content `data` of a `.npy` file, or what is wrong with it.
    ///
    /// Where the file lies column by column, the axes are given in reverse: the second value then is true.
    pub(super) fn parse(data: &Bytes) -> Result<(Self, bool), String> {
        let (header, rest) = split(data)?;
        let header = Header::parse(header)?;
        let data = data.slice(data.len() - rest..);
        let mut shape = header.shape;
        if header.column_major {
            shape.reverse();
        }
        let storage = match header.descr.as_str() {
            "<f8" => Some(Storage::F64),
            "<f4" => Some(Storage::F32),
            "<f2" => Some(Storage::F16),
            _ => None,
        };
        let numbers = match storage {
            None => Err(header.descr),
            Some(storage) => {
                let found = data.len();
                let wrong = || {
                    format!(
                        "its header says {storage} {shape:?}, and {found} bytes follow; write it again"
                    )
                };
                let tensor = Tensor::new(storage, shape.clone(), data.clone());
                Ok(tensor.ok_or_else(wrong)?)
            }
        };
        Ok((Self { numbers, data }, header.column_major))
    }

    /// The numbers as token ids, or what is wrong with them.
    pub(super) fn ids(&self) -> Result<Vec<u32>, String> {
        let descr = match &self.numbers {
            Ok(tensor) => return Err(format!("the array ids is {}", tensor.storage())),
            Err(descr) => descr.as_str(),
        };
        fn read<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> i128) -> Option<Vec<u32>> {
            let (numbers, rest) = data.as_chunks::<N>();
            let ids = numbers.iter().map(|&b| u32::try_from(number(b)).ok());
            rest.is_empty().then(|| ids.collect())?
        }
        let ids = match descr {
            "<i8" => read(&self.data, |b| i64::from_le_bytes(b).into()),
            "<u8" => read(&self.data, |b| u64::from_le_bytes(b).into()),
            "<i4" => read(&self.data, |b| i32::from_le_bytes(b).into()),
            "<u4" => read(&self.data, |b| u32::from_le_bytes(b).into()),
            other => return Err(format!("the array ids is {other}")),
        };
        ids.ok_or_else(|| "the array ids has numbers that are no token ids".into())
    }
}

/// The header's text and how many bytes follow it.
fn split(data: &[u8]) -> Result<(&str, usize), String> {
    let short = || "it ends within its header; write it again".to_owned();
    let rest = data.strip_prefix(MAGIC).ok_or("it is no .npy file")?;
    let ([major, _minor], rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (length, rest) = match major {
        1 => {
            let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        2 | 3 => {
            let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        other => {
            return Err(format!(
                "it has version {other} of the .npy format; 1 to 3 are read"
            ));
        }
    };
    if length > MAX_HEADER {
        return Err(format!(
            "its header claims {length} bytes, above the limit of {MAX_HEADER}"
        ));
    }
    let (header, rest) = rest.split_at_checked(length).ok_or_else(short)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    Ok((header, rest.len()))
}

/// What a header says.
struct Header {
    descr: String,
    column_major: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (5, 640), }`: the form of every header that
    /// NumPy writes for plain numbers.
    fn parse(text: &str) -> Result<Self, String> {
        let parse = || {
            let text = text.trim().strip_prefix('{')?.strip_suffix('}')?;
            let text = text.trim().strip_prefix("'descr': '")?;
            let (descr, text) = text.split_once("', 'fortran_order': ")?;
            let (order, text) = text.split_once(", 'shape': (")?;
            let shape = text.trim_end_matches([',', ' ']).strip_suffix(')')?;
            let axes = shape
                .split(',')
                .map(str::trim)
                .filter(|axis| !axis.is_empty());
            Some(Self {
                descr: descr.into(),
                column_major: match order {
                    "True" => true,
                    "False" => false,
                    _ => return None,
                },
                shape: axes.map(|axis| axis.parse().ok()).collect::<Option<_>>()?,
            })
        };
        parse().ok_or_else(|| {
            "its header is not that of an array of plain numbers; write it with numpy.save".into()
        })
    }
}

/// The name and content of every `.npy` file in an archive, or what is wrong with it.
pub(super) fn unpack(data: &Bytes) -> Result<Vec<(String, Bytes)>, String> {
    let wrong = |error: zip::result::ZipError| {
        format!("it is no .npz archive, or cut short ({error}); write it again with numpy.savez")
    };
    let mut archive = ZipArchive::new(Cursor::new(data)).map_err(wrong)?;
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(wrong)?;
        let name = entry.name().map_err(wrong)?;
        let Some(name) = name.strip_suffix(".npy") else {
            continue;
        };
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err("it is compressed; write it with numpy.savez, not savez_compressed".into());
        }
        let range = || {
            let start = usize::try_from(entry.data_start()?).ok()?;
            let end = start.checked_add(usize::try_from(entry.compressed_size()).ok()?)?;
            (end <= data.len()).then_some(start..end)
        };
        let range = range().ok_or_else(|| format!("its array {name} ends after the file"))?;
        files.push((name.into(), data.slice(range)));
    }
    Ok(files)
}
