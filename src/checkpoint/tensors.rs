//! The weights of a model under their canonical names, whatever files they came from.

mod experts;

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::names::{Canonical, canonical};
use crate::message::hex;
use crate::tensor::{Storage, Tensor, decode};

/// The tensors of a checkpoint by name: `model.embed_tokens.weight`,
/// `model.layers.{i}.self_attn.q_proj.weight`, …, `model.norm.weight`, `lm_head.weight`.
///
/// The prefixes of `Gemma3ForConditionalGeneration` are removed, and its vision tensors stand apart: they have no part in the
/// hash, in what is listed, nor in a patch. A clone shares the weights.
#[derive(Clone, Debug)]
pub struct Tensors {
    source: PathBuf,
    map: BTreeMap<String, Entry>,
    /// The vision part's: `model.vision_tower.embeddings.patch_embedding.weight`, ….
    vision: BTreeMap<String, Entry>,
    /// What only an export needs: second spellings of what the two have.
    aside: Vec<Entry>,
    /// The names of tensors that were [replaced](Self::replaced).
    changed: BTreeSet<String>,
    metadata: BTreeMap<String, String>,
    /// Their [hash](Self::content_hash), once it was asked for.
    hash: OnceLock<String>,
}

/// A tensor and the file it came from.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) tensor: Result<Tensor, OtherTensor>,
    pub(super) file: Arc<Path>,
    /// Its name in that file.
    pub(super) stored: String,
}

/// A tensor of a type that nothing here computes with.
#[derive(Clone, Debug)]
pub(super) struct OtherTensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Bytes,
}

/// A tensor as a file has it.
pub(crate) struct Stored<'a> {
    /// Its name in the file.
    pub(crate) name: &'a str,
    /// Its canonical name, if it is one of the text model.
    pub(crate) canonical: Option<&'a str>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
    /// The tensor, unless its type is one that nothing here computes with.
    pub(crate) tensor: Option<&'a Tensor>,
}

impl Entry {
    /// The tensor `name`, which must have the shape `expected`.
    fn of_shape(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        let file = || self.file.to_path_buf();
        match &self.tensor {
            Ok(tensor) if tensor.shape() == expected => Ok(tensor.clone()),
            Ok(tensor) => Err(Error::TensorShape {
                file: file(),
                tensor: name.into(),
                expected: expected.into(),
                found: tensor.shape().into(),
            }),
            Err(other) => Err(Error::UnsupportedDtype {
                file: file(),
                tensor: self.stored.clone(),
                dtype: other.dtype.to_string(),
            }),
        }
    }

    fn stored<'a>(&'a self, canonical: Option<&'a str>) -> Stored<'a> {
        let (dtype, shape, bytes) = match &self.tensor {
            Ok(tensor) => (tensor.storage().into(), tensor.shape(), tensor.bytes()),
            Err(other) => (other.dtype, other.shape.as_slice(), &*other.bytes),
        };
        Stored {
            name: &self.stored,
            canonical,
            dtype,
            shape,
            bytes,
            tensor: self.tensor.as_ref().ok(),
        }
    }
}

/// Bytes hashed by one task: small enough to share one large embedding between threads.
const CHUNK: usize = 1 << 22;

