//! Reading the header of a GGUF file, of which nothing is believed.

use std::path::Path;

use bytes::Bytes;

use super::super::error::{Error, Result};

/// Arrays within arrays, at most: nobody writes any.
const MAX_DEPTH: usize = 4;

/// A place in a file. Lengths are held against what is left before anything is taken.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    data: &'a Bytes,
    at: usize,
}

/// A value of the metadata.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// An integer of any type.
    Integer(i128),
    Float(f64),
    Bool(bool),
    String(Bytes),
    Array(Array),
}

/// An array, whose elements are read when they are asked for: a vocabulary has hundreds of thousands.
#[derive(Clone, Debug)]
pub(super) struct Array {
    pub(super) kind: u32,
    pub(super) len: usize,
    pub(super) bytes: Bytes,
}

pub(super) const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a number of a type, or `None` for what is no number.
fn number_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, data: &'a Bytes) -> Self {
        Self { path, data, at: 0 }
    }

    /// How many bytes have been read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The bytes from `start` to here.
    pub(super) fn since(&self, start: usize) -> Bytes {
        self.data.slice(start..self.at)
    }

    /// That the file is none that can be read.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> Error {
        Error::NotGguf {
            path: self.path.into(),
            reason: reason.into(),
        }
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64) -> Result<Bytes> {
        let left = self.data.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                let bytes = self.data.slice(self.at..self.at + length);
                self.at += length;
                Ok(bytes)
            }
            _ => Err(self.wrong(format!(
                "its header wants {length} bytes at byte {}, where {left} are left",
                self.at
            ))),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.first_chunk().copied().unwrap_or([0; N]))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string, which need not be UTF-8 yet.
    pub(super) fn string(&mut self) -> Result<Bytes> {
        let length = self.u64()?;
        self.take(length)
    }

    /// A string that names something.
    pub(super) fn name(&mut self) -> Result<String> {
        let at = self.at;
        String::from_utf8(self.string()?.into())
            .map_err(|_| self.wrong(format!("the name at byte {at} is not UTF-8")))
    }

    /// A value of the metadata, its type first.
    pub(super) fn value(&mut self) -> Result<Value> {
        let kind = self.u32()?;
        Ok(match kind {
            STRING => Value::String(self.string()?),
            ARRAY => Value::Array(self.elements(0)?),
            _ => {
                let Some(size) = number_size(kind) else {
                    return Err(self.wrong(format!("a value has the unknown type {kind}")));
                };
                number(kind, &self.take(size as u64)?)
            }
        })
    }

    /// An array without its elements being read, but for strings, whose ends are looked for.
    fn elements(&mut self, depth: usize) -> Result<Array> {
        let (kind, count, start) = (self.u32()?, self.u64()?, self.at);
        match (kind, number_size(kind)) {
            (_, Some(size)) => {
                let length = count.saturating_mul(size as u64);
                self.take(length)?;
            }
            (STRING, _) => {
                for _ in 0..count {
                    self.string()?;
                }
            }
            (ARRAY, _) if depth < MAX_DEPTH => {
                for _ in 0..count {
                    self.elements(depth + 1)?;
                }
            }
            _ => return Err(self.wrong(format!("an array is of the unknown type {kind}"))),
        }
        Ok(Array {
            kind,
            len: count as usize,
            bytes: self.since(start),
        })
    }
}

/// The number that `bytes` are, which are as many as [`number_size`] says.
fn number(kind: u32, bytes: &[u8]) -> Value {
    fn of<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match kind {
        0 => Value::Integer(u8::from_le_bytes(of(bytes)).into()),
        1 => Value::Integer(i8::from_le_bytes(of(bytes)).into()),
        2 => Value::Integer(u16::from_le_bytes(of(bytes)).into()),
        3 => Value::Integer(i16::from_le_bytes(of(bytes)).into()),
        4 => Value::Integer(u32::from_le_bytes(of(bytes)).into()),
        5 => Value::Integer(i32::from_le_bytes(of(bytes)).into()),
        6 => Value::Float(f32::from_le_bytes(of(bytes)).into()),
        7 => Value::Bool(bytes != [0]),
        10 => Value::Integer(u64::from_le_bytes(of(bytes)).into()),
        11 => Value::Integer(i64::from_le_bytes(of(bytes)).into()),
        _ => Value::Float(f64::from_le_bytes(of(bytes))),
    }
}

impl Array {
    /// The numbers of the array; none where it has no numbers.
    pub(super) fn numbers(&self) -> impl Iterator<Item = Value> {
        let size = number_size(self.kind).unwrap_or(usize::MAX);
        self.bytes
            .chunks_exact(size)
            .map(|bytes| number(self.kind, bytes))
    }

    /// The strings of the array, in order.
    pub(super) fn strings(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = if self.kind == STRING {
            &self.bytes
        } else {
            &[]
        };
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk()?;
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            let (string, after) = after.split_at_checked(length)?;
            rest = after;
            Some(string)
        })
    }
}
