//! Writing safetensors.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::message::IoError;
use crate::output::Pending;
use crate::tensor::{Storage, Tensor, decode};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorData<'a> {
    /// The type of its numbers.
    pub storage: Storage,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its numbers, little-endian, row after row; as many as type and shape say.
    pub bytes: Cow<'a, [u8]>,
}

impl TensorData<'static> {
    /// Numbers rounded to `storage`, which must not be quantised, or `None` where one is not finite then.
    pub(crate) fn rounded(storage: Storage, shape: Vec<usize>, numbers: &[f64]) -> Option<Self> {
        let tensor = Tensor::from_f64(storage, shape, numbers)?;
        let finite = tensor.to_vec::<f64>().iter().all(|x| x.is_finite());
        finite.then(|| Self {
            storage,
            shape: tensor.shape().into(),
            bytes: Cow::Owned(tensor.bytes().into()),
        })
    }
}

/// Writes a safetensors file: the same tensors and metadata always give the same bytes. Quantised tensors are written as F32.
///
/// Not through the safetensors crate, which would copy all of it and give the metadata in another order
/// each time.
///
/// # Errors
///
/// [`IoError`].
pub fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, TensorData<'_>>,
) -> Result<(), IoError> {
    let layout = tensors.iter().map(|(name, tensor)| Layout {
        name,
        dtype: tensor.storage.into(),
        shape: &tensor.shape,
        length: written_length(tensor.storage, &tensor.bytes),
    });
    let layout: Vec<_> = layout.collect();
    write_tensors(path, metadata, &layout, |name| {
        let tensor = &tensors[name];
        Ok(written(tensor.storage, &tensor.bytes))
    })
}

impl From<Storage> for Dtype {
    /// The type that safetensors has for it: F32 for a quantised one, of which safetensors has none.
    fn from(storage: Storage) -> Self {
        match storage.for_new_numbers() {
            Storage::F64 => Self::F64,
            Storage::F16 => Self::F16,
            Storage::Bf16 => Self::BF16,
            _ => Self::F32,
        }
    }
}

/// Stored bytes as safetensors has them: those of quantised numbers widened to F32.
pub(crate) fn written(storage: Storage, bytes: &[u8]) -> Cow<'_, [u8]> {
    if !storage.is_quantised() {
        return Cow::Borrowed(bytes);
    }
    let mut numbers = vec![0f32; written_length(storage, bytes) / size_of::<f32>()];
    decode(storage, bytes, &mut numbers);
    Cow::Owned(numbers.into_iter().flat_map(f32::to_le_bytes).collect())
}

/// How many bytes [`written`] gives.
pub(crate) fn written_length(storage: Storage, bytes: &[u8]) -> usize {
    let block = storage.block();
    if storage.is_quantised() {
        bytes.len() / block.bytes * block.numbers * size_of::<f32>()
    } else {
        bytes.len()
    }
}

/// What the header says of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    /// Bytes.
    pub(crate) length: usize,
}

/// [`write_safetensors`] with one tensor in memory at a time, which `bytes` is asked for.
pub(crate) fn write_tensors<'a, E: From<IoError>>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    layout: &[Layout<'a>],
    mut bytes: impl FnMut(&str) -> Result<Cow<'a, [u8]>, E>,
) -> Result<(), E> {
    let mut file = TensorsFile::create(path, metadata, layout)?;
    for tensor in layout {
        file.append(tensor.name, &bytes(tensor.name)?)?;
    }
    Ok(file.finish()?)
}

/// A safetensors file whose tensors are written piece by piece, in any order among each other: nothing of it is held in memory.
#[derive(Debug)]
pub(crate) struct TensorsFile {
    file: Pending,
    places: BTreeMap<String, Range<u64>>,
}

impl TensorsFile {
    /// A file of the tensors that `layout` lists. Wide types come first, so that every tensor lies at a multiple of its
    /// numbers' size.
    pub(crate) fn create(
        path: &Path,
        metadata: &BTreeMap<String, String>,
        layout: &[Layout<'_>],
    ) -> Result<Self, IoError> {
        let mut layout = layout.to_vec();
        layout.sort_by_key(|tensor| (Reverse(tensor.dtype.bitsize()), tensor.name));
        let header = header(metadata, &layout);
        let mut end = 8 + header.len() as u64;
        let place = |tensor: &Layout<'_>| {
            let start = end;
            end += tensor.length as u64;
            (tensor.name.to_owned(), start..end)
        };
        let places = layout.iter().map(place).collect();
        let mut file = Pending::create(path, end)?;
        let length = (header.len() as u64).to_le_bytes();
        file.write_at(0, &[&length[..], &header].concat())?;
        Ok(Self { file, places })
    }

    /// Writes the next bytes of a tensor that was listed.
    pub(crate) fn append(&mut self, name: &str, bytes: &[u8]) -> Result<(), IoError> {
        let Some(left) = self.places.get_mut(name) else {
            unreachable!("{name} was not listed");
        };
        let start = left.start;
        left.start += bytes.len() as u64;
        assert!(left.start <= left.end, "{name} is longer than was listed");
        self.file.write_at(start, bytes)
    }

    /// Puts the file, of which every tensor is written, in its place.
    pub(crate) fn finish(self) -> Result<(), IoError> {
        for (name, left) in &self.places {
            assert!(left.is_empty(), "{name} is shorter than was listed");
        }
        self.file.finish()
    }
}

/// Where each tensor lies, filled with spaces to whole 8 bytes.
fn header(metadata: &BTreeMap<String, String>, layout: &[Layout<'_>]) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__", serde_json::json!(metadata))]);
    let mut offset = 0;
    for tensor in layout {
        let end = offset + tensor.length;
        let entry = serde_json::json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        entries.insert(tensor.name, entry);
        offset = end;
    }
    let mut header = serde_json::json!(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_is_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aligned.safetensors");
        let tensor = |storage| TensorData::rounded(storage, vec![3], &[1.0; 3]).unwrap();
        let tensors = BTreeMap::from([
            ("a".to_owned(), tensor(Storage::Bf16)),
            ("b".to_owned(), tensor(Storage::F32)),
            ("c".to_owned(), tensor(Storage::F64)),
        ]);
        write_safetensors(&path, &BTreeMap::new(), &tensors).unwrap();
        let file = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        for (name, tensor) in &tensors {
            let data = read.tensor(name).unwrap().data();
            assert_eq!(data, &*tensor.bytes);
            let offset = data.as_ptr() as usize - file.as_ptr() as usize;
            assert_eq!(offset % tensor.storage.block().bytes, 0, "{name}");
        }
    }
    #[test]
    fn quantised_tensors_are_written_as_f32() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        // 2⁻⁴ (q − 8): of each byte first the low half.
        let block = [&[0, 0x2c], &[0x91; 16][..]].concat();
        let data = TensorData {
            storage: Storage::Q4_0,
            shape: vec![1, 32],
            bytes: Cow::Owned(block),
        };
        write_safetensors(
            &path,
            &BTreeMap::new(),
            &BTreeMap::from([("a".into(), data)]),
        )
        .unwrap();
        let file = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        let tensor = read.tensor("a").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[1, 32][..]));
        let want = [[-7.0f32 / 16.0; 16], [1.0 / 16.0; 16]].concat();
        let want: Vec<u8> = want.into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(tensor.data(), want);
    }
}
