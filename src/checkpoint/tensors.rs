//! The weights of a model under their canonical names, whatever files they came from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use crate::tensor::{Storage, Tensor};

/// The tensors of a checkpoint by name: `model.embed_tokens.weight`,
/// `model.layers.{i}.self_attn.q_proj.weight`, …, `model.norm.weight`, `lm_head.weight`.
///
/// The prefixes of `Gemma3ForConditionalGeneration` are removed and its vision tensors left out. A
/// clone shares the weights.
#[derive(Clone, Debug)]
pub struct Tensors {
    source: PathBuf,
    map: BTreeMap<String, Entry>,
    /// The vision tensors under the files' names.
    vision: BTreeMap<String, Vision>,
}

/// A tensor and the file it came from.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) tensor: Tensor,
    pub(super) file: Arc<Path>,
    /// Its name in that file.
    pub(super) stored: String,
}

/// A tensor that only an export needs.
#[derive(Clone, Debug)]
pub(super) struct Vision {
    /// The tensor, or its type where that is none of [`Storage`].
    pub(super) tensor: Result<Tensor, String>,
    pub(super) file: Arc<Path>,
}

/// Bytes hashed by one task: small enough to share one large embedding between threads.
const CHUNK: usize = 1 << 22;

impl Tensors {
    /// No tensors yet, from the file or index `source`.
    pub(super) fn new(source: &Path) -> Self {
        Self {
            source: source.into(),
            map: BTreeMap::new(),
            vision: BTreeMap::new(),
        }
    }

    /// Adds a vision tensor under its file's name.
    pub(super) fn insert_vision(&mut self, name: String, vision: Vision) {
        self.vision.insert(name, vision);
    }

    /// The same tensors with some of them replaced, which must be there.
    pub(crate) fn replaced(&self, with: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let mut tensors = self.clone();
        for (name, tensor) in with {
            let entry = tensors.map.get_mut(&name);
            debug_assert!(entry.is_some(), "no tensor {name}");
            if let Some(entry) = entry {
                entry.tensor = tensor;
            }
        }
        tensors
    }

    /// Every tensor of the files, those of the vision part too, under the files' names; with it its
    /// canonical name if it is of the text model.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedDtype`] for a vision tensor, which has been of no concern so far.
    pub(crate) fn stored(&self) -> Result<BTreeMap<&str, (Option<&str>, &Tensor)>> {
        let text = self.map.iter();
        let mut stored: BTreeMap<_, _> = text
            .map(|(name, e)| (e.stored.as_str(), (Some(name.as_str()), &e.tensor)))
            .collect();
        for (name, vision) in &self.vision {
            let tensor = vision.tensor.as_ref();
            let tensor = tensor.map_err(|dtype| Error::UnsupportedDtype {
                file: vision.file.to_path_buf(),
                tensor: name.clone(),
                dtype: dtype.clone(),
            })?;
            stored.insert(name, (None, tensor));
        }
        Ok(stored)
    }

    /// Whether the text model lies in a multimodal one.
    pub(crate) fn multimodal(&self) -> bool {
        let inner = |e: &Entry| e.stored.contains("language_model.");
        !self.vision.is_empty() || self.map.values().any(inner)
    }

    /// Adds a tensor under its canonical name.
    pub(super) fn insert(&mut self, name: String, entry: Entry) -> Result<()> {
        match self.map.get(&name) {
            Some(first) => Err(Error::DuplicateTensor {
                first: first.file.to_path_buf(),
                second: entry.file.to_path_buf(),
                tensor: name,
            }),
            None => {
                self.map.insert(name, entry);
                Ok(())
            }
        }
    }

    /// The tensor `name`, which must have the shape `expected`. It shares the stored bytes.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`] and [`Error::TensorShape`].
    pub fn get(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let Some(entry) = self.map.get(name) else {
            return Err(Error::MissingTensor {
                file: self.source.clone(),
                tensor: name.into(),
            });
        };
        if entry.tensor.shape() != expected {
            return Err(Error::TensorShape {
                file: entry.file.to_path_buf(),
                tensor: name.into(),
                expected: expected.into(),
                found: entry.tensor.shape().into(),
            });
        }
        Ok(entry.tensor.clone())
    }

