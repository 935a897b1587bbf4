//! Writing GGUF files, version 3.

use std::borrow::Cow;
use std::path::Path;

use super::header::{ALIGNMENT, MAGIC};
use super::types;
use crate::message::IoError;
use crate::output::Pending;
use crate::tensor::Storage;

/// Values by key, as they are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    count: u64,
    bytes: Vec<u8>,
}

impl Values {
    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.count
    }

    /// All of them, as they are written.
    pub(super) fn written(&self) -> &[u8] {
        &self.bytes
    }

    /// A text.
    pub(crate) fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        string(&mut self.bytes, text.as_bytes());
    }

    /// A whole number, as u32.
    pub(crate) fn count(&mut self, key: &str, number: u32) {
        self.key(key, 4);
        self.bytes.extend(number.to_le_bytes());
    }

    /// A number, as f32.
    pub(crate) fn number(&mut self, key: &str, number: f32) {
        self.key(key, 6);
        self.bytes.extend(number.to_le_bytes());
    }

    /// True or false.
    pub(crate) fn flag(&mut self, key: &str, flag: bool) {
        self.key(key, 7);
        self.bytes.push(u8::from(flag));
    }

    /// A list of true and false.
    pub(crate) fn flags(&mut self, key: &str, flags: &[bool]) {
        self.list(key, 7, flags.len());
        self.bytes.extend(flags.iter().map(|&flag| u8::from(flag)));
    }

    /// A list of texts.
    pub(crate) fn texts<T: AsRef<str>>(&mut self, key: &str, texts: &[T]) {
        self.list(key, 8, texts.len());
        for text in texts {
            string(&mut self.bytes, text.as_ref().as_bytes());
        }
    }

    /// A list of numbers, as f32.
    pub(crate) fn numbers(&mut self, key: &str, numbers: &[f32]) {
        self.list(key, 6, numbers.len());
        self.bytes
            .extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }

    /// A list of whole numbers, as i32.
    pub(crate) fn integers(&mut self, key: &str, numbers: &[i32]) {
        self.list(key, 5, numbers.len());
        self.bytes
            .extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }

    /// A key and its value as another file has them.
    pub(crate) fn copied(&mut self, written: &[u8]) {
        self.count += 1;
        self.bytes.extend(written);
    }

    /// What stands before the elements of a list.
    fn list(&mut self, key: &str, kind: u32, length: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u64).to_le_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        string(&mut self.bytes, key.as_bytes());
        self.bytes.extend(kind.to_le_bytes());
    }
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) name: String,
    /// The dimensions, outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) storage: Storage,
    /// Bytes.
    pub(crate) length: usize,
}

/// Writes a file with one tensor in memory at a time, which `bytes` is asked for by its place in `tensors`: the same values and
/// tensors always give the same bytes.
///
/// # Errors
///
/// Those of `bytes`, and [`IoError`].
pub(crate) fn write_gguf<'a, E: From<IoError>>(
    path: &Path,
    values: &Values,
    tensors: &[Layout],
    bytes: impl Fn(usize) -> Result<Cow<'a, [u8]>, E>,
) -> Result<(), E> {
    let header = header(values, tensors);
    let lengths = tensors.iter().map(|tensor| padded(tensor.length));
    let mut file = Pending::create(path, header.len() as u64 + lengths.sum::<u64>())?;
    file.write_at(0, &header)?;
    let mut start = header.len() as u64;
    for (place, tensor) in tensors.iter().enumerate() {
        let bytes = bytes(place)?;
        assert_eq!(
            bytes.len(),
            tensor.length,
            "{} is as long as was said",
            tensor.name
        );
        file.write_at(start, &bytes)?;
        start += padded(tensor.length);
    }
    Ok(file.finish()?)
}

/// Everything before the first tensor's bytes.
fn header(values: &Values, tensors: &[Layout]) -> Vec<u8> {
    let mut out = Vec::from(MAGIC);
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(values.count.to_le_bytes());
    out.extend(&values.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        string(&mut out, tensor.name.as_bytes());
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &extent in tensor.shape.iter().rev() {
            out.extend((extent as u64).to_le_bytes());
        }
        out.extend(types::number(tensor.storage).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += padded(tensor.length);
    }
    out.resize(padded(out.len()) as usize, 0);
    out
}

/// A length as the alignment asks for.
fn padded(length: usize) -> u64 {
    (length as u64).next_multiple_of(ALIGNMENT)
}

/// A length and the bytes.
fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}
