//! The parts of a GGUF file: metadata, then what tensors there are, then their bytes.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;

use super::super::error::Result;
use super::cursor::Cursor;
use super::metadata::Metadata;
use super::types;
use crate::message::shown;
use crate::tensor::{Storage, Tensor};

/// Where tensors begin is a multiple of it, unless the file says another.
pub(super) const ALIGNMENT: u64 = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// The first bytes of every file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// One file, its tensors under the names it gives them, in the order of their bytes.
pub(super) struct Parts {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<(String, Tensor)>,
}

/// What a header says of a tensor.
struct Info {
    name: String,
    /// The dimensions, outermost first; the file has them the other way round.
    shape: Vec<usize>,
    storage: Storage,
    offset: u64,
}

impl Parts {
    /// Reads a file with the content `data`, which the tensors share; `path` only serves the messages.
    pub(super) fn read(path: &Path, data: &Bytes) -> Result<Self> {
        let mut cursor = Cursor::new(path, data);
        let (tensors, values) = counts(&mut cursor)?;
        let metadata = Metadata::read(path, &mut cursor, values)?;
        let (mut names, mut infos) = (BTreeSet::new(), Vec::new());
        for _ in 0..tensors {
            let info = info(&mut cursor)?;
            if !names.insert(info.name.clone()) {
                return Err(cursor.wrong(format!("it has the tensor {} twice", shown(&info.name))));
            }
            infos.push(info);
        }
        let alignment = alignment(&metadata)?;
        let start = (cursor.at() as u64).next_multiple_of(alignment);
        let mut expected = 0;
        let mut tensors = Vec::new();
        for info in infos {
            let wrong =
                |reason| Err(cursor.wrong(format!("the tensor {} {reason}", shown(&info.name))));
            if info.offset != expected {
                return wrong(format!(
                    "begins at byte {} of the data, and not at {expected}, where the one before it ends",
                    info.offset
                ));
            }
            let Some(length) = info.length() else {
                return wrong(format!(
                    "has rows of {} numbers, which are no whole blocks of {}",
                    info.shape.last().unwrap_or(&1),
                    info.storage
                ));
            };
            let end = (start + expected)
                .checked_add(length)
                .filter(|end| *end <= data.len() as u64);
            let Some(end) = end else {
                return wrong("ends behind the end of the file".into());
            };
            let bytes = data.slice((end - length) as usize..end as usize);
            let tensor = Tensor::new(info.storage, info.shape.clone(), bytes);
            tensors.extend(tensor.map(|tensor| (info.name.clone(), tensor)));
            expected = (expected + length).next_multiple_of(alignment);
        }
        Ok(Self { metadata, tensors })
    }
}

/// How many tensors and values there are.
fn counts(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    if *cursor.take(4)? != MAGIC {
        return Err(cursor.wrong("it does not begin with GGUF"));
    }
    match cursor.u32()? {
        2 | 3 => Ok((cursor.u64()?, cursor.u64()?)),
        version if version.swap_bytes() <= 3 => Err(cursor.wrong("it is big-endian")),
        version => Err(cursor.wrong(format!(
            "it has version {version}; versions 2 and 3 are read"
        ))),
    }
}

fn info(cursor: &mut Cursor<'_>) -> Result<Info> {
    let name = cursor.name()?;
    let wrong = |cursor: &Cursor<'_>, reason: String| {
        Err(cursor.wrong(format!("the tensor {} {reason}", shown(&name))))
    };
    let dimensions = cursor.u32()?;
    if !(1..=4).contains(&dimensions) {
        return wrong(
            cursor,
            format!("has {dimensions} dimensions; 1 to 4 are possible"),
        );
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let extent = cursor.u64()?;
        match usize::try_from(extent) {
            Ok(extent) if extent > 0 => shape.insert(0, extent),
            _ => return wrong(cursor, format!("has a dimension of {extent}")),
        }
    }
    let numbers = shape
        .iter()
        .try_fold(1usize, |numbers, &extent| numbers.checked_mul(extent));
    if numbers.is_none() {
        return wrong(cursor, "has more numbers than there can be".into());
    }
    let storage = match types::storage(cursor.u32()?) {
        Ok(storage) => storage,
        Err(kind) => {
            let known = types::known();
            return wrong(cursor, format!("is {kind}; known are {known}"));
        }
    };
    let offset = cursor.u64()?;
    Ok(Info {
        name,
        shape,
        storage,
        offset,
    })
}

impl Info {
    /// How many bytes the tensor has, or `None` where its rows are no whole blocks or it has more than there can be.
    fn length(&self) -> Option<u64> {
        let (cols, rows) = self.shape.split_last()?;
        let row = self.storage.bytes_of(*cols)?;
        let bytes = rows
            .iter()
            .try_fold(row, |bytes, &extent| bytes.checked_mul(extent))?;
        Some(bytes as u64)
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.unsigned(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT);
    if alignment.is_power_of_two() && alignment <= 1 << 20 {
        Ok(alignment)
    } else {
        Err(metadata.wrong(ALIGNMENT_KEY, "a power of two up to 1048576"))
    }
}