impl Tensors {
    /// The tensors of the file or index `source`, given under the files' names. Of two spellings of one name the
    /// first in the alphabet counts, as in transformers.
    pub(super) fn new(
        source: &Path,
        entries: BTreeMap<String, Entry>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let (mut map, mut vision, mut aside) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (name, entry) in entries {
            let (part, canonical) = match canonical(&name) {
                Canonical::Text(name) => (&mut map, name),
                Canonical::Vision(name) => (&mut vision, name),
            };
            match part.entry(canonical) {
                btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(entry);
                }
                btree_map::Entry::Occupied(_) => aside.push(entry),
            }
        }
        Self {
            source: source.into(),
            map,
            vision,
            aside,
            changed: BTreeSet::new(),
            metadata,
            hash: OnceLock::new(),
        }
    }

    /// The same tensors with some of them replaced, which must be there.
    pub(crate) fn replaced(&self, with: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let mut tensors = self.clone();
        tensors.hash = OnceLock::new();
        for (name, tensor) in with {
            let entry = tensors.map.get_mut(&name);
            debug_assert!(entry.is_some(), "no tensor {name}");
            if let Some(entry) = entry {
                entry.tensor = Ok(tensor);
                tensors.changed.insert(name);
            }
        }
        tensors
    }

    /// Whether the tensor `name` was replaced.
    pub(super) fn is_changed(&self, name: &str) -> bool {
        self.changed.contains(name)
    }

    /// Every tensor of the files, those that nothing is computed with too.
    pub(crate) fn stored(&self) -> impl Iterator<Item = Stored<'_>> {
        let text = self
            .map
            .iter()
            .map(|(name, entry)| entry.stored(Some(name)));
        let others = self.vision.values().chain(&self.aside);
        text.chain(others.map(|entry| entry.stored(None)))
    }

    /// What the files say beside tensors; of several with the same key, the last.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensor `name`, which must have the shape `expected`. It shares the stored bytes.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::OtherPrefix`], [`Error::UnsupportedDtype`] and [`Error::TensorShape`].
    pub fn get(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        match self.map.get(name) {
            Some(entry) => entry.of_shape(name, expected),
            None => Err(self.missing(name)),
        }
    }

    /// [`get`](Self::get) for a tensor of the vision part.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::UnsupportedDtype`] and [`Error::TensorShape`].
    pub(crate) fn vision(&self, name: &str, expected: &[usize]) -> Result<Tensor> {
        match self.vision.get(name) {
            Some(entry) => entry.of_shape(name, expected),
            None => Err(Error::MissingTensor {
                file: self.source.clone(),
                tensor: name.into(),
            }),
        }
    }

    /// The names of the vision part's tensors, sorted.
    pub(crate) fn vision_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.vision.keys().map(String::as_str)
    }

    /// That the tensor `name` is not there, or there with something before its name.
    fn missing(&self, name: &str) -> Error {
        let end = format!(".{}", name.strip_prefix("model.").unwrap_or(name));
        match self.map.values().find(|entry| entry.stored.ends_with(&end)) {
            Some(entry) => Error::OtherPrefix {
                file: entry.file.to_path_buf(),
                tensor: name.into(),
                stored: entry.stored.clone(),
            },
            None => Error::MissingTensor {
                file: self.source.clone(),
                tensor: name.into(),
            },
        }
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

    /// All tensors with their names, sorted by name, but for those of types that nothing here computes with.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let entries = self.map.iter();
        entries.filter_map(|(name, entry)| Some((name.as_str(), entry.tensor.as_ref().ok()?)))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A hash of names, dtypes, shapes and contents of what [`iter`](Self::iter) gives, as 64 hexadecimal digits: the
    /// same for the same weights however they are spread over files, named or brought into memory.
    ///
    /// It is SHA-256 over one record for each tensor in the order of names: the canonical name, a zero
    /// byte, the dtype in safetensors' spelling or ggml's, a zero byte, the number of dimensions and the
    /// dimensions (u64, little-endian), and the SHA-256 of each 4 MiB of the bytes. It is computed once.
    pub fn content_hash(&self) -> String {
        self.hash.get_or_init(|| self.hashed()).clone()
    }

    fn hashed(&self) -> String {
        let chunks = |tensor: &Tensor| -> Vec<[u8; 32]> {
            let chunks = tensor.bytes().par_chunks(CHUNK);
            chunks.map(|c| Sha256::digest(c).into()).collect()
        };
        let tensors: Vec<_> = self.iter().collect();
        let digests: Vec<_> = tensors
            .par_iter()
            .map(|(_, tensor)| chunks(tensor))
            .collect();
        let mut hash = Sha256::new();
        for ((name, tensor), digests) in tensors.into_iter().zip(digests) {
            hash.update(name);
            hash.update([0]);
            hash.update(tensor.storage().to_string());
            hash.update([0]);
            let shape = tensor.shape();
            hash.update((shape.len() as u64).to_le_bytes());
            for &d in shape {
                hash.update((d as u64).to_le_bytes());
            }
            digests.iter().for_each(|d| hash.update(d));
        }
        hex(&hash.finalize())
    }

    /// Reads every weight once and refuses NaN and infinity.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] with the first such element of the first such tensor by name.
    pub fn check_finite(&self) -> Result<()> {
        check_finite(&self.map)
    }

    /// [`check_finite`](Self::check_finite) for the vision part.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`].
    pub(crate) fn check_vision_finite(&self) -> Result<()> {
        check_finite(&self.vision)
    }
}

/// Refuses NaN and infinity in any of some tensors.
fn check_finite(tensors: &BTreeMap<String, Entry>) -> Result<()> {
    let find = |(name, entry): (&String, &Entry)| {
        let (index, value) = first_not_finite(entry.tensor.as_ref().ok()?)?;
        Some(Error::NotFinite {
            file: entry.file.to_path_buf(),
            tensor: name.clone(),
            index,
            value,
        })
    };
    let found = tensors.par_iter().find_map_first(find);
    found.map_or(Ok(()), Err)
}

/// The first element that is NaN or infinite.
fn first_not_finite(tensor: &Tensor) -> Option<(usize, f64)> {
    /// All ones in the exponent; seen in the bits, since converting each half is ten times slower.
    const F16: u16 = 0x7c00;
    const BF16: u16 = 0x7f80;
    let bytes = tensor.bytes();
    let storage = tensor.storage();
    let index = match storage {
        Storage::F64 => find(bytes, |b| !f64::from_le_bytes(b).is_finite()),
        Storage::F32 => find(bytes, |b| !f32::from_le_bytes(b).is_finite()),
        Storage::F16 => find(bytes, |b| u16::from_le_bytes(b) & F16 == F16),
        Storage::Bf16 => find(bytes, |b| u16::from_le_bytes(b) & BF16 == BF16),
        _ => find_decoded(storage, bytes),
    }?;
    Some((index, tensor.number(index)))
}

/// The index of the first number of a quantised type that is NaN or infinite.
fn find_decoded(storage: Storage, bytes: &[u8]) -> Option<usize> {
    /// Blocks of a task.
    const BLOCKS: usize = 64;
    let block = storage.block();
    let pieces = bytes.par_chunks(BLOCKS * block.bytes).enumerate();
    pieces.find_map_first(|(i, piece)| {
        let mut numbers = vec![0f32; piece.len() / block.bytes * block.numbers];
        decode(storage, piece, &mut numbers);
        let at = numbers.iter().position(|x| !x.is_finite())?;
        Some(i * BLOCKS * block.numbers + at)
    })
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