    /// The file or index they come from.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// All tensors with their names, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.map.iter().map(|(k, e)| (k.as_str(), &e.tensor))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A hash of names, dtypes, shapes and contents, as 64 hexadecimal digits: the same for the same
    /// weights however they are spread over files, named or brought into memory.
    ///
    /// It is SHA-256 over one record for each tensor in the order of names: the canonical name, a zero
    /// byte, the dtype in safetensors' spelling, a zero byte, the number of dimensions and the
    /// dimensions (u64, little-endian), and the SHA-256 of each 4 MiB of the bytes.
    pub fn content_hash(&self) -> String {
        let chunks = |e: &Entry| -> Vec<[u8; 32]> {
            let chunks = e.tensor.bytes().par_chunks(CHUNK);
            chunks.map(|c| Sha256::digest(c).into()).collect()
        };
        let digests: Vec<_> = self.map.par_iter().map(|(_, e)| chunks(e)).collect();
        let mut hash = Sha256::new();
        for ((name, entry), digests) in self.map.iter().zip(digests) {
            hash.update(name);
            hash.update([0]);
            hash.update(entry.tensor.storage().to_string());
            hash.update([0]);
            let shape = entry.tensor.shape();
            hash.update((shape.len() as u64).to_le_bytes());
            for &d in shape {
                hash.update((d as u64).to_le_bytes());
            }
            digests.iter().for_each(|d| hash.update(d));
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads every weight once and refuses NaN and infinity.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] with the first such element of the first such tensor by name.
    pub fn check_finite(&self) -> Result<()> {
        let find = |(name, entry): (&String, &Entry)| {
            let (index, value) = first_not_finite(&entry.tensor)?;
            Some(Error::NotFinite {
                file: entry.file.to_path_buf(),
                tensor: name.clone(),
                index,
                value,
            })
        };
        let found = self.map.par_iter().find_map_first(find);
        found.map_or(Ok(()), Err)
    }
}

/// The first element that is NaN or infinite.
fn first_not_finite(tensor: &Tensor) -> Option<(usize, f64)> {
    /// All ones in the exponent; seen in the bits, since converting each half is ten times slower.
    const F16: u16 = 0x7c00;
    const BF16: u16 = 0x7f80;
    let bytes = tensor.bytes();
    let index = match tensor.storage() {
        Storage::F64 => find(bytes, |b| !f64::from_le_bytes(b).is_finite()),
        Storage::F32 => find(bytes, |b| !f32::from_le_bytes(b).is_finite()),
        Storage::F16 => find(bytes, |b| u16::from_le_bytes(b) & F16 == F16),
        Storage::Bf16 => find(bytes, |b| u16::from_le_bytes(b) & BF16 == BF16),
    }?;
    let at = index * tensor.storage().size();
    let value = match (tensor.storage(), bytes.get(at..)?) {
        (Storage::F64, b) => f64::from_le_bytes(*b.first_chunk()?),
        (Storage::F32, b) => f32::from_le_bytes(*b.first_chunk()?).into(),
        (Storage::F16, b) => f16::from_le_bytes(*b.first_chunk()?).to_f64(),
        (Storage::Bf16, b) => bf16::from_le_bytes(*b.first_chunk()?).to_f64(),
    };
    Some((index, value))
}

/// The index of the first number that is `bad`.
fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    const BLOCK: usize = 1 << 14;
    let (numbers, _) = bytes.as_chunks::<N>();
    let blocks = numbers.par_chunks(BLOCK).enumerate();
    blocks.find_map_first(|(i, block)| {
        // Two passes: the first never leaves early and so becomes vector code.
        let any = block.iter().fold(false, |any, b| any | bad(*b));
        let at = any.then(|| block.iter().position(|b| bad(*b)))??;
        Some(i * BLOCK + at)
    })
}

#[cfg(test)]
mod tests;
